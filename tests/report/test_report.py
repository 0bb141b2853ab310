"""The page: whole from whatever there is, self-contained, escaped, and readable by people and machines."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray

from raygenesis.archive.catalogue import CATALOGUE, FAILURES, read_catalogue
from raygenesis.archive.cells import encode
from raygenesis.config import Settings
from raygenesis.discovery.autoencoder import IdentityMapping
from raygenesis.discovery.embed import WEIGHTS
from raygenesis.discovery.encoders import save_encoder
from raygenesis.discovery.quality import summary, warning
from raygenesis.errors import WorkspaceError
from raygenesis.patterns.schema import PATTERN, TRAINING, VALIDATION
from raygenesis.patterns.writer import write_part
from raygenesis.pretraining.pretrain import pretext_task
from raygenesis.pretraining.weights import export
from raygenesis.report import figures
from raygenesis.report.report import _duration, _size, report
from raygenesis.settings import as_yaml, settings_from
from raygenesis.sweeps.table import rank_points
from raygenesis.workspace import Stage, Workspace, manifest_of, publish, write_json, write_table
from tests.synthetic import archived

HOSTILE = "<script>alert(1)</script>.nii.gz"
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """What the tests look at: headings, images, links, and whether every element is closed in its turn."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.html = path.read_text(encoding="utf-8")
        self.headings: list[int] = []
        self.tags: list[str] = []
        self.images: list[dict[str, Any]] = []
        self.references: list[str] = []
        self.ids: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(self.html)
        assert not self._open

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        held = dict(attributes)
        self.tags.append(tag)
        self.references += [value for name, value in attributes if name.endswith(("href", "src")) and value]
        self.ids += [held["id"]] if held.get("id") else []
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag == "img":
            self.images.append(held)
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def settings_of(ndim: int, **sections: Any) -> Settings:
    tree = {
        "autoencoder": {"input_shape": [16] * ndim, "base_width": 2, "latent_size": 4},
        "discovery": {
            "num_coordinates": 2, "num_neighbours": 3, "num_validation_neighbours": 2, "cube_shape": [16] * ndim,
            "scales": [{"extent_mm": [16] * ndim}],
        },
        "pretraining": {"base_width": 2, "num_classification_epochs": 1, "num_joint_epochs": 1},
    }  # fmt: skip
    return settings_from({**tree, **sections})


def chosen(settings: Settings, *keys: str) -> dict[str, Any]:
    return settings.model_dump(mode="json", include=set(keys))


def make_archive(workspace: Workspace, ndim: int = 3, failures: Sequence[dict[str, str]] = ()) -> None:
    workspace.volumes.mkdir(parents=True)
    generator = np.random.default_rng(0)
    rows = [
        archived(workspace.volumes, f"{n:016x}", generator.random((24, 20, 28)[:ndim], np.float32), (2.0, 2, 1)[:ndim])
        for n in range(6)
    ]
    write_table(workspace.catalog, pa.Table.from_pylist(rows, CATALOGUE))
    write_table(workspace.archive / "failures.parquet", pa.Table.from_pylist(list(failures), FAILURES))
    counts = {"scans": 6, "volumes": 6, "subjects": 6, "known": 0}
    Stage(workspace.archive, chosen(settings_of(ndim), "archive"), {}).finish(counts, 1.0)


