"""What the stages of a workspace took, against what the shipped rates say that they take."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from raygenesis.archive.catalogue import read_columns, voxel_bytes
from raygenesis.config import PriceSettings, Settings
from raygenesis.machine import Hardware
from raygenesis.planning import work
from raygenesis.planning.estimate import Factor, estimate
from raygenesis.planning.work import MIB, START_S, Scans, Work
from raygenesis.pretraining.pretrain import store_of
from raygenesis.settings import settings_from
from raygenesis.training.metrics import read_metrics
from raygenesis.workspace import Workspace, manifest_of, read_json

MOST_SAMPLED = 1000  # scans
ENDLESS = 1e12  # MiB/s: a measured time holds what reading took


def scans_of(workspace: Workspace) -> Scans | None:
    """The archive's scans, of a mean size that an even sample has; None without one."""
    made = read_json(workspace.archive / "manifest.json")
    if made is None:
        return None
    table = read_columns(workspace.catalog, ["shape", "num_channels", "dtype", "source_bytes"])
    sample = table.take(list(range(0, table.num_rows, math.ceil(table.num_rows / MOST_SAMPLED)))).to_pylist()
    sizes = [sum(map(of, sample)) / len(sample) / MIB for of in (voxel_bytes, lambda row: row["source_bytes"])]
    return Scans(table.num_rows, *sizes)


def factors_of(workspace: Workspace, settings: Settings) -> dict[str, Factor]:
    """By stage, of what the workspace's last calls did. A stage that did next to nothing, or whose manifest does not
    say on what it ran, has none."""
    scans = scans_of(workspace)
    if scans is None:
        return {}
    factors = {}
    for stage, (made, did, seconds) in _done(workspace, settings, scans).items():
        there = made.get("hardware")
        if there is None or seconds <= START_S[stage]:
            continue
        hardware = Hardware(**there)
        expected = estimate(did, hardware, PriceSettings(), {}, ENDLESS)
        variable = expected.seconds - START_S[stage]
        if variable <= 0:
            continue
        stored = made["bytes"] / MIB / did.stored_mib if did.stored_mib else 1.0
        seen = f"{hardware.num_cores} cores" + (f", {hardware.num_gpus} GPUs" if hardware.num_gpus else "")
        factors[stage] = Factor((seconds - START_S[stage]) / variable, stored, f"this workspace, {seen}")
    if "pretrain" in factors:  # the same network
        factors |= dict.fromkeys(("sweep", "finetune"), replace(factors["pretrain"], stored=1.0))
    return factors


def _done(
    workspace: Workspace, settings: Settings, scans: Scans
) -> dict[str, tuple[Mapping[str, Any], Work, float]]:
    """Of each finished stage its manifest, the work of its last call, and the seconds that took."""
    done: dict[str, tuple[Mapping[str, Any], Work, float]] = {}
    archive = manifest_of(workspace.archive, "ingest")
    counts = archive["counts"]
    taken_in = round(counts["volumes"] * (1 - counts["known"] / max(counts["scans"], 1)))
    done["ingest"] = archive, replace(
        work.ingest(replace(scans, number=taken_in)), stored_mib=work.ingest(scans).stored_mib
    ), archive["seconds"]  # fmt: skip
    made: Mapping[str, Any] | None
    if (made := read_json(workspace.autoencoder / "manifest.json")) is not None:
        then = _settings_then(settings, made)
        seen = replace(scans, number=made["counts"]["training"] + made["counts"]["validation"])
        seconds = max(made["seconds"], _epoch_seconds(workspace.autoencoder))
        done["auto-encoder"] = made, work.train_autoencoder(seen, then, made["counts"]["epochs"]), seconds
    if (made := read_json(workspace.embeddings / "manifest.json")) is not None:
        then = _settings_then(settings, made)
        done["embed"] = made, work.embed(replace(scans, number=made["counts"].get("new", 0)), then), made["seconds"]
    for stage, folder in (("discover", workspace.patterns), ("crop", workspace.crops)):
        if (made := read_json(folder / "manifest.json")) is not None:
            then = _settings_then(settings, made)
            done[stage] = made, work.discover(then, made["counts"]["patterns"], stage), made["seconds"]
    newest = _newest_run(workspace, settings)
    if newest is not None:
        made, store, folder = newest
        then = _settings_then(_settings_then(settings, store), made)
        learnt = made["counts"]["patterns"]
        held_out = store["counts"].get("validation", 0)
        seconds = max(made["seconds"], _epoch_seconds(folder))
        done["pretrain"] = made, work.pretrain(then, learnt, held_out, made["counts"]["epochs"]), seconds
    return done


def _newest_run(workspace: Workspace, settings: Settings) -> tuple[Mapping[str, Any], Mapping[str, Any], Any] | None:
    """The run that ended last of those of the settings' pretext task: manifest, its store's manifest, folder."""
    store = read_json(store_of(workspace, settings) / "manifest.json")
    wanted = settings.pretraining.pretext
    found = [(read_json(folder / "manifest.json"), folder) for folder in (workspace.root / "runs").glob("[!.]*")]
    runs = [(made, folder) for made, folder in found if made is not None and _pretext(made) == wanted]
    if store is None or not runs:
        return None
    made, folder = max(runs, key=lambda run: run[0]["finished"])
    return made, store, folder


def _pretext(made: Mapping[str, Any]) -> str:
    return made["settings"]["pretraining"]["pretext"]


def _settings_then(settings: Settings, made: Mapping[str, Any]) -> Settings:
    """The settings, with those that an artifact was made with."""
    tree = settings.model_dump(mode="json")
    for section, values in made["settings"].items():
        if isinstance(values, dict) and isinstance(tree.get(section), dict):
            tree[section] |= values
    return settings_from(tree)


def _epoch_seconds(folder: Any) -> float:
    """Of all epochs: a manifest has the last call's seconds alone."""
    return sum(row.get("seconds") or 0.0 for row in read_metrics(folder))
