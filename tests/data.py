"""Real scans beside the checkout, for the tests that need them."""

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
HEADS = SHARED / "ixi-heads" / "t1"
HIPPOCAMPI = SHARED / "msd-hippocampus"
RADIOGRAPHS = SHARED / "nih-chest-xray" / "images"

needs_heads = pytest.mark.skipif(not HEADS.is_dir(), reason=f"real head scans are not at {HEADS}")
needs_hippocampi = pytest.mark.skipif(not HIPPOCAMPI.is_dir(), reason=f"labelled hippocampi are not at {HIPPOCAMPI}")
