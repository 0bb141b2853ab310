"""What the control groups of this process allow it: the least of all ancestors', of versions 1 and 2."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

MOUNTS, OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
UNIFIED = "unified"  # where version 2 is mounted beside version 1


def cpu_limit() -> float | None:
    """Cores' worth of time that this process may take; None without a limit."""
    limits = []
    for folder in _folders("cpu"):
        quota, _, period = _read(folder / "cpu.max").partition(" ")
        if not quota:
            quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit() and int(period):
            limits.append(int(quota) / int(period))
    return min(limits, default=None)


def memory_limit() -> int | None:
    """Bytes that this process and its children may hold; None without a limit. Version 1 writes a huge number then."""
    values = [
        value for folder in _folders("memory") for name in ("memory.max", "memory.limit_in_bytes")
        if (value := _read(folder / name)).isdigit()
    ]  # fmt: skip
    return min((int(value) for value in values), default=None)


def memory_kills() -> int:
    """How many processes of this one's own group the system has killed for want of memory so far."""
    counts = [0]
    for branch in _branches("memory"):
        own = next((folder for folder in branch if folder.is_dir()), branch[-1])  # those above count others' too
        for name in ("memory.events", "memory.oom_control"):
            words = dict(line.split(" ", 1) for line in _read(own / name).splitlines() if " " in line)
            if (count := words.get("oom_kill", "")).isdigit():
                counts.append(int(count))
    return max(counts)


def _folders(controller: str) -> Iterator[Path]:
    """The groups of a controller that this process is in."""
    return itertools.chain.from_iterable(_branches(controller))


def _branches(controller: str) -> Iterator[list[Path]]:
    """The same of each place where the controller is mounted, each group before the one that it lies in."""
    for line in _read(OWN).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        for name in dict.fromkeys((controllers, controller) if controllers else ("", UNIFIED)):
            mount = MOUNTS / name
            # In a container the path may be that of the machine, of which only the end is mounted.
            group = mount / path.lstrip("/")
            yield [folder for folder in (group, *group.parents) if folder.is_relative_to(mount)]


def _read(path: Path) -> str:
    """What a file of the kernel says; empty where it is not there."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""
