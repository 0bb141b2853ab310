"""The stage of neighbours as a whole, on Ray, and what it refuses."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import ndimage

from raygenesis.archive.catalogue import CATALOGUE
from raygenesis.discovery.exact import SearchError
from raygenesis.discovery.find_neighbours import find_neighbours
from raygenesis.discovery.scan_table import read_scans
from raygenesis.errors import SettingsError, WorkspaceError
from raygenesis.report.nearest import show_nearest
from raygenesis.settings import DiscoverySettings, IndexSettings, Settings
from raygenesis.workspace.artifacts import INDEX
from raygenesis.workspace.workspace import Workspace
from tests.support.patients import embedded
from tests.support.stores import change_manifest, finish_archive, finish_embeddings
from tests.support.synthetic import archived

NUM, COPY, WRONG = 30, 28, 29  # the last but one is a copy of scan 3, the last is noise far from all


def settings(method: str = "exact", k: int = 8) -> Settings:
    discovery = DiscoverySettings(num_neighbours=4, num_validation_neighbours=1)
    return Settings(index=IndexSettings(method=method, num_neighbours=k, volumes_per_shard=12), discovery=discovery)


def scan(number: int) -> np.ndarray:
    """Scans of one kind have much in common; the last has nothing."""
    shape = (20, 24, 22)

    def blobs(seed: int, width: float) -> np.ndarray:
        return ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(shape), width) * width**1.5

    if number == WRONG:
        return blobs(999, 1).astype(np.float32)
    own = 3 if number == COPY else number
    voxels = blobs(100 + (own >= NUM // 2), 1.5) + 0.5 * blobs(own, 1.5)
    return (voxels + (number == COPY) * 0.01 * blobs(500, 0.5)).astype(np.float32)


def vectors() -> np.ndarray:
    generator = np.random.default_rng(0)
    values = generator.standard_normal((NUM, 6)) + 20 * (np.arange(NUM) >= NUM // 2)[:, None]
    values[COPY] = values[3] + 0.3
    values[WRONG] = [80, -80, 80, 0, 0, 0]
    return values.astype(np.float32)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two kinds of scans, their volumes and catalogue."""
    workspace = Workspace.open(tmp_path_factory.mktemp("archive"))
    rows = []
    for number in range(NUM):
        voxels = scan(number)
        low, high = np.percentile(voxels, [0.5, 99.5]).tolist()
        facts = {
            "voxels": voxels,
            "volume_id": f"{number:04d}",
            "subject_id": f"s{number}",
            "low": [low],
            "high": [high],
        }
        rows.append(archived(workspace.volumes, spacing_mm=(2.0, 2.0, 2.0), coarse_size=32, **facts))
    pq.write_table(pa.Table.from_pylist(rows, CATALOGUE), workspace.catalog)
    finish_archive(workspace, "made up", NUM)
    return workspace.archive


def workspace_of(
    root: Path, archive: Path, values: np.ndarray, ids: list[str] | None = None, encoder: str = "given"
) -> Workspace:
    workspace = Workspace.open(root)
    if not workspace.archive.exists():
        workspace.archive.symlink_to(archive)
    ids = [f"{number:04d}" for number in range(len(values))] if ids is None else ids
    embedded(workspace.embeddings, ids, values)
    finish_embeddings(workspace, f"{len(ids)} {encoder}", len(ids), encoder)
    return workspace


def with_own_catalogue(root: Path, archive: Path) -> Workspace:
    """An archive of the same volumes, whose catalogue and manifest may be changed."""
    workspace = Workspace.open(root)
    workspace.archive.mkdir()
    shutil.copy(archive / "catalog.parquet", workspace.catalog)
    (workspace.archive / "volumes").symlink_to(archive / "volumes")
    finish_archive(workspace, "whole", NUM)
    return workspace


