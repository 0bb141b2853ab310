"""The page of formats, followed by a reader that is none of ours."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numcodecs
import numpy as np
import pyarrow.parquet as pq
import xxhash
import yaml
import zarr
from safetensors import safe_open

import raygenesis
from tests.support.main_job import MainJob

DOCS = Path(__file__).resolve().parents[2] / "docs"
FORMATS = (DOCS / "formats.md").read_text()


def manifest(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text())


def test_fingerprints_are_of_settings_and_inputs(main_job: MainJob) -> None:
    for name, files in (("patterns", "part-*.json"), ("runs/default", "*.safetensors")):
        made = manifest(main_job.workspace / name)
        paths = sorted((main_job.workspace / name).glob(files))
        known = [[path.name, hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()] for path in paths]
        assert known
        tree = {"settings": made["settings"], "inputs": made["inputs"], "content": [None, known]}
        tree |= {"format": made["format"]} if made.get("format", 1) > 1 else {}
        digest = hashlib.blake2b(json.dumps(tree, sort_keys=True).encode(), digest_size=8)
        assert digest.hexdigest() == made["fingerprint"]
    patterns, run = (manifest(main_job.workspace / name) for name in ("patterns", "runs/default"))
    assert run["inputs"] == {"patterns": patterns["fingerprint"]}


def test_a_pattern_is_read_by_its_description_alone(main_job: MainJob) -> None:
    folder = main_job.workspace / "patterns"
    made = manifest(folder)
    parts = sorted(folder.glob("part-*.parquet"))
    for path, listed in zip(parts, made["parts"], strict=True):
        assert (path.stat().st_size, xxhash.xxh3_64_hexdigest(path.read_bytes())) == (listed["bytes"], listed["xxh3"])
    rows = [row for path in parts for row in pq.read_table(path).to_pylist()]
    ours = raygenesis.PatternDataset(main_job.workspace, split="training")
    cubes = {ours[number]["pattern_id"]: ours[number]["cube"].numpy() for number in range(len(ours))}
    training = [row for row in rows if row["split"] == "training"]
    assert {row["pattern_id"] for row in training} == cubes.keys()
    for row in training:
        steps = np.frombuffer(numcodecs.Blosc().decode(row["cube"]), "<u2").reshape(made["cube_shape"])
        np.testing.assert_allclose(np.squeeze(cubes[row["pattern_id"]]), steps / made["cube_steps"], atol=1e-6)
        assert row["label"] == row["reference"] * made["counts"]["coordinates"] + row["coordinate"]


def test_a_volumes_values_are_what_a_pattern_shows(main_job: MainJob) -> None:
    """The mean of a box of voxels, scaled as described, is about the mean of its cube."""
    row = next(
        row for path in sorted((main_job.workspace / "patterns").glob("part-*.parquet"))
        for row in pq.read_table(path).to_pylist() if row["rank"] == 0
    )  # fmt: skip
    scan = next(
        scan for scan in pq.read_table(main_job.workspace / "archive" / "catalog.parquet").to_pylist()
        if scan["volume_id"] == row["volume_id"]
    )  # fmt: skip
    voxels = zarr.open_group(main_job.workspace / "archive" / "volumes" / f"{row['volume_id']}.ome.zarr", mode="r")["0"]
    box = tuple(
        slice(round(begin), round(begin + extent))
        for begin, extent in zip(row["origin_voxels"], row["extent_voxels"], strict=True)
    )
    a, b = scan["low"][0], scan["high"][0]
    values = np.clip((voxels[box].astype(float) - a) / (b - a), 0, 1)
    made = manifest(main_job.workspace / "patterns")
    cube = np.frombuffer(numcodecs.Blosc().decode(row["cube"]), "<u2") / made["cube_steps"]
    assert abs(values.mean() - cube.mean()) < 0.01


def test_embeddings_and_weights(main_job: MainJob) -> None:
    embeddings = pq.read_table(main_job.workspace / "embeddings" / "part-000000000.parquet")
    assert embeddings.schema.field("embedding").type.list_size == manifest(main_job.workspace / "embeddings")["size"]
    listed = pq.read_table(main_job.workspace / "embeddings" / "listing.parquet")["volume_id"].to_pylist()
    assert listed == embeddings["volume_id"].to_pylist()
    run = main_job.workspace / "runs" / "default"
    with safe_open(run / "encoder.safetensors", "pt") as weights:
        described = json.loads(weights.metadata()["raygenesis"])
        assert described["architecture"] == manifest(run)["architecture"]
        assert {name.partition(".")[0] for name in weights.keys()} == {"encoder", "decoder", "head"}  # noqa: SIM118
    assert yaml.safe_load((run / "config.yaml").read_text())["pretraining"]["base_width"] == 2


def test_every_file_that_a_run_leaves_is_described(main_job: MainJob) -> None:
    for path in main_job.workspace.rglob("*"):
        relative = path.relative_to(main_job.workspace)
        if path.is_dir() or relative.parts[0] in ("report",) or any(part.startswith(".") for part in relative.parts):
            continue
        if ".ome.zarr" in str(relative) or relative.parts[2:3] == ("tensorboard",) or relative.parts[1:2] == ("jobs",):
            continue
        stem = path.name.partition("-")[0] if relative.parts[0] != "archive" else path.name
        assert stem in FORMATS, f"{relative} is not in docs/formats.md"


def test_every_private_file_is_on_the_page_of_privacy(main_job: MainJob) -> None:
    page = (DOCS / "privacy.md").read_text()
    named = {path.name for path in (main_job.workspace / "private").iterdir()}
    assert {"key", "sources.parquet", "headers.parquet", "scans-folder", "jobs"} <= named
    assert all(f"| `{name}" in page for name in named)
