"""The command line is thin: it answers before anything heavy is imported."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import sys
from raygenesis.cli import app
app(["--help"], standalone_mode=False)
print("imported:", *sorted({"SimpleITK", "pydicom", "gdcm", "nibabel", "ray", "torch"} & sys.modules.keys()))
"""


def test_help_imports_no_reader_and_no_engine() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert "Usage" in done.stdout and done.stdout.splitlines()[-1] == "imported:"
