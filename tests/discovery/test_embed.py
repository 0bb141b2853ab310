"""Embed on a small archive that grows, with every kind of encoder; resumed to the same bytes."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from scipy import ndimage

from raygenesis.archive.catalogue import CATALOGUE, read_catalogue, split_by_subject
from raygenesis.archive.coarse import read_coarse
from raygenesis.discovery import encoders as module
from raygenesis.discovery import neighbours
from raygenesis.discovery.embed import Embedder, embed
from raygenesis.discovery.embeddings import Embeddings
from raygenesis.errors import SettingsError, WorkspaceError
from raygenesis.networks.architecture import Architecture
from raygenesis.networks.autoencoder import Autoencoder
from raygenesis.networks.network import PretextNetwork
from raygenesis.networks.principal_components import PrincipalComponents
from raygenesis.networks.weights.native import save_network
from raygenesis.networks.weights.scan_encoders import (
    AUTOENCODER_FILE,
    COMPONENTS_FILE,
    load_scan_encoder,
    save_scan_encoder,
)
from raygenesis.patterns.cells import decode, encode
from raygenesis.settings import (
    AutoencoderSettings,
    DiscoverySettings,
    EmbeddingSettings,
    IndexSettings,
    IntensitySettings,
    Scale,
    Settings,
    as_yaml,
    settings_from,
)
from raygenesis.training import precision
from raygenesis.training.fit import samples_from
from raygenesis.training.loop import run_epochs
from raygenesis.workspace.files import write_json
from raygenesis.workspace.manifest import IndexManifest
from raygenesis.workspace.manifest_files import Started, write_started
from raygenesis.workspace.workspace import Workspace
from tests.support.stores import finish_archive
from tests.support.synthetic import archived

SHAPE = (16, 16, 16)
FIRST, LATER = [f"{number:02d}" for number in range(0, 22, 2)], [f"{number:02d}" for number in range(1, 12, 2)]
DAMAGED = "06"


def settings(encoder: str | Path = "autoencoder", **chosen: object) -> Settings:
    discovery = DiscoverySettings(
        cube_shape=(8, 8, 8), num_neighbours=3, num_validation_neighbours=1, scales=(Scale(extent_mm=(8, 8, 8)),)
    )
    return Settings(
        autoencoder=AutoencoderSettings(input_shape=SHAPE, base_width=2, latent_size=6, num_epochs=1, batch_size=4),
        embedding=EmbeddingSettings(encoder=str(encoder), volumes_per_part=4),
        index=IndexSettings(method="hnsw", volumes_per_shard=8),
        discovery=discovery,
        **chosen,
    )


def build_index(workspace: Workspace, chosen: Settings) -> IndexManifest:
    return neighbours.build_index(workspace, chosen.index, chosen.discovery, chosen.seed)


def ingested(workspace: Workspace, names: list[str]) -> None:
    """The archive as `ingest` leaves it, with these volumes; those that are there stay."""
    there = pq.read_table(workspace.catalog).to_pylist() if workspace.catalog.is_file() else []
    rows = {row["volume_id"]: row for row in there}
    for name in names:
        blobs = ndimage.gaussian_filter(np.random.default_rng(int(name)).standard_normal((20, 22, 24)), 2)
        voxels = ((blobs - blobs.min()) / np.ptp(blobs)).astype(np.float32)
        rows[name] = archived(workspace.volumes, name, voxels, (1.0, 1.0, 1.0), coarse_size=32)
        if name == DAMAGED:
            for shard in (workspace.volumes / f"{name}.ome.zarr" / "0").glob("c.*"):
                shard.write_bytes(shard.read_bytes()[:40])
    table = pa.Table.from_pylist([rows[name] for name in sorted(rows)], CATALOGUE)
    pq.write_table(table, workspace.catalog)
    finish_archive(workspace, "-".join(sorted(rows)), len(rows))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An auto-encoder of somebody else."""
    torch.manual_seed(3)
    architecture = {"input_shape": list(SHAPE), "base_width": 2, "latent_size": 5}
    path = tmp_path_factory.mktemp("weights") / "theirs.safetensors"
    save_scan_encoder(path, "autoencoder", Autoencoder(**architecture).state_dict(), architecture)
    return path


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    made = Workspace.open(tmp_path_factory.mktemp("archive"))
    made.archive.mkdir()
    ingested(made, FIRST)
    return made


