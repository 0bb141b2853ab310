"""The package as others get it: a wheel of the sdist works away from the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

import raygenesis
from tests.support.main_job import TINY

CHECKOUT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def follow(*command: str | Path, **options: object) -> str:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=800, **options)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout


def test_a_wheel_of_the_source_distribution_runs_the_demo_from_anywhere(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = tmp_path / "build"
    follow(*pip, "install", "--target", build, "hatchling", "--constraint", CHECKOUT / "constraints.txt")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    building = {**environment, "PYTHONPATH": str(build)}
    follow(sys.executable, "-m", "hatchling", "build", "--target", "sdist", "--directory", tmp_path / "dist",
           cwd=CHECKOUT, env=building)  # fmt: skip
    (source,) = (tmp_path / "dist").glob("*.tar.gz")
    with tarfile.open(source) as archive:
        archive.extractall(tmp_path, filter="data")
    (unpacked,) = (path for path in tmp_path.glob("raygenesis-*") if path.is_dir())
    names = ("docs/settings.md", "mkdocs.yml", "constraints.txt", "Makefile", "infra/README.md", "tests/conftest.py")
    for name in names:
        assert (unpacked / name).is_file(), name
    follow(sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", tmp_path / "dist",
           cwd=unpacked, env=building)  # fmt: skip
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    assert raygenesis.__version__ in wheel.name
    site = tmp_path / "site"
    follow(*pip, "install", "--no-deps", "--target", site, wheel)
    assert (site / "raygenesis" / "py.typed").is_file()
    away = {**environment, "PYTHONPATH": str(site)}
    told = follow(sys.executable, "-c", "import raygenesis; print(raygenesis.__file__)", cwd=tmp_path, env=away)
    assert told.strip() == str(site / "raygenesis" / "__init__.py")
    python = [sys.executable, "-m"]
    follow(*python, "raygenesis.demo.population", "population", "--subjects", "12", cwd=tmp_path, env=away)
    follow(*python, "raygenesis", "run", "--scans", "population/scans", "--workspace", "workspace", *TINY,
           cwd=tmp_path, env=away)  # fmt: skip
    assert (tmp_path / "workspace" / "report" / "index.html").is_file()
