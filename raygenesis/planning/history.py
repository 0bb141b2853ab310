"""What the stages of a workspace took, against what the shipped rates say that they take."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from raygenesis.errors import RaygenesisError
from raygenesis.planning import work
from raygenesis.planning.estimate import Factor, estimate
from raygenesis.planning.work import START_S, Scans, Work
from raygenesis.pretraining.pretrain import store_of
from raygenesis.settings import PriceSettings, Settings, merged, settings_beside, settings_from, taking
from raygenesis.text.amounts import MIB
from raygenesis.training.metrics import read_metrics
from raygenesis.workspace.files import Place, read_json
from raygenesis.workspace.hardware import Hardware
from raygenesis.workspace.workspace import Workspace

LEAST_S = 5.0  # of work, at the shipped rates, from which a rate is learnt: of less, starting is most
ENDLESS = 1e12  # MiB/s: a measured time holds what reading took


def scans_of(workspace: Workspace) -> Scans | None:
    """The archive's scans, of their mean size; None without an archive."""
    made = read_json(workspace.archive / "manifest.json")
    if made is None:
        return None
    number = made["counts"]["volumes"]
    files = made["source_bytes"]
    return Scans(number, made.get("voxel_bytes", files) / number / MIB, files / number / MIB)  # an earlier version's


def factors_of(workspace: Workspace, settings: Settings) -> dict[str, Factor]:
    """By stage, of what the workspace's last calls did.

    A stage that did next to nothing, or whose manifest does not say on what it ran, or is of another version, has none.
    """
    scans = scans_of(workspace)
    if scans is None:
        return {}
    factors = {}
    for stage, done in DONE.items():
        with suppress(RaygenesisError, KeyError, TypeError):
            factor = _factor(stage, done(workspace, settings, scans))
            if factor is not None:
                factors[stage] = factor
    if "pretrain" in factors:  # the same network
        factors |= dict.fromkeys(("sweep", "finetune"), replace(factors["pretrain"], stored=1.0))
    return factors


def as_made(workspace: Workspace, settings: Settings) -> Settings:
    """The settings, with what the workspace's artifacts were made with, but for prices and keys that were given."""
    folders: list[Place] = sorted((workspace.root / "runs").glob("[!.]*"))
    runs = [folder for folder in folders if (folder / "config.yaml").is_file()]
    run = min(runs, key=lambda folder: folder.name != "default", default=None)
    stages = (
        workspace.archive, workspace.autoencoder, workspace.embeddings, workspace.index, workspace.patterns,
        workspace.crops,
    )  # fmt: skip
    with suppress(RaygenesisError):  # of another version
        whole = settings_beside(run) if run else None
        trees = [whole.model_dump(mode="json", exclude={"prices"})] if whole else []
        made = (read_json(folder / "manifest.json") or {} for folder in stages)
        return taking(settings, merged(*trees, *(each.get("settings", {}) for each in made)))
    return settings


# The manifest of a finished stage, the work of its last call, and the seconds that took.
Did = tuple[Mapping[str, Any], Work, float]


def _factor(stage: str, did: Did | None) -> Factor | None:
    if did is None:
        return None
    made, done, seconds = did
    hardware = Hardware(**made["hardware"])
    variable = estimate(done, hardware, PriceSettings(), {}, ENDLESS).seconds - START_S[stage]
    if not hardware.num_cores or variable < LEAST_S or seconds <= START_S[stage]:
        return None
    stored = made["bytes"] / MIB / done.stored_mib if done.stored_mib else 1.0
    return Factor((seconds - START_S[stage]) / variable, stored, f"this workspace, {hardware.amount}")


def _ingested(workspace: Workspace, settings: Settings, scans: Scans) -> Did | None:
    made = read_json(workspace.archive / "manifest.json")
    if made is None:
        return None
    counts = made["counts"]
    taken_in = round(counts["volumes"] * (1 - counts["known"] / max(counts["scans"], 1)))
    did = work.ingest(replace(scans, number=taken_in))
    return made, replace(did, stored_mib=work.ingest(scans).stored_mib), made["seconds"]


def _learnt(workspace: Workspace, settings: Settings, scans: Scans) -> Did | None:
    made = read_json(workspace.autoencoder / "manifest.json")
    if made is None:
        return None
    seen = replace(scans, number=made["counts"]["training"] + made["counts"]["validation"])
    did = work.train_autoencoder(seen, _settings_then(settings, made), made["counts"]["epochs"])
    return made, did, max(made["seconds"], _epoch_seconds(workspace.autoencoder))


def _embedded(workspace: Workspace, settings: Settings, scans: Scans) -> Did | None:
    made = read_json(workspace.embeddings / "manifest.json")
    if made is None:
        return None
    did = work.embed(replace(scans, number=made["counts"].get("new", 0)), _settings_then(settings, made))
    return made, did, made["seconds"]


def _discovered(workspace: Workspace, settings: Settings, scans: Scans) -> Did | None:
    return _stored(workspace.patterns, settings, "discover")


def _cropped(workspace: Workspace, settings: Settings, scans: Scans) -> Did | None:
    return _stored(workspace.crops, settings, "crop")


def _stored(folder: Place, settings: Settings, stage: str) -> Did | None:
    made = read_json(folder / "manifest.json")
    if made is None:
        return None
    did = work.discover(_settings_then(settings, made), made["counts"]["patterns"], stage)
    return made, did, made["seconds"]


def _pretrained(workspace: Workspace, settings: Settings, scans: Scans) -> Did | None:
    newest = _newest_run(workspace, settings)
    if newest is None:
        return None
    made, store, folder = newest
    then = _settings_then(_settings_then(settings, store), made)
    counts = made["counts"]
    _, held_out = work.selected(then.pretraining, store["counts"])
    did = work.pretrain(then, counts["patterns"], held_out, counts["epochs"])
    return made, did, max(made["seconds"], _epoch_seconds(folder))


DONE = {
    "ingest": _ingested, "auto-encoder": _learnt, "embed": _embedded, "discover": _discovered, "crop": _cropped,
    "pretrain": _pretrained,
}  # fmt: skip


def _newest_run(workspace: Workspace, settings: Settings) -> tuple[Mapping[str, Any], Mapping[str, Any], Place] | None:
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


def _epoch_seconds(folder: Place) -> float:
    """Of all epochs: a manifest has the last call's seconds alone."""
    return sum(row.get("seconds") or 0.0 for row in read_metrics(folder))