@pytest.fixture(scope="module")
def embedded(
    archive: Workspace, weights: Path, ray_cluster: None, tmp_path_factory: pytest.TempPathFactory
) -> Workspace:
    made = copy_of(archive, tmp_path_factory.mktemp("embedded"))
    embed(made, settings(weights))
    return made


def copy_of(workspace: Workspace, root: Path) -> Workspace:
    shutil.copytree(workspace.root, root, dirs_exist_ok=True)
    return Workspace(root)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.parquet"))}


def parts(folder: Path) -> dict[str, bytes]:
    return {name: content for name, content in contents(folder).items() if name.startswith("part-")}


def by_itself(workspace: Workspace, encoder: Path) -> dict[str, np.ndarray]:
    """What an encoder gives of each whole scan, one after the other, as the cells of the archive's source keep them."""
    model, found = load_scan_encoder(encoder, SHAPE), {}
    for row in read_catalogue(workspace.catalog):
        if row["volume_id"] != DAMAGED:
            scan = decode(encode(read_coarse(workspace.volumes, row, SHAPE, settings().intensity)), SHAPE)
            with torch.inference_mode():
                found[row["volume_id"]] = model.encode(torch.from_numpy(np.array(scan))[None, None])[0].numpy()
    return found


def check(folder: Path, expected: dict[str, np.ndarray]) -> None:
    table = Embeddings(folder)
    ids = table.ids().to_pylist()
    assert sorted(ids) == sorted(expected)
    for name, vector in zip(ids, table.take(np.arange(len(ids))), strict=True):
        np.testing.assert_allclose(vector, expected[name], rtol=1e-4, atol=1e-5)


# --- what embeds ----------------------------------------------------------------------------------


def test_an_encoder_of_ones_own_embeds_what_it_gives_by_itself(embedded, weights):
    check(embedded.embeddings, by_itself(embedded, weights))
    told = json.loads((embedded.embeddings / "manifest.json").read_text())
    assert told["counts"] == {"volumes": 10, "new": 11, "failures": 1, "parts": 3} and told["size"] == 5
    failures = pq.read_table(embedded.embeddings / "failures.parquet").to_pylist()
    assert [row["source"] for row in failures] == [f"{DAMAGED}.nii"] and "damaged" in failures[0]["reason"]
    assert not embedded.autoencoder.exists() and not embedded.pca.exists()


def test_principal_components_of_the_training_scans_embed(archive, ray_cluster, tmp_path):
    made = copy_of(archive, tmp_path)
    told = embed(made, settings("pca"))
    fitted = json.loads((made.pca / "manifest.json").read_text())
    training, validation = split_by_subject(read_catalogue(made.catalog), 0.2, 0)
    num_training = sum(row["volume_id"] != DAMAGED for row in training)
    assert fitted["counts"] == {
        "components": min(6, num_training - 1), "training": num_training,
        "validation": sum(row["volume_id"] != DAMAGED for row in validation),
    }  # fmt: skip
    assert told.size == fitted["counts"]["components"] and not made.autoencoder.exists()
    assert fitted["command"] == ["embed", "--encoder", "pca"]
    expected = by_itself(made, made.pca / COMPONENTS_FILE)
    check(made.embeddings, expected)
    learnt = np.stack([expected[row["volume_id"]] for row in training if row["volume_id"] != DAMAGED])
    np.testing.assert_allclose(learnt.mean(0), 0, atol=1e-4)  # of the training scans, and of no others
    assert np.abs(np.mean([expected[row["volume_id"]] for row in validation], 0)).max() > 0.05