@pytest.mark.parametrize("method", ["exact", "hnsw"])
def test_copies_outliers_and_groups_are_found(ray_cluster, archive, tmp_path, method, capsys):
    workspace = workspace_of(tmp_path, archive, vectors())
    manifest = find_neighbours(workspace, settings(method))
    assert manifest.method == method and manifest.recall == 1
    assert (manifest.counts.duplicates, manifest.counts.outliers, manifest.groups) == (1, 1, (16, 13))
    rows = {row["volume_id"]: row for row in read_scans(workspace.neighbours).to_pylist()}
    copy, wrong = rows[f"{COPY:04d}"], rows[f"{WRONG:04d}"]
    assert copy["duplicate_of"] == "0003" and copy["likeness"] > 0.985 and copy["group"] == rows["0003"]["group"] == 0
    assert wrong["is_outlier"] and wrong["group"] == -1 and wrong["sparsity"] > 1.25
    assert {rows[f"{n:04d}"]["group"] for n in range(15)} == {0} and {
        rows[f"{n:04d}"]["group"] for n in range(15, 28)
    } == {1}
    said = capsys.readouterr().out
    assert "2 groups (16, 13), 1 duplicates, 1 outliers" in said
    before = {path: path.stat().st_mtime_ns for path in workspace.neighbours.iterdir()}
    assert find_neighbours(workspace, settings(method)) == manifest
    assert "neighbours: nothing to do" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in workspace.neighbours.iterdir()} == before


def test_a_grown_archive_has_the_table_of_one_made_at_once(ray_cluster, archive, tmp_path):
    grown = workspace_of(tmp_path / "grown", archive, vectors()[:17])
    assert find_neighbours(grown, settings()).counts.added == 17
    workspace_of(tmp_path / "grown", archive, vectors())
    assert find_neighbours(grown, settings()).counts.added == 13
    at_once = workspace_of(tmp_path / "at-once", archive, vectors())
    find_neighbours(at_once, settings())
    for name in ("part-000000000.parquet", "scans.parquet"):
        assert (grown.neighbours / name).read_bytes() == (at_once.neighbours / name).read_bytes()


def with_fingerprints(workspace: Workspace, **others: str) -> None:
    """Have the embeddings be of these volumes, each known by a fingerprint."""
    for path in workspace.embeddings.glob("part-*.parquet"):
        table = pq.read_table(path)
        fingerprints = [others.get(f"of_{name}", "usual") for name in table["volume_id"].to_pylist()]
        pq.write_table(table.append_column("fingerprint", pa.array(fingerprints)), path)


def pairs_compared(workspace: Workspace) -> list[tuple[str, str]]:
    parts = [pq.read_table(path) for path in sorted((workspace.neighbours / "compared").iterdir())]
    return [pair for part in parts for pair in zip(*(part[name].to_pylist() for name in ("one", "other")), strict=True)]


def test_pairs_are_compared_again_only_where_a_volume_is_another(ray_cluster, archive, tmp_path, capsys):
    """Whatever settings the archive has by now: the fingerprints tell whether a volume is what it was."""
    workspace = with_own_catalogue(tmp_path, archive)
    with_fingerprints(workspace_of(tmp_path, archive, vectors()[:17]))
    find_neighbours(workspace, settings())
    first = pairs_compared(workspace)
    with_fingerprints(workspace_of(tmp_path, archive, vectors()))
    find_neighbours(workspace, settings())
    pairs = pairs_compared(workspace)
    assert pairs[: len(first)] == first and len(set(pairs)) > len(set(first))
    workspace.neighbours.joinpath("manifest.json").unlink()
    capsys.readouterr()
    find_neighbours(workspace, settings())
    assert "pairs/s" not in capsys.readouterr().out
    workspace.neighbours.joinpath("manifest.json").unlink()
    change_manifest(workspace.archive, lambda tree: tree["settings"].update(archive={"spacing_mm": [2.0, 2.0, 2.0]}))
    find_neighbours(workspace, settings())
    assert "pairs/s" not in capsys.readouterr().out and pairs_compared(workspace) == pairs
    workspace.neighbours.joinpath("manifest.json").unlink()
    with_fingerprints(workspace_of(tmp_path, archive, vectors()), of_0003="other")
    find_neighbours(workspace, settings())
    added = pairs_compared(workspace)[len(pairs) :]
    assert added and all("0003/other" in pair for pair in added)


