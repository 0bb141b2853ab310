"""How far `raygenesis plan` is from what the stages then take.

    python -m tests.benchmarks.estimates SCANS [NUM_SCANS ...] [KEY=VALUE ...]

Runs the main job on so many of the scans (48 and 125 by default) and prints, stage by stage, the seconds that were
estimated at the shipped rates, those estimated at the rates of the first of the runs, and those that were measured.
"""

from __future__ import annotations

import itertools
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from raygenesis.archive.intake.survey import survey
from raygenesis.archive.work import archive_size
from raygenesis.planning.plan import plan
from raygenesis.settings import Settings, load_settings
from raygenesis.workspace import hardware
from raygenesis.workspace.artifacts import ARCHIVE, AUTOENCODER, EMBEDDINGS, NEIGHBOURS, PATTERNS, RUNS
from raygenesis.workspace.workspace import Workspace

STAGES = {"auto-encoder": AUTOENCODER}  # which is no verb of its own
STAGES |= {artifact.verb: artifact for artifact in (ARCHIVE, EMBEDDINGS, NEIGHBOURS, PATTERNS, RUNS)}


def seconds_of(workspace: Workspace) -> dict[str, float]:
    """What the stages took, by their manifests."""
    folders = {stage: workspace.folder(made, "default" if made.is_named else None) for stage, made in STAGES.items()}
    return {stage: STAGES[stage].require(folder).seconds for stage, folder in folders.items()}


def run(scans: Path, number: int, root: Path, overrides: list[str]) -> Workspace:
    """The main job on the first so many scans."""
    some = root / f"scans-{number}"
    some.mkdir()
    for scan in itertools.islice(survey(scans).scans, number):
        for file in scan.files:
            shutil.copy(scans / file.path, some)
    workspace = root / f"workspace-{number}"
    command = [sys.executable, "-m", "raygenesis", "run", "--scans", str(some), "--workspace", str(workspace)]
    subprocess.run([*command, *overrides], check=True, stdout=subprocess.DEVNULL)
    return Workspace.existing(workspace)


def estimated(workspace: Workspace, settings: Settings, rates: Workspace | None) -> dict[str, float]:
    """Seconds of each stage for the scans of a workspace, at the shipped rates or at those of `rates`."""
    scans = archive_size(ARCHIVE.require(workspace.archive))
    nodes = hardware.available()
    found = plan(scans.num_scans, nodes, settings, rates, None if rates else scans.voxel_mib)
    return {one.work.stage: one.seconds for one in found.estimates}


def main(scans: Path, numbers: list[int], overrides: list[str]) -> None:
    settings = load_settings("cpu-small", overrides)
    with tempfile.TemporaryDirectory() as root:
        workspaces = [run(scans, number, Path(root), overrides) for number in numbers]
        rows = []
        for number, workspace in zip(numbers, workspaces, strict=True):
            measured = seconds_of(workspace)
            shipped = estimated(workspace, settings, None)
            learnt = estimated(workspace, settings, workspaces[0])
            for stage in measured:
                rows.append((number, stage, shipped[stage], learnt[stage], measured[stage]))
            rows.append(
                (number, "all", *(sum(figures[stage] for stage in measured) for figures in (shipped, learnt, measured)))
            )
    print(f"\n| scans | stage | shipped rates, s | rates of {numbers[0]} scans, s | measured, s | ratios |")
    print("| --- | --- | --- | --- | --- | --- |")
    for number, stage, *figures in rows:
        ratios = " and ".join(f"{figure / figures[-1]:.2f}" for figure in figures[:-1])
        print(f"| {number} | {stage} | {' | '.join(f'{figure:.1f}' for figure in figures)} | {ratios} |")


if __name__ == "__main__":
    given = sys.argv[2:]
    main(
        Path(sys.argv[1]),
        [int(one) for one in given if one.isdigit()] or [48, 125],
        [one for one in given if "=" in one],
    )