@pytest.mark.slow
def test_the_auto_encoder_is_trained_where_it_is_to_embed_and_there_is_none(
    archive, ray_cluster, tmp_path, capsys, monkeypatch
):
    def fit(experiment, datasets, folder, resources):  # in this process, for Ray Train takes longest to begin
        kinds = [samples_from(datasets[kind], experiment) for kind in ("train", "validation")]
        return run_epochs(experiment, *kinds).state(), 1

    monkeypatch.setattr(module, "fit_with_ray", fit)
    made = copy_of(archive, tmp_path)
    told = embed(made, settings())
    trained = json.loads((made.autoencoder / "manifest.json").read_text())
    assert told.inputs == {"encoder": trained["fingerprint"]} and told.size == 6
    check(made.embeddings, by_itself(made, made.autoencoder / AUTOENCODER_FILE))
    ingested(made, LATER)  # the archive grows, and what embeds it stays
    before = (made.autoencoder / AUTOENCODER_FILE).read_bytes()
    capsys.readouterr()
    embed(made, settings())
    assert "auto-encoder: kept from " in capsys.readouterr().out
    assert (made.autoencoder / AUTOENCODER_FILE).read_bytes() == before
    check(made.embeddings, by_itself(made, made.autoencoder / AUTOENCODER_FILE))


def test_two_workers_train_the_auto_encoder_that_one_trains(archive, ray_cluster, tmp_path, capsys):
    found = []
    for num_workers in (1, 2):
        workspace, chosen = copy_of(archive, tmp_path / str(num_workers)), settings()
        shared = chosen.autoencoder.model_copy(update={"num_workers": num_workers, "precision": "fp32"})
        found.append(module.train_autoencoder(workspace, chosen.model_copy(update={"autoencoder": shared})).val_mse)
    assert found[0] == pytest.approx(found[1], rel=1e-4)
    capsys.readouterr()
    assert module.train_autoencoder(workspace, settings()).val_mse == found[1]  # how it is executed decides nothing
    assert "auto-encoder: nothing to do" in capsys.readouterr().out
    chosen = chosen.model_copy(update={"autoencoder": shared.model_copy(update={"num_workers": 1, "use_gpu": True})})
    shutil.rmtree(workspace.autoencoder)
    if not torch.cuda.is_available():
        with pytest.raises(SettingsError, match=r"autoencoder\.num_workers=1 with autoencoder\.use_gpu=true needs"):
            module.train_autoencoder(workspace, chosen)


def test_what_is_no_encoder_is_one_sentence_before_any_work(archive, weights, tmp_path):
    made = copy_of(archive, tmp_path / "workspace")
    (tmp_path / "notes.txt").write_text("no weights")
    for path, words in (
        (
            tmp_path / "notes.txt",
            r"embedding\.encoder: .*notes\.txt is not a safetensors file, .*, or `autoencoder`",
        ),
        (tmp_path / "nowhere", r"embedding\.encoder: .*nowhere/encoder\.safetensors does not exist"),
    ):
        with pytest.raises(SettingsError, match=words):
            embed(made, settings(path))
    torch.manual_seed(0)
    flat = {"input_shape": [16, 16], "base_width": 2, "latent_size": 5}
    save_scan_encoder(tmp_path / "flat", "autoencoder", Autoencoder(**flat).state_dict(), flat)
    with pytest.raises(SettingsError, match=r"flat takes 2D scans and discovery\.cube_shape asks for 3D"):
        embed(made, settings(tmp_path / "flat"))
    assert not made.embeddings.exists()