def make_discovery(workspace: Workspace, settings: Settings) -> None:
    """Auto-encoder, embeddings, index, and a pattern store of one reference, two neighbours, two held-out scans."""
    keys = ("seed", "validation_fraction", "intensity")
    for folder in (workspace.autoencoder, workspace.embeddings, workspace.index, workspace.patterns):
        folder.mkdir()
    model = IdentityMapping(settings.autoencoder, 0).build()
    architecture = settings.autoencoder.model_dump(mode="json", include={"input_shape", "base_width", "latent_size"})
    save_encoder(workspace.autoencoder / WEIGHTS, "autoencoder", model.state_dict(), architecture)
    history = [{"epoch": n, "train_loss": 0.2 / (n + 1), "val_mse": 0.3 / (n + 1)} for n in range(3)]
    write_table(workspace.autoencoder / "metrics.parquet", pa.Table.from_pylist(history))
    counts = {"epochs": 3, "training": 4, "validation": 2}
    Stage(workspace.autoencoder, chosen(settings, "autoencoder", *keys), {}).finish(counts, 1.0, val_mse=0.1)
    ids = [row["volume_id"] for row in read_catalogue(workspace.catalog)]
    vectors = np.random.default_rng(1).normal(size=(6, 4)).astype(np.float32)
    cells = pa.FixedSizeListArray.from_arrays(vectors.ravel(), 4)
    embedded = pa.table({"volume_id": ids, "embedding": cells, "failure": [""] * 6})
    write_table(workspace.embeddings / "part-00000000.parquet", embedded)
    Stage(workspace.embeddings, chosen(settings, "embedding"), {}).finish({"volumes": 6}, 1.0)
    indexed = {**chosen(settings, "index"), "num_neighbours": 3}
    Stage(workspace.index, indexed, {}).finish({"volumes": 6}, 1.0, method="exact", recall=1.0, ef=None)
    shape, facts = settings.discovery.cube_shape, chosen(settings, "discovery", *keys)
    counts = {"patterns": 10, "validation": 4, "parts": 2, "references": 1, "coordinates": 2, "neighbours": 3}
    for part, (split, members) in enumerate(((TRAINING, ids[:3]), (VALIDATION, ids[4:]))):
        rows = [pattern_of(split, rank, c, name, shape) for rank, name in enumerate(members) for c in (0, 1)]
        write_part(workspace.patterns, part, pa.Table.from_pylist(rows, PATTERN))
    visits = [(1, 0.2), (2, 0.1), (-1, 0.15), (-1, 0.3)]
    told = summary([{"reference": 0, "rank": rank, "within": like, "between": 0.0} for rank, like in visits], 3)
    Stage(workspace.patterns, {**facts, "method": "auto"}, {}).finish(
        counts, 1.0, cube_shape=list(shape), raw_bytes=20 * 16 ** len(shape),
        quality={**told, "warning": warning(told)},
        references=[{"volume_id": ids[0], "source": HOSTILE}],
    )  # fmt: skip


def pattern_of(split: str, rank: int, coordinate: int, volume_id: str, shape: tuple[int, ...]) -> dict[str, Any]:
    """Cubes of coordinate 0 rise along the last axis, those of coordinate 1 along the first; all with some noise."""
    axis = 0 if coordinate else len(shape) - 1
    noise = np.random.default_rng([rank, coordinate]).random(shape) * 0.4
    cube = (0.6 * np.indices(shape)[axis] / shape[axis] + noise).astype(np.float32)
    place = {key: [4.0] * len(shape) for key in ("origin_mm", "origin_voxels")}
    place |= {key: [16.0] * len(shape) for key in ("extent_mm", "extent_voxels")}
    return {
        "pattern_id": (split == VALIDATION) * 100 + rank * 2 + coordinate, "label": coordinate, "reference": 0,
        "coordinate": coordinate, "rank": rank + (split == VALIDATION), "scale": 0, "split": split,
        "volume_id": volume_id, "cube": encode(cube), **place,
    }  # fmt: skip


def begin(made: Stage) -> None:
    """As a job that is cut off at once."""
    with made.claimed():
        pass