def test_rows_that_have_lost_too_many_are_searched_anew(ray_cluster, archive, tmp_path, capsys):
    workspace = workspace_of(tmp_path / "grown", archive, vectors()[:17])
    find_neighbours(workspace, settings())
    path = workspace.neighbours / "part-000000000.parquet"
    table = pq.read_table(path)
    cells = [names[:2] for names in table["neighbours"].to_pylist()], [d[:2] for d in table["distances"].to_pylist()]
    columns = [pa.array(cell, table.schema.field(1 + n).type) for n, cell in enumerate(cells)]
    pq.write_table(pa.table([table["volume_id"], *columns], schema=table.schema), path)
    workspace_of(tmp_path / "grown", archive, vectors())
    manifest = find_neighbours(workspace, settings())
    assert (manifest.recall, manifest.counts.added, manifest.counts.neighbours) == (1, 13, NUM * 8)
    assert "of rows that have grown, is too low: all scans are searched again" in capsys.readouterr().out


def test_scans_that_are_gone_from_the_archive_are_not_in_the_table(ray_cluster, archive, tmp_path):
    """Their embeddings stay, with their numbers."""
    ids = [f"{number:04d}" for number in range(14)] + ["gone"]
    workspace = workspace_of(tmp_path, archive, vectors()[:15], ids)
    find_neighbours(workspace, settings())
    assert read_scans(workspace.neighbours)["volume_id"].to_pylist() == ids[:-1]


def test_a_copy_counts_once_its_scan_has_left_the_archive(ray_cluster, archive, tmp_path):
    workspace = with_own_catalogue(tmp_path, archive)
    rows = pq.read_table(workspace.catalog)
    workspace_of(tmp_path, archive, vectors())
    assert find_neighbours(workspace, settings()).counts.duplicates == 1
    pq.write_table(rows.filter(pa.array([name != "0003" for name in rows["volume_id"].to_pylist()])), workspace.catalog)
    finish_archive(workspace, "pruned", NUM - 1)
    manifest = find_neighbours(workspace, settings())
    assert (manifest.counts.volumes, manifest.counts.duplicates, manifest.archive) == (NUM - 1, 0, "pruned")
    rows_there = {row["volume_id"]: row for row in read_scans(workspace.neighbours).to_pylist()}
    assert rows_there[f"{COPY:04d}"]["duplicate_of"] == "" and "0003" not in rows_there
    kept = pq.read_table(workspace.neighbours / "part-000000000.parquet")["neighbours"].to_pylist()
    assert kept[3] == [] and all("0003" not in names and len(names) == 8 for names in kept[:3] + kept[4:])


def test_one_scan_and_k_beyond_the_archive(ray_cluster, archive, tmp_path):
    one = workspace_of(tmp_path / "one", archive, vectors()[:1])
    manifest = find_neighbours(one, settings())
    assert (manifest.counts.neighbours, manifest.groups, manifest.recall) == (0, (1,), 1)
    assert pq.read_table(one.neighbours / "part-000000000.parquet")["neighbours"].to_pylist() == [[]]
    few = workspace_of(tmp_path / "few", archive, vectors()[:5])
    assert find_neighbours(few, settings(k=32)).counts.neighbours == 5 * 4