def test_a_run_s_encoder_is_given_images_as_it_was_pretrained(archive, ray_cluster, tmp_path):
    """Not as the preset of the day says, but as somebody says on the command line."""
    run = tmp_path / "run"
    run.mkdir()
    theirs = Settings(intensity=IntensitySettings(window=(0.2, 0.6)))
    (run / "config.yaml").write_text(as_yaml(theirs))
    architecture = Architecture(ndim=3, base_width=2)
    save_network(PretextNetwork(architecture), run, {})
    made, vectors = copy_of(archive, tmp_path / "workspace"), {}
    for name, chosen in {
        "file": settings(run / "encoder.safetensors"),
        "other": settings_from(settings(run).model_dump(), frozenset({"intensity.window"})),
    }.items():
        told = embed(made, chosen, tmp_path / name)
        vectors[name] = Embeddings(tmp_path / name).take(np.arange(10))
        assert told.settings["intensity"]["window"] == (None if name == "other" else [0.2, 0.6])
    assert not np.allclose(vectors["file"], vectors["other"])


# --- growing --------------------------------------------------------------------------------------


def test_an_archive_that_grows_embeds_the_new_volumes_only_and_the_index_grows(embedded, weights, tmp_path, capsys):
    made, chosen = copy_of(embedded, tmp_path), settings(weights)
    first_index = build_index(made, chosen)
    before, numbers = parts(made.embeddings), Embeddings(made.embeddings).ids().to_pylist()
    shards = {path.name: path.read_bytes() for path in made.index.glob("shard-*")}
    times = {name: (made.embeddings / name).stat().st_mtime_ns for name in before}
    ingested(made, LATER)
    told = embed(made, chosen)
    after = parts(made.embeddings)
    assert asdict(told.counts) == {"volumes": 16, "new": 6, "failures": 1, "parts": 5}
    assert {name: after[name] for name in before} == before and len(after) == len(before) + 2
    assert {name: (made.embeddings / name).stat().st_mtime_ns for name in before} == times
    assert Embeddings(made.embeddings).ids().to_pylist() == [*numbers, *LATER]
    check(made.embeddings, by_itself(made, weights))
    index = build_index(made, chosen)
    assert (first_index.counts.volumes, index.counts.volumes) == (10, 16)
    assert index.counts.indexed_before == 10 and index.fingerprint != first_index.fingerprint
    kept = {path.name: path.read_bytes() for path in made.index.glob("shard-*")}
    full = "shard-000000000-000000008"
    assert {name for name in shards if kept.get(name) == shards[name]} == {f"{full}.hnsw", f"{full}.json"}
    capsys.readouterr()
    assert embed(made, chosen) == told and build_index(made, chosen) == index
    assert capsys.readouterr().out.count("nothing to do") == 2
    # Made anew they come in another order: the index of the old one must not be taken for theirs.
    shutil.rmtree(made.embeddings)
    assert embed(made, chosen).fingerprint != told.fingerprint
    assert Embeddings(made.embeddings).ids().to_pylist() == sorted([*numbers, *LATER])
    assert build_index(made, chosen).counts.indexed_before == 0


def test_volumes_that_leave_the_archive_keep_their_numbers(embedded, weights, tmp_path):
    made = copy_of(embedded, tmp_path)
    before, numbers = parts(made.embeddings), Embeddings(made.embeddings).ids().to_pylist()
    table = pq.read_table(made.catalog)
    pq.write_table(table.filter(pa.compute.not_equal(table["volume_id"], FIRST[0])), made.catalog)
    finish_archive(made, "pruned", 10)
    told = embed(made, settings(weights))
    assert told.counts.volumes == 9 and told.counts.new == 0
    assert parts(made.embeddings) == before and Embeddings(made.embeddings).ids().to_pylist() == numbers


