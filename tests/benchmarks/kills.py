"""A long pretraining killed twice, compared step for step with one that is left alone.

    python -m tests.benchmarks.kills WORKSPACE [key.path=value]...

WORKSPACE holds a finished pattern store. The first kill takes the training worker, after a third of the steps; the
second the whole process group, all of Ray with it, after two thirds, and the same command is given again. Both runs go
on at the same time, each on half of the cores. Prints what differs and draws both curves into `WORKSPACE/kills.png`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import psutil
from matplotlib import pyplot as plt

from raygenesis.settings import load_settings
from raygenesis.training.metrics import read_metrics
from raygenesis.workspace.files import read_json
from raygenesis.workspace.workspace import Workspace
from tests.support.experiments import read_steps

COMPARED = ("loss", "gradient_norm", "learning_rate")


def main(location: str, overrides: list[str]) -> None:
    workspace = Workspace.existing(location)
    pretraining = load_settings("cpu-small", overrides).pretraining
    num_epochs = pretraining.num_classification_epochs + pretraining.num_joint_epochs
    begin = time.monotonic()
    undisturbed = _start(location, "undisturbed", overrides)
    killed = _start(location, "killed", overrides)
    _wait_for(workspace.run("killed"), num_epochs / 3, killed)
    _worker_of(killed).kill()
    print(f"{_minutes(begin)}: the worker is killed in epoch {_epochs(workspace.run('killed')):.2f}", flush=True)
    _wait_for(workspace.run("killed"), 2 * num_epochs / 3, killed)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    print(f"{_minutes(begin)}: all of Ray is killed in epoch {_epochs(workspace.run('killed')):.2f}", flush=True)
    killed = _start(location, "killed", overrides)
    for process in (killed, undisturbed):
        if process.wait():
            raise SystemExit(f"a run ended with exit code {process.returncode}")
        print(f"{_minutes(begin)}: a run has ended", flush=True)
    _compare(workspace)


def _start(location: str, name: str, overrides: list[str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "raygenesis", "pretrain", "--workspace", location, "--name", name, *overrides]
    cores = sorted(os.sched_getaffinity(0))[name == "killed" :: 2]
    with Path(location, f"{name}.log").open("ab") as log:
        return subprocess.Popen(
            command, start_new_session=True, stdout=log, stderr=log,
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )  # fmt: skip


def _worker_of(process: subprocess.Popen[bytes]) -> psutil.Process:
    (worker,) = [
        child for child in psutil.Process(process.pid).children(recursive=True)
        if "RayTrainWorker" in " ".join(child.cmdline())
    ]  # fmt: skip
    return worker


def _wait_for(folder: Path, epochs: float, process: subprocess.Popen[bytes]) -> None:
    while _epochs(folder) < epochs:
        if process.poll() is not None:
            raise SystemExit(f"the run in {folder} ended before it was killed")
        time.sleep(0.2)


def _epochs(folder: Path) -> float:
    return (read_json(folder / "progress.json") or {}).get("epochs", 0.0)


def _minutes(begin: float) -> str:
    return f"after {(time.monotonic() - begin) / 60:.1f} min"


def _compare(workspace: Workspace) -> None:
    folders = [workspace.run(name) for name in ("undisturbed", "killed")]
    whole, gone_on = (read_steps(folder) for folder in folders)
    print(f"{len(whole)} and {len(gone_on)} steps, {len(read_metrics(folders[0]))} epochs")
    for name in COMPARED:
        differences = [abs(one[name] - other[name]) for one, other in zip(whole, gone_on, strict=True)]
        print(f"largest difference of {name} in any step: {max(differences):g}")
    weights = [(folder / "encoder.safetensors").read_bytes() for folder in folders]
    print(f"the encoders are {'equal, byte for byte' if weights[0] == weights[1] else 'NOT equal'}")
    figure, axes = plt.subplots(figsize=(8, 4))
    styles = {"undisturbed": {"linewidth": 3, "alpha": 0.4}, "killed twice": {"linewidth": 0.8}}
    for (label, style), rows in zip(styles.items(), (whole, gone_on), strict=True):
        axes.plot([row["step"] for row in rows], [row["loss"] for row in rows], label=label, **style)
    axes.set(xlabel="step", ylabel="loss", yscale="log")
    axes.legend()
    figure.savefig(workspace.root / "kills.png", dpi=120, bbox_inches="tight")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