def make_run(workspace: Workspace, settings: Settings, name: str, *, finished: bool = True, **facts: Any) -> None:
    folder = workspace.run(name)
    patterns = manifest_of(workspace.patterns, "discover")
    model = pretext_task(settings, patterns).build()
    stage = Stage(folder, chosen(settings, "pretraining", "seed"), {"patterns": patterns["fingerprint"]})
    begin(stage)
    publish(folder / "config.yaml", lambda aside: aside.write_text(as_yaml(settings)))
    row = {key: 0.5 for key in ("val_loss", "val_accuracy", "val_classification", "val_restoration", "val_identity")}
    row |= {"val_effective_rank": 4.0, "train_gradient_norm": 0.1}
    row |= {"train_loss": 0.4, "train_accuracy": 0.5, "train_classification": 0.4, "cubes_per_s": 9.0, "gap": 0.1}
    row["seconds"] = 0.5
    history = [{"epoch": 0, "phase": "classification", **row}, {"epoch": 1, "phase": "joint", **row}]
    write_table(folder / "metrics.parquet", pa.Table.from_pylist(history))
    if finished:
        export(model, folder, {})
        reached = {"epoch": 1, "accuracy": 1.0, "chance": 0.5, "restoration_mse": 0.01, "identity_mse": 0.3}
        reached |= {"mean_image_mse": 0.05, "retrieval": 0.9, "effective_rank": 4.0, "store": "patterns", **facts}
        stage.finish({"epochs": 2, "patterns": 6, "classes": 2}, 2.0, **reached)