def test_a_volume_that_was_ingested_otherwise_is_embedded_anew_and_its_part_alone(embedded, weights, tmp_path, capsys):
    made, name = copy_of(embedded, tmp_path), FIRST[0]
    first_index, before = build_index(made, settings(weights)), parts(made.embeddings)
    shutil.rmtree(made.volumes / f"{name}.ome.zarr")
    voxels = np.random.default_rng(9).random((20, 22, 24), np.float32)
    other = archived(made.volumes, name, voxels, (1.0, 1.0, 1.0), coarse_size=32, voxel_fingerprint="other")
    rows = [other if row["volume_id"] == name else row for row in pq.read_table(made.catalog).to_pylist()]
    pq.write_table(pa.Table.from_pylist(rows, CATALOGUE), made.catalog)
    finish_archive(made, "otherwise", len(rows))
    with pytest.raises(WorkspaceError, match=r"of another state of .*: run `raygenesis embed`, which brings it up to"):
        build_index(made, settings(weights))
    told = embed(made, settings(weights))
    assert told.counts.new == 4 and "1 part made anew, damaged or of other voxels" in capsys.readouterr().out
    after = parts(made.embeddings)
    assert {key for key in before if after[key] != before[key]} == {"part-000000000.parquet"} and len(after) == 3
    check(made.embeddings, by_itself(made, weights))
    index = build_index(made, settings(weights))
    assert index.counts.indexed_before == 2 and index.fingerprint != first_index.fingerprint  # none of its shard


@pytest.mark.parametrize("content", [b"", b"PAR1 and no more"])
def test_a_damaged_part_is_made_again_by_itself(embedded, weights, tmp_path, content):
    made = copy_of(embedded, tmp_path)
    before = parts(made.embeddings)
    (made.embeddings / "part-000000004.parquet").write_bytes(content)
    assert embed(made, settings(weights)).counts.new == 4 and parts(made.embeddings) == before


def test_what_an_earlier_version_embedded_is_refused(embedded, weights, tmp_path):
    made = copy_of(embedded, tmp_path)
    told = json.loads((made.embeddings / "manifest.json").read_text())
    write_json(made.embeddings / "manifest.json", {key: value for key, value in told.items() if key != "format"})
    with pytest.raises(WorkspaceError, match="an earlier version, in format 1 where this one writes 2: remove that"):
        embed(made, settings(weights))


# --- again, after a kill, and elsewhere -----------------------------------------------------------


def killed(workspace: Workspace, *missing: str) -> None:
    """As a kill leaves it while some parts were not written yet."""
    told = json.loads((workspace.embeddings / "manifest.json").read_text())
    write_json(
        workspace.embeddings / "started.json", {"settings": told["settings"], "inputs": told["inputs"], "format": 2}
    )
    (workspace.embeddings / "manifest.json").unlink()
    for name in missing:
        (workspace.embeddings / name).unlink()
        (workspace.embeddings / f".{name}.abcd1234").write_bytes(b"half a part")


def test_after_a_kill_only_the_missing_parts_are_made_and_the_bytes_are_the_same(embedded, weights, tmp_path):
    made = copy_of(embedded, tmp_path)
    expected = contents(made.embeddings)
    killed(made, "part-000000000.parquet", "part-000000008.parquet")
    times = {path: path.stat().st_mtime_ns for path in made.embeddings.glob("part-*")}
    told = embed(made, settings(weights))
    assert contents(made.embeddings) == expected
    assert {path: path.stat().st_mtime_ns for path in times} == times and told.counts.new == 4 + 3
    whole = json.loads((embedded.embeddings / "manifest.json").read_text())
    assert told.fingerprint == whole["fingerprint"]


def test_volumes_that_come_before_it_is_resumed_get_parts_of_their_own(embedded, weights, tmp_path):
    made = copy_of(embedded, tmp_path)
    expected = parts(made.embeddings)
    killed(made, "part-000000004.parquet")
    ingested(made, LATER)
    embed(made, settings(weights))
    now = parts(made.embeddings)
    assert {name: now[name] for name in expected} == expected
    check(made.embeddings, by_itself(made, weights))


def test_parts_larger_than_rays_blocks_are_whole_parts(archive, weights, ray_cluster, tmp_path, monkeypatch):
    """Ray cuts large blocks in two; a part is the unit of resuming and must not be."""
    import ray.data

    monkeypatch.setattr(ray.data.DataContext.get_current(), "target_max_block_size", 4096)
    made = copy_of(archive, tmp_path)
    told = embed(made, settings(weights))
    assert [pq.read_metadata(path).num_rows for path in sorted(made.embeddings.glob("part-*"))] == [4, 4, 3]
    assert told.counts.parts == 3


