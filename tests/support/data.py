"""Real scans beside the checkout, for the tests that need them."""

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
HEADS = SHARED / "ixi-heads" / "t1"
HIPPOCAMPI = SHARED / "msd-hippocampus"
RADIOGRAPHS = SHARED / "nih-chest-xray" / "images"
ADRENALS = SHARED / "adrenal-mnist3d"
LIDC = SHARED / "lidc-ct" / "LIDC-IDRI-0001"

needs_heads = pytest.mark.skipif(not HEADS.is_dir(), reason=f"real head scans are not at {HEADS}")
needs_hippocampi = pytest.mark.skipif(not HIPPOCAMPI.is_dir(), reason=f"labelled hippocampi are not at {HIPPOCAMPI}")
needs_radiographs = pytest.mark.skipif(not RADIOGRAPHS.is_dir(), reason=f"real radiographs are not at {RADIOGRAPHS}")
needs_adrenals = pytest.mark.skipif(not ADRENALS.is_dir(), reason=f"adrenal shapes are not at {ADRENALS}")
needs_lidc = pytest.mark.skipif(not LIDC.is_dir(), reason=f"a chest CT with its readers' outlines is not at {LIDC}")