def make_sweep(workspace: Workspace, name: str = "default", *, finished: bool = True) -> None:
    folder = workspace.sweep(name)
    axes = {"lambda_cls": [0.01, 0.1], "num_neighbours": [3], "corruption": ["none", None]}
    axes["learning_rate"] = {"low": 1e-4, "high": 1e-2, "log": True, "step": None}
    stage = Stage(
        folder, {**chosen(Settings(), "sweep"), "space": {f"pretraining.{key}": axis for key, axis in axes.items()}}, {}
    )
    begin(stage)
    cost = {"seconds": 30.0, "cpu_seconds": 40.0, "gpu_seconds": 0.0}
    trials = []
    for number in range(12):
        point = {"lambda_cls": (0.01, 0.1)[number % 2], "num_neighbours": 3, "corruption": ("none", None)[number // 6]}
        point["learning_rate"] = 1e-4 * 100 ** (number / 11)
        trial = {"point": point, "seed": 0, "status": "whole", "retrieval": 0.9 - number / 20, "rankme": 3.0, **cost}
        trial |= {"loss": 0.1, "accuracy": 0.5, "chance": 0.5, "restoration": None, "epochs": 2, "patterns": 6}
        trials.append(trial)
    trials[10] |= {"status": "stopped", "reason": "stopped at epoch 1", "epochs": 1}
    trials[11] = {"point": point, "seed": 0, "status": "failed", "reason": f"OSError: {HOSTILE}", "seconds": 10.0}
    for number, trial in enumerate(trials):
        write_json(folder / f"trial-{number}.json", trial)
    if finished:
        table, counts = rank_points(trials, "retrieval"), {"points": 12, "failures": 1, "bytes_cropped": 0}
        stage.finish(counts, 1.0, objective="retrieval", table=table)


def make_transfer(workspace: Workspace, ndim: int) -> None:
    folder = workspace.transfer("tissue")
    begin(Stage(folder, {}, {}))
    starts = ("random", "pretrained")
    for start in starts:
        for number in range(2):
            trial = {"initialisation": start, "labelled": 5, "figures": {"dice": 0.5 + 0.1 * number}}
            write_json(folder / f"trial-{start}-5-{number}.json", trial)
    shown = [
        {"initialisation": start, "dice": dice, "p trials": p_value}
        for start, dice, p_value in zip(starts, ("0.550 ± 0.071 *", "**0.650 ± 0.071**"), ("–", "0.030"), strict=True)
    ]
    label = np.eye(8, dtype=np.uint8)
    with (folder / "example.npz").open("wb") as file:
        np.savez(file, image=np.ones((8, 8), np.float32), label=label, **dict.fromkeys(starts, label))
    Stage(folder, {}, {}).finish({"trials": 2}, 1.0, task="segmentation", shown=shown, spacing_mm=[1.0] * ndim)
    compared = Stage(workspace.comparison("heads"), {}, {})
    begin(compared)
    compared.finish({"targets": 1}, 1.0, overview=shown, semantics=[{"without": "a", "gain": 0.25}], paper={})


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace.open(tmp_path / "w")


def test_an_empty_workspace_is_one_sentence(workspace: Workspace) -> None:
    with pytest.raises(WorkspaceError, match="raygenesis ingest"):
        report(workspace, settings_of(3))
    assert not workspace.report.exists()


def test_an_archive_alone_gives_a_page_that_names_the_next_commands(workspace: Workspace, capsys) -> None:
    failures = [{"source": HOSTILE, "reason": f"damaged & cut short after {n}"} for n in range(70)]
    make_archive(workspace, failures=failures)
    path = report(workspace, settings_of(3))
    page = Page(path)
    assert path == workspace.report / "index.html"
    assert len(page.images) == 6
    for verb in ("embed", "discover", "pretrain", "sweep", "finetune"):
        assert f"raygenesis {verb}" in page.text
    for verb, stages in (("ingest", 0), ("embed", 2), ("discover", 2), ("pretrain", 1)):
        assert len(re.findall(rf"not measured:\s+raygenesis {verb}\s+gives the rate", page.text)) == stages
    assert "1 d 22 h" in page.text  # a million scans at 6 a second
    assert "70 scans were left out" in page.text and "damaged & cut short after …" in page.text
    line = capsys.readouterr().out.strip()
    assert line.startswith("report: ") and line.endswith(f"→ {path}") and "\n" not in line
    path.write_text("old")
    report(workspace, settings_of(3))
    assert Page(path).headings and list(workspace.report.iterdir()) == [path]


def test_names_of_files_are_escaped(workspace: Workspace) -> None:
    make_archive(workspace, failures=[{"source": HOSTILE, "reason": "<b>bad</b>"}])
    page = Page(report(workspace, settings_of(3)))
    assert HOSTILE in page.text and "<b>bad</b>" in page.text
    assert "script" not in page.tags and "b" not in page.tags


def test_a_damaged_artifact_costs_its_section_only(workspace: Workspace) -> None:
    make_archive(workspace)
    make_discovery(workspace, settings_of(3))
    (workspace.autoencoder / WEIGHTS).write_bytes(b"nothing")
    (workspace.patterns / "part-000000.parquet").write_bytes(b"nothing")
    page = Page(report(workspace, settings_of(3)))
    assert page.text.count("This cannot be shown") == 3  # reconstructions, neighbours, patterns
    assert len([image for image in page.images if image["alt"].startswith("Mid-slice")]) == 6


@pytest.mark.parametrize("ndim", [3, 2])
def test_the_whole_page(workspace: Workspace, ndim: int) -> None:
    settings = settings_of(ndim)
    make_archive(workspace, ndim)
    make_discovery(workspace, settings)
    make_run(workspace, settings, "whole")
    weak = ["nothing is learnt from classification: <b>", "little is learnt from restoration: the mean image"]
    make_run(workspace, settings, "weak", accuracy=0.6, restoration_mse=0.2, warnings=weak)
    make_run(workspace, settings, "half", finished=False)
    make_sweep(workspace)
    make_sweep(workspace, "begun", finished=False)
    make_transfer(workspace, ndim)
    before = ray.is_initialized()
    path = report(workspace, settings)
    page = Page(path)
    assert ray.is_initialized() == before  # the page needs no Ray

    # Self-contained: what is referred to is in the page.
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert not re.search(r"https?:|@import|url\((?!#)", page.html)
    anchors = {reference[1:] for reference in page.references if reference.startswith("#")}
    assert anchors <= set(page.ids) and len(page.ids) == len(set(page.ids))
    assert all(reference.startswith(("#", "data:image/png;base64,")) for reference in page.references)

    # Readable: one h1, no level left out, every picture said in words.
    assert page.headings.count(1) == 1 and page.headings[0] == 1
    assert all(below <= above + 1 for above, below in zip(page.headings, page.headings[1:], strict=False))
    assert page.images and all(image["alt"].strip() for image in page.images)
    assert path.stat().st_size < 3e6

    # It says what was learnt and what was not.
    assert "warning: neighbours" not in page.text and "Neighbours cannot be told from random patients" in page.text
    assert "random patients by 0.225 (p = 0.8" in page.text and "They were searched exactly." in page.text
    assert "Cubes of the same class correlate by" in page.text and "This cannot be shown" not in page.text
    assert page.text.count("nothing is learnt from classification: <b>") == 2  # at the top and at the run
    assert page.text.count("little is learnt from restoration: the mean image") == 2
    assert "Begun, not finished" in page.text and "--name half" in page.text
    # The sweep: what varies, in words and pictures; what failed, what was stopped and what it cost.
    assert page.text.count("OSError: <script>") == 4  # in the table and below it, of the finished one and of the begun
    assert "stopped at epoch 1" in page.text and "0.0 KiB were cropped during the sweep" in page.text
    assert "The trials took 5 min 40 s" in page.text and "30.0 s those that were stopped early" in page.text
    assert "10.0 s those that failed" in page.text and "one seed" in page.text
    labels = "".join(re.findall(r'aria-label="([^"]*)"', page.html))
    assert "Sweep begun: 11 points as lines over λcls, corruption, learning rate, retrieval" in labels
    assert "by learning rate: retrieval of 11 points" in labels and "by corruption. Mean retrieval" in labels
    assert "by K" not in labels  # it does not vary
    assert "semantic-genesis" in page.text
    assert "1,000,000 scans" in page.text and "gives the rate" not in page.text
    restored = [image for image in page.images if image["alt"].startswith("Restored")]
    assert len(restored) == 2 * 4


def test_cubes_of_a_class_are_more_alike_than_others(workspace: Workspace) -> None:
    make_archive(workspace)
    make_discovery(workspace, settings_of(3))
    page = Page(report(workspace, settings_of(3)))
    within, between = re.search(r"correlate by (\S+) between scans, .* by (\S+)\s", page.text).groups()
    assert float(within) > 0.5 > abs(float(between))


def test_nothing_is_priced_by_a_call_that_took_in_nothing(workspace: Workspace) -> None:
    make_archive(workspace)
    again = {"scans": 6, "volumes": 6, "subjects": 6, "known": 6}
    Stage(workspace.archive, chosen(settings_of(3), "archive"), {}).finish(again, 0.1)
    page = Page(report(workspace, settings_of(3)))
    assert re.search(r"nothing was added by the last call:\s+raygenesis ingest in a new workspace", page.text)


@pytest.mark.parametrize(
    ("value", "text"),
    [(12.34, "12.3 s"), (75, "1 min 15 s"), (3600, "1 h 00 min"), (86_399, "23 h 59 min"), (90_000, "1 d 01 h")],
)
def test_times_for_people(value: float, text: str) -> None:
    assert _duration(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(512, "0.5 KiB"), (2**20, "1.0 MiB"), (1.5 * 2**30, "1.5 GiB"), (2**40, "1.0 TiB"), (2**51, "2,048.0 TiB")],
)
def test_sizes_for_people(value: float, text: str) -> None:
    assert _size(value) == text


def test_slices_stand_upright() -> None:
    head = np.zeros((4, 3, 2))
    head[3] = 1  # superior
    assert figures.mid_slice(head)[0].tolist() == [1, 1]
    assert figures.mid_slice(head[:, 0])[0].tolist() == [1, 1]


def test_curves_take_the_colours_of_the_page() -> None:
    chart = figures.curves("Loss", "a run", [figures.Line("training", [None, 1.0, 0.5])], levels={"chance": 0.1})
    assert "currentColor" in chart.svg and "var(--series-1)" in chart.svg
    assert "xmlns" not in chart.svg and "<style" not in chart.svg
    assert "training ends at 0.5" in chart.alt and "chance is 0.1" in chart.alt