def test_other_settings_or_another_encoder_are_refused(embedded, weights, tmp_path):
    made = copy_of(embedded, tmp_path)
    larger = EmbeddingSettings(encoder=str(weights), volumes_per_part=5)
    with pytest.raises(WorkspaceError, match=r"embedding\.volumes_per_part was 4 and is now 5"):
        embed(made, settings(weights).model_copy(update={"embedding": larger}))
    architecture = {"input_shape": list(SHAPE), "base_width": 2, "latent_size": 5}
    save_scan_encoder(tmp_path / "other", "autoencoder", Autoencoder(**architecture).state_dict(), architecture)
    with pytest.raises(WorkspaceError, match="was not made from the present encoder"):
        embed(made, settings(tmp_path / "other"))


def test_another_folder_gets_the_embeddings_and_the_workspaces_own_stay(embedded, weights, tmp_path):
    made = copy_of(embedded, tmp_path / "workspace")
    before = {path: path.stat().st_mtime_ns for path in made.root.rglob("*") if path.is_file()}
    architecture = {"input_shape": list(SHAPE), "base_width": 2, "latent_size": 3}
    torch.manual_seed(8)
    save_scan_encoder(tmp_path / "other", "autoencoder", Autoencoder(**architecture).state_dict(), architecture)
    told = embed(made, settings(tmp_path / "other"), output=tmp_path / "elsewhere")
    assert told.size == 3
    check(tmp_path / "elsewhere", by_itself(made, tmp_path / "other"))
    assert {path: path.stat().st_mtime_ns for path in made.root.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("kind", ["autoencoder", "pca", "run"])
def test_embedding_waits_for_no_device_and_leaves_nothing_on_the_cpu(kind: str, weights: Path, tmp_path: Path) -> None:
    """On torch's `meta` device, where asking for a value raises."""
    path, scans = weights, [encode(np.zeros(SHAPE, np.float32)), None] * 10
    if kind == "pca":
        path, model = tmp_path / "pca.safetensors", PrincipalComponents(SHAPE, 5)
        save_scan_encoder(path, "pca", model.state_dict(), {"input_shape": list(SHAPE), "latent_size": 5})
    elif kind == "run":
        save_network(PretextNetwork(Architecture(base_width=2, norm="batch-statistics")), path := tmp_path, {})
    vectors = Embedder(path, kind, SHAPE, "meta").encode(scans)
    assert vectors.device.type == "meta" and vectors.shape == (20, 32 if kind == "run" else 5)


def test_an_auto_encoder_of_a_version_without_precisions_counts_as_made_in_fp32(
    archive: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "fastest_precision", lambda device: "bf16")
    made = copy_of(archive, tmp_path)
    new, resolved = module._autoencoder_stage(made, settings())
    assert resolved.autoencoder.precision == new.settings["autoencoder"]["precision"] == "bf16"
    before = {key: value for key, value in new.settings["autoencoder"].items() if key != "precision"}
    made.autoencoder.mkdir()
    write_started(made.autoencoder, Started(settings={**new.settings, "autoencoder": before}, inputs=dict(new.inputs)))
    for asked, expected in (("auto", "fp32"), ("fp32", "fp32"), ("bf16", "bf16")):
        chosen = settings()
        chosen = chosen.model_copy(update={"autoencoder": chosen.autoencoder.model_copy(update={"precision": asked})})
        stage, resolved = module._autoencoder_stage(made, chosen)
        assert resolved.autoencoder.precision == expected
        if asked == "bf16":
            with pytest.raises(WorkspaceError, match=r"autoencoder\.precision was None and is now 'bf16'"):
                stage.finished()
        else:
            assert stage.finished() is None and stage.settings["autoencoder"] == before
