"""Limits of a container, of a parent group, of both versions, as the kernel's files say them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from raygenesis.workspace import control_groups, hardware

HUGE = "9223372036854771712"  # version 1 without a limit


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(control_groups, "MOUNTS", tmp_path / "cgroup")
    monkeypatch.setattr(control_groups, "OWN", tmp_path / "own")
    for name in (hardware.SLURM_CORES, hardware.SLURM_MIB):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def write(kernel: Path, own: str, **files: str) -> None:
    (kernel / "own").write_text(own + "\n")
    for name, text in files.items():
        path = kernel / "cgroup" / name.replace("__", "/").replace("_max", ".max")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")


def test_without_groups_there_are_no_limits(kernel: Path) -> None:
    assert control_groups.cpu_limit() is control_groups.memory_limit() is None
    assert hardware.num_cores() == len(os.sched_getaffinity(0)) and hardware.memory_gib() > 0.5


def test_the_least_of_all_ancestors_counts_in_version_2(kernel: Path) -> None:
    write(
        kernel, "0::/slurm/job_7/step_0", slurm__job_7__step_0__cpu_max="max 100000",
        slurm__job_7__cpu_max="250000 100000", slurm__cpu_max="400000 100000",
        slurm__job_7__memory_max=str(2**33), slurm__memory_max=str(2**32), memory_max="max",
    )  # fmt: skip
    assert control_groups.cpu_limit() == 2.5
    assert control_groups.memory_limit() == 2**32


def test_the_least_of_all_ancestors_counts_in_version_1(kernel: Path) -> None:
    """Both versions mounted side by side, as on many clusters: controllers lie in folders of their own."""
    write(kernel, "5:memory:/user/job\n3:cpu,cpuacct:/user/job\n0::/user.slice")
    for name, text in (
        ("memory/user/job/memory.limit_in_bytes", HUGE), ("memory/user/memory.limit_in_bytes", str(2**31)),
        ("memory/memory.limit_in_bytes", HUGE), ("cpu,cpuacct/user/job/cpu.cfs_quota_us", "-1"),
        ("cpu,cpuacct/user/job/cpu.cfs_period_us", "100000"), ("cpu,cpuacct/user/cpu.cfs_quota_us", "150000"),
        ("cpu,cpuacct/user/cpu.cfs_period_us", "50000"),
    ):  # fmt: skip
        path = kernel / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert control_groups.cpu_limit() == 3.0
    assert control_groups.memory_limit() == 2**31
    assert hardware.memory_gib() == 2.0


def test_a_container_that_sees_its_own_group_alone_has_its_limit(kernel: Path) -> None:
    write(kernel, "0::/docker/0123", cpu_max="50000 100000", memory_max=str(2**28))
    assert hardware.num_cores() == 1 and hardware.memory_gib() == 0.25


def test_what_slurm_has_given_counts(kernel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = hardware.memory_gib()
    monkeypatch.setenv(hardware.SLURM_CORES, "1")
    for given, expected in (("512", 0.5), ("0", whole), ("", whole), (str(2**30), whole)):
        monkeypatch.setenv(hardware.SLURM_MIB, given)
        assert hardware.num_cores() == 1 and hardware.memory_gib() == expected


def test_kills_for_memory_are_counted_in_both_versions(kernel: Path) -> None:
    assert control_groups.memory_kills() == 0
    write(kernel, "0::/job\n5:memory:/job", job__cpu_max="max 100000")
    (kernel / "cgroup" / "job" / "memory.events").write_text("low 0\nhigh 3\noom 2\noom_kill 2\noom_group_kill 0\n")
    assert control_groups.memory_kills() == 2
    control = kernel / "cgroup" / "memory" / "job" / "memory.oom_control"
    control.parent.mkdir(parents=True)
    control.write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 7\n")
    assert control_groups.memory_kills() == 7


def test_a_real_group_of_version_1_limits_a_process_in_a_group_within_it() -> None:
    parent = Path("/sys/fs/cgroup/memory") / f"raygenesis-test-{os.getpid()}"
    child = parent / "within"
    code = "from raygenesis.workspace import hardware; print(hardware.memory_gib())"
    enter = f"echo $$ > {child}/cgroup.procs && exec {sys.executable} -c '{code}'"
    try:
        child.mkdir(parents=True)
        (parent / "memory.limit_in_bytes").write_text(str(2**31))
        done = subprocess.run(["sh", "-c", enter], capture_output=True, text=True, check=True)
        assert float(done.stdout) == 2.0
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no control group of version 1 can be made here ({error})")
    finally:
        for group in (child, parent):
            if group.is_dir():
                group.rmdir()