def test_bad_embeddings_are_refused_before_anything_is_written(ray_cluster, archive, tmp_path):
    values = vectors()
    values[7, 2] = np.nan
    workspace = workspace_of(tmp_path / "nan", archive, values)
    with pytest.raises(SearchError, match="embeddings hold NaN or infinity"):
        find_neighbours(workspace, settings())
    mixed = workspace_of(tmp_path / "mixed", archive, vectors())
    table = pq.read_table(mixed.embeddings / "part-000000005.parquet")
    cells = pa.FixedSizeListArray.from_arrays(pa.array(np.ones(5 * 4, np.float32)), 4)
    pq.write_table(table.set_column(1, "embedding", cells), mixed.embeddings / "part-000000005.parquet")
    with pytest.raises(
        WorkspaceError, match=r"embeddings holds embeddings of 6 and of 4 numbers, of two encoders: remove"
    ):
        find_neighbours(mixed, settings())
    for each in (workspace, mixed):
        assert not each.neighbours.exists() and not each.index.exists()


def test_rows_of_another_encoder_are_refused(ray_cluster, archive, tmp_path):
    workspace = workspace_of(tmp_path, archive, vectors()[:10])
    find_neighbours(workspace, settings())
    workspace_of(tmp_path, archive, vectors()[:10] * 2, encoder="other")
    with pytest.raises(WorkspaceError, match=r"neighbours was not made from the present encoder: remove that folder"):
        find_neighbours(workspace, settings())


def test_a_damaged_shard_is_one_sentence_and_leaves_no_manifest(ray_cluster, archive, tmp_path):
    workspace = workspace_of(tmp_path, archive, vectors())
    find_neighbours(workspace, settings("hnsw"))
    shard = sorted(workspace.index.glob("shard-*.hnsw"))[0]
    content = bytearray(shard.read_bytes())
    content[100] ^= 1
    shard.write_bytes(content)
    shutil.rmtree(workspace.neighbours)
    with pytest.raises(SearchError, match=rf"{shard.name} is damaged: remove .*index and run `raygenesis neighbours`"):
        find_neighbours(workspace, settings("hnsw"))
    assert not (workspace.neighbours / "manifest.json").exists() and not list(workspace.neighbours.glob("part-*"))
    shutil.rmtree(workspace.index)
    assert find_neighbours(workspace, settings("hnsw")).recall == 1


def test_an_index_that_is_gone_or_measured_for_another_k_is_mended_though_neighbours_are_there(
    ray_cluster, archive, tmp_path
):
    workspace, chosen = workspace_of(tmp_path, archive, vectors()), settings("hnsw")
    made = find_neighbours(workspace, chosen)
    first = INDEX.require(workspace.index)
    shutil.rmtree(workspace.index)
    assert find_neighbours(workspace, chosen) == made
    again = INDEX.require(workspace.index)
    assert again.shards == first.shards and again.asked == (9,)
    more = chosen.model_copy(update={"discovery": chosen.discovery.model_copy(update={"num_neighbours": 20})})
    assert find_neighbours(workspace, more) == made
    assert INDEX.require(workspace.index).asked == (21,)


def test_a_scans_nearest_are_shown(ray_cluster, archive, tmp_path):
    workspace = workspace_of(tmp_path, archive, vectors())
    find_neighbours(workspace, settings())
    page = tmp_path / "pages" / "nearest.html"
    lines = show_nearest(workspace, "0003", 4, page)
    distances = np.linalg.norm(vectors() - vectors()[3], axis=1)
    order = [f"{number:04d}" for number in np.argsort(distances, kind="stable")[:5]]
    assert [line.split()[1] for line in lines[1:6]] == order
    assert f"{sorted(distances)[1]:.4g}" in lines[2]
    assert next(line for line in lines if f"{COPY:04d}" in line).endswith("a copy of 0003")
    text = page.read_text()
    assert text.count("<img") == 5 and "http" not in text.split("</style>")[1] and "a copy of 0003" in text
    with pytest.raises(SettingsError, match=r"--k 9 is more than the 8 nearest scans that are kept"):
        show_nearest(workspace, "0003", 9)
    assert len(show_nearest(workspace, "0003")) == 2 + 8  # fewer than 10 are kept
    with pytest.raises(SettingsError, match=r"--volume 003: no scan in .* is called that; there are 30, such as"):
        show_nearest(workspace, "003", 4)
