"""`raygenesis doctor`: what of this machine, its Ray and a workspace stands in the way, and the remedy."""

from __future__ import annotations

import locale
import platform
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from raygenesis._version import __version__
from raygenesis.cluster import environment, machine
from raygenesis.cluster.head import reachable
from raygenesis.errors import RaygenesisError
from raygenesis.text.amounts import GIB, size
from raygenesis.text.tables import aligned
from raygenesis.workspace import hardware

Verdict = Literal["ok", "warning", "fault"]
PACKAGES = ("ray", "torch", "numpy", "pyarrow", "zarr", "tensorstore", "hnswlib")
IMPORTS = """
import hnswlib, torch
for number in range(torch.cuda.device_count()):
    print(torch.cuda.get_device_name(number))
"""
LEAST_MEMORY_GIB, LEAST_SHARED_GIB, LEAST_FREE_GIB = 4, 1, 5


@dataclass(frozen=True)
class Finding:
    """What was looked at, what was found, and what to do unless it is well. A fault ends every job."""

    subject: str
    found: str
    verdict: Verdict = "ok"
    remedy: str = ""


def examine(workspace: str | None = None) -> list[Finding]:
    """Look at everything that a job needs; workspace: also whether it can be written, made if it is not there."""
    found = [*_versions(), _cluster(), _memory(), _shared_memory(), _open_files(), _temporary(), _encoding()]
    return found if workspace is None else [*found, _workspace(workspace)]


def page(findings: list[Finding]) -> list[str]:
    """The findings as lines: a table, and the remedies."""
    rows = [[one.subject, one.verdict, one.found] for one in findings]
    return [*aligned(rows, "lll"), *(f"{one.verdict}: {one.subject}: {one.remedy}" for one in findings if one.remedy)]


def _versions() -> Iterator[Finding]:
    yield Finding("raygenesis", f"{__version__} on Python {platform.python_version()}, {platform.platform()}")
    missing = []
    there = []
    for name in PACKAGES:
        try:
            there.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            missing.append(name)
    remedy = f"{', '.join(missing)} not installed: install raygenesis by pip, which brings them" if missing else ""
    yield Finding("packages", ", ".join(there), "fault" if missing else "ok", remedy)
    # In a process of its own, which dies where something was compiled for another processor.
    done = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr.strip() or f"it ended by signal {-done.returncode}").splitlines()[-1]
        yield Finding("compiled code", said, "fault", "install raygenesis again on this machine")
        return
    yield Finding("GPUs", ", ".join(done.stdout.splitlines()) or "none that torch can use")


def _cluster() -> Finding:
    address = environment.address()
    if address is None:
        return Finding("Ray", f"RAY_ADDRESS names no cluster: a job starts its own on {hardware.num_cores()} core(s)")
    try:
        return Finding("Ray", f"RAY_ADDRESS={address}: its head answers at {reachable(address)}")
    except RaygenesisError as error:
        return Finding("Ray", f"RAY_ADDRESS={address}", "fault", str(error))


def _memory() -> Finding:
    there, whole = hardware.memory_gib(), hardware.whole_memory_bytes() / GIB
    found = f"{there:.1f} GiB" + (f" of the machine's {whole:.1f} (control group or Slurm)" if there < whole else "")
    if there >= LEAST_MEMORY_GIB:
        return Finding("memory", found)
    return Finding("memory", found, "warning", f"less than {LEAST_MEMORY_GIB} GiB: give the job or container more")


def _shared_memory() -> Finding:
    free = machine.shared_memory_bytes()
    found = f"{size(free)} free in {machine.SHARED_MEMORY}"
    if free >= LEAST_SHARED_GIB * GIB:
        return Finding("shared memory", found)
    remedy = "Ray keeps objects on disk instead, which is slower: give a container --shm-size=2g or more"
    return Finding("shared memory", found, "warning", remedy)


def _open_files() -> Finding:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    try:
        machine.raise_open_files()
    except RaygenesisError as error:
        return Finding("open files", str(hard), "fault", str(error))
    return Finding("open files", "no limit" if hard == resource.RLIM_INFINITY else f"up to {hard}")


def _temporary() -> Finding:
    try:
        folder = machine.ray_folder()
    except RaygenesisError as error:
        return Finding("Ray's files", str(machine.temporary_base()), "fault", str(error))
    free = shutil.disk_usage(folder.parent).free
    found = f"{folder}, {size(free)} free"
    if free >= LEAST_FREE_GIB * GIB:
        return Finding("Ray's files", found)
    remedy = f"less than {LEAST_FREE_GIB} GiB for objects that do not fit into memory: make room, or set RAY_TMPDIR"
    return Finding("Ray's files", found, "warning", remedy)


def _encoding() -> Finding:
    names = {sys.getfilesystemencoding(), locale.getpreferredencoding(False)}
    found = ", ".join(sorted(names))
    if all(name.lower().replace("-", "") == "utf8" for name in names):
        return Finding("encoding", found)
    return Finding("encoding", found, "warning", "names of files may not be readable: set PYTHONUTF8=1 or LANG=C.UTF-8")


def _workspace(location: str) -> Finding:
    from raygenesis.workspace.workspace import Workspace  # which needs packages that may be missing

    try:
        root = Workspace.open(location).root
    except RaygenesisError as error:
        return Finding("workspace", location, "fault", str(error))
    if not isinstance(root, Path):
        return Finding("workspace", f"{location} can be written")
    free = shutil.disk_usage(root).free
    return Finding("workspace", f"{location} can be written, {size(free)} free")
