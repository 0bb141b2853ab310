"""The page: whole from whatever there is, self-contained, escaped, and readable by people and machines."""

from __future__ import annotations

import html
import itertools
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import ray
from PIL import Image

import raygenesis.report
from raygenesis.cluster.job import recorded
from raygenesis.errors import WorkspaceError
from raygenesis.networks.weights.scan_encoders import AUTOENCODER_FILE
from raygenesis.patterns.cells import decode
from raygenesis.report.galleries import example
from raygenesis.report.page import counts_text, heading
from raygenesis.report.pictures import Box, Gallery, mid_slice, numbered, picture
from raygenesis.report.report import report
from raygenesis.settings import load_settings
from raygenesis.text import charts
from raygenesis.workspace import hardware
from raygenesis.workspace.artifacts import RUNS, SWEEPS, TRANSFER, Artifact
from raygenesis.workspace.files import read_table, write_json, write_table
from raygenesis.workspace.manifest_files import write_manifest
from raygenesis.workspace.stage import Stage
from raygenesis.workspace.workspace import Workspace
from tests.support.workspaces import (
    HOSTILE,
    begin,
    chosen,
    make_archive,
    make_comparison,
    make_discovery,
    make_run,
    make_sweep,
    make_transfer,
    pattern_of,
    settings_of,
    target_of,
)

HTML_OF_HOSTILE = HOSTILE.replace("<", "&lt;").replace(">", "&gt;")
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


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace.open(tmp_path / "w")


@pytest.fixture
def without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page alone: each figure as a file takes longer than the page."""
    monkeypatch.setattr("raygenesis.report.report._write_figures", lambda *_: 0)


def test_an_empty_workspace_is_one_sentence(workspace: Workspace) -> None:
    with pytest.raises(WorkspaceError, match="raygenesis ingest"):
        report(workspace, settings_of(3))
    assert not workspace.report.exists()


def test_the_report_does_not_import_ray() -> None:
    code = "import sys, raygenesis.report.report, raygenesis.report.viewer; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("verb", ["report", "status", "archive info"])
def test_verbs_that_read_results_do_not_import_ray(workspace: Workspace, verb: str) -> None:
    make_archive(workspace)
    with recorded("ingest", workspace):  # for `status`
        pass
    words = [*verb.split(), "--workspace", str(workspace.root)]
    code = (
        "import atexit, os, sys; from raygenesis.cli import main;"
        "atexit.register(lambda: 'ray' in sys.modules and os._exit(3));"
        f"main({words!r})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout, done.stderr


def test_an_archive_alone_gives_a_page_that_names_the_next_commands(workspace: Workspace, capsys) -> None:
    failures = [{"source": HOSTILE, "reason": f"damaged & cut short after {n}"} for n in range(70)]
    make_archive(workspace, failures=failures)
    path = report(workspace, settings_of(3))
    page = Page(path)
    assert path == workspace.report / "index.html"
    assert len(page.images) == 6
    for verb in ("embed", "discover", "pretrain", "sweep", "finetune"):
        assert f"raygenesis {verb}" in page.text
    assert "Cost at scale" in page.text and "1,000,000 scans" in page.text
    assert page.text.count("shipped") == 8  # rates: nothing was run here that a rate could be learnt from
    assert "70 scans were left out" in page.text and "damaged & cut short after …" in page.text
    line = capsys.readouterr().out.strip()
    assert line.startswith("report: ") and line.endswith(f"→ {path}") and "\n" not in line
    path.write_text("old")
    report(workspace, settings_of(3))
    assert Page(path).headings and set(workspace.report.iterdir()) == {path, path.parent / "figures"}


def test_names_of_files_are_escaped(workspace: Workspace) -> None:
    make_archive(workspace, failures=[{"source": HOSTILE, "reason": "<b>bad</b>"}])
    page = Page(report(workspace, settings_of(3)))
    assert HOSTILE in page.text and "<b>bad</b>" in page.text
    assert "script" not in page.tags and "b" not in page.tags


@pytest.mark.usefixtures("without_figures")
def test_a_damaged_artifact_costs_its_section_only(workspace: Workspace, capsys) -> None:
    make_archive(workspace)
    make_discovery(workspace, settings_of(3))
    (workspace.autoencoder / AUTOENCODER_FILE).write_bytes(b"nothing")
    part = workspace.patterns / "part-000000.parquet"
    part.write_bytes(b"nothing")
    page = Page(report(workspace, settings_of(3)))
    assert page.text.count("This cannot be shown") == 3  # reconstructions, neighbours, patterns
    assert len([image for image in page.images if image["alt"].startswith("Mid-slice")]) == 6 + 8  # and in groups
    fault = f"{AUTOENCODER_FILE} is not a safetensors file, or is damaged"
    assert f"{fault}; restore it from a copy, or remove" in page.text
    said = capsys.readouterr().out
    assert "; 3 parts of the page cannot be shown, the first: " in said and f"{workspace.autoencoder}" in said


def change(artifact: Artifact[Any], folder: Path, **fields: Any) -> None:
    """Other fields in a manifest."""
    write_manifest(folder, replace(artifact.require(folder), **fields))


def whole(root: Path) -> Workspace:
    """A workspace with something of every stage."""
    workspace, settings = Workspace.open(root), settings_of(3)
    make_archive(workspace)
    make_discovery(workspace, settings)
    make_run(workspace, settings, "whole")
    make_transfer(workspace, 3)
    return workspace


def remove_volume(workspace: Workspace, number: int) -> None:
    shutil.rmtree(workspace.volumes / f"{number:016x}.ome.zarr")


@pytest.mark.usefixtures("without_figures")
def test_a_scan_that_is_missing_costs_its_pictures_only(tmp_path: Path, capsys) -> None:
    workspace = whole(tmp_path / "w")
    remove_volume(workspace, 1)  # a neighbour
    page = Page(report(workspace, settings_of(3)))
    kinds = Counter(image["alt"].split()[0] for image in page.images)
    assert kinds["Mid-slice"] == 5 + 6 and page.text.count("This cannot be shown") == 0
    assert page.text.count("Some of this cannot be shown: 0000000000000001.ome.zarr") == 4  # groups too
    assert page.text.count("remove its folder below archive/volumes/ and ingest again") == 4
    assert "Slice of reference" in page.html and "Slice of rank 2" in page.html and "Slice of rank 1" not in page.html
    assert "; 4 parts of the page cannot be shown, the first: 0000000000000001" in capsys.readouterr().out

    remove_volume(workspace, 0)  # the reference
    page = Page(report(workspace, settings_of(3)))
    assert "Slice of rank 2" in page.html and "Slice of reference" not in page.html
    assert "Class 0, the reference" in page.html  # its pattern is in the store
    assert page.text.count("This cannot be shown: 0000000000000000.ome.zarr") == 1  # where its classes lie


@pytest.mark.parametrize("what", ["garbage", "missing"])
def test_what_embeddings_and_metrics_are_needed_for_says_which_file_and_what_helps(
    tmp_path: Path, what: str, capsys
) -> None:
    workspace = whole(tmp_path / "w")
    files = [
        workspace.embeddings / "part-00000000.parquet", workspace.run("whole") / "metrics.parquet",
        workspace.autoencoder / "metrics.parquet", workspace.run("whole") / "config.yaml",
    ]  # fmt: skip
    for path in files[: 3 if what == "garbage" else 4]:
        path.unlink() if what == "missing" else path.write_bytes(b"nothing")
    page = Page(report(workspace, settings_of(3)))
    told = re.findall("This cannot be shown: (.*)", page.text)
    fault = "is damaged" if what == "garbage" else "is missing"
    for path in files[1:3]:
        assert f"{path} {fault}: restore it from a copy, or remove {path.parent} to make it again" in told
    damaged = files[0] if what == "garbage" else workspace.embeddings
    assert f"{damaged} is damaged: run `raygenesis embed`, which makes it anew" in told
    assert not re.search("Parquet|Errno|FieldRef", page.text)
    # What does not need them is there.
    assert (
        "Slice of rank 1" in page.html
        and "istance" not in page.text.partition("They were searched")[2].partition("voxels in")[0]
    )
    assert "Reconstruction of" in page.html and "It names 100%" in page.text
    if what == "missing":
        assert any(line.startswith(f"{files[3]} is missing or damaged: restore it") for line in told)


@pytest.mark.usefixtures("without_figures")
@pytest.mark.parametrize("content", [b"{", b'{"counts": {"epochs": 2}}'])
def test_a_damaged_manifest_costs_its_artifact_only(tmp_path: Path, content: bytes, capsys) -> None:
    workspace = whole(tmp_path / "w")
    manifest = workspace.run("whole") / "manifest.json"
    manifest.write_bytes(content)
    page = Page(report(workspace, settings_of(3)))
    assert page.text.count(f"cannot be read: {manifest} is") == 1  # in the first table
    assert page.text.count(f"This cannot be shown: {manifest} is") == 1  # under pretraining
    assert "0.650 ± 0.071" in page.text and "Slice of rank 1" in page.html
    assert f"; 1 part of the page cannot be shown, the first: {manifest} is" in capsys.readouterr().out


@pytest.mark.usefixtures("without_figures")
def test_a_damaged_example_leaves_its_table(tmp_path: Path) -> None:
    workspace = whole(tmp_path / "w")
    (workspace.transfer("heads-tissue") / "example.npz").write_bytes(b"PK\x03\x04 cut short")
    page = Page(report(workspace, settings_of(3)))
    assert "example.npz is damaged: remove it and manifest.json beside it" in page.text
    assert "0.650 ± 0.071" in page.text


def test_a_reference_that_left_the_archive_is_said(tmp_path: Path) -> None:
    workspace = whole(tmp_path / "w")
    table = read_table(workspace.catalog)
    write_table(workspace.catalog, table.slice(1))
    page = Page(report(workspace, settings_of(3)))
    told = f"{workspace.archive} no longer has the reference {0:016x}: ingest its scan again, or remove"
    assert page.text.count(f"This cannot be shown: {told}") == 2  # neighbours, where the classes lie


@pytest.mark.parametrize("ndim", [3, pytest.param(2, marks=pytest.mark.slow)])
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

    # Nothing identifying: neither subjects nor files are named.
    assert ".nii<" not in page.html.replace(HTML_OF_HOSTILE, "") and "subject_id" not in page.html

    # The archive by modality, the map with its reference, the commands that made it all.
    assert re.search(r"CT \(4\), not said \(2\)", page.text)
    assert "Map of 6 embeddings in two dimensions: references (1), neighbours (2), others (3)." in page.html
    commands = page.html.partition("<h3>Commands</h3>")[2].partition("</pre>")[0].partition('<pre tabindex="0">')[2]
    words = next(shlex.split(html.unescape(line)) for line in commands.splitlines() if "raygenesis discover" in line)
    assert words[:4] == ["raygenesis", "discover", "--workspace", str(workspace.root)]
    preset, overrides = (words[5], words[6:]) if words[4] == "--preset" else ("cpu-small", words[4:])
    assert load_settings(preset, overrides).discovery == settings.discovery
    assert "It names 100% of what is held out rightly, 2.0 times chance" in page.text
    assert "a mean average precision of 0.900, as untrained it did with 0.300" in page.text
    assert "It restores with an error of 0.01: 0.03 of that of leaving the cube as it is" in page.text

    # It says what was learnt and what was not.
    assert (
        "warning: neighbours" not in page.text and "Neighbours are not more similar than random patients" in page.text
    )
    assert "random patients by 0.225 (p = 0.8" in page.text and "They were searched exactly." in page.text
    assert (
        "Held-out scans' cubes correlate with the reference's of the same class by" in page.text
        and "This cannot be shown" not in page.text
    )
    assert page.text.count("nothing is learnt from classification: <b>") == 2  # at the top and at the run
    assert page.text.count("little is learnt from restoration: the mean image") == 2
    assert "Begun, not finished" in page.text and "--name half" in page.text
    # The sweep: what varies, in words and pictures; what failed, what was stopped and what it cost.
    assert page.text.count("OSError: <script>") == 4  # in the table and below it, of the finished one and of the begun
    assert "stopped at epoch 1" in page.text
    assert "The trials took 5.7 min" in page.text and "30 s those that were stopped early" in page.text
    assert "10 s those that failed" in page.text and "one seed" in page.text
    assert "no monitor warns" in page.text.lower()
    labels = "".join(re.findall(r'aria-label="([^"]*)"', page.html))
    assert "Sweep begun: 11 points as lines over λcls, corruption, learning rate, retrieval" in labels
    assert "by learning rate: retrieval of 11 points" in labels and "by corruption. Mean retrieval" in labels
    assert "tissue, 5 labelled. Mean Dice: in-painting 0.6 without and 0.65 with, +0.050 *." in labels
    assert "A gain, and its p, are not of semantics alone." in page.text
    assert "by K" not in labels  # it does not vary
    assert "semantic-genesis" in page.text
    assert "1,000,000 scans" in page.text and "gives the rate" not in page.text
    restored = [image for image in page.images if image["alt"].startswith("Restored")]
    assert len(restored) == 2 * 4
    # What each thing is of.
    assert re.search(r"held-out scans,\s*correlation with\s*the reference", page.text) or ndim == 2
    assert page.text.count("Coronal mid-slices of the cubes") == (3 if ndim == 3 else 0)  # classes, two runs
    assert (
        "Bold: best; n.s.: no significant difference" in page.text and "are cut to what the figure can be" in page.text
    )
    assert "cubes in its store" in page.text and "of a scan lie, if it gave any" in page.text
    assert "The total leaves comparisons out" in page.text
    assert "class, answer" in page.text
    assert "0 failures" not in page.text and "Training scans alone" in page.text
    of_targets = page.text.partition("Transfer")[2]
    found = re.search(r"\bauc\b|(?<!loss=)(?<!loss: )\bdice\b", of_targets)  # but for the setting `finetune.loss`
    assert re.search(r"AUC|Dice", page.text)
    assert found is None, of_targets[found.start() - 80 : found.end() + 40]


def tiles(page: Page) -> str:
    return page.html.partition('<dl class="tiles">')[2].partition("</dl>")[0]


@pytest.mark.slow
@pytest.mark.usefixtures("without_figures")
def test_the_first_figures_are_of_the_default_run_or_else_the_newest(workspace: Workspace) -> None:
    settings = settings_of(3)
    make_archive(workspace)
    make_discovery(workspace, settings)
    for day, name in enumerate(("plan-b", "default", "plan-a"), 1):
        make_run(workspace, settings, name, accuracy=day / 10)
        finished = f"2026-01-0{day}T00:00:00+00:00"
        change(RUNS, workspace.run(name), finished=finished)
    page = Page(report(workspace, settings))
    assert "(run default)" in tiles(page) and "20.0%" in tiles(page) and "plan" not in tiles(page)
    open_run = re.findall(r"<details open>\s*<summary><h3>(.*?)<", page.html)
    assert open_run == ["Run default"]
    shutil.rmtree(workspace.run("default"))
    assert "(run plan-a)" in tiles(Page(report(workspace, settings)))


def test_a_run_that_classifies_nothing_has_no_column_of_classes(workspace: Workspace) -> None:
    settings = settings_of(3, pretraining={"pretext": "in-painting", "base_width": 2})
    make_archive(workspace)
    make_discovery(workspace, settings)
    make_run(workspace, settings, "restores", accuracy=None, chance=None, retrieval=None)
    page = Page(report(workspace, settings))
    assert "class, answer" not in page.text and re.search(r"original\s*corrupted\s*restored\s*error", page.text)
    figure = (workspace.report / "figures" / "run-restores-restored.svg").read_text()
    assert "error 0." in figure and "answer" not in figure and "Coronal mid-slices" in figure


def test_counts_are_told_in_words_and_without_what_there_is_none_of() -> None:
    counts = {"volumes": 30, "known": 1, "removed": 0, "failures": 0, "seen_subjects": 24}
    told = "30 volumes, 1 scan known before, 24 subjects seen in pretraining"
    assert counts_text(counts) == told and counts_text({"failures": 0}) == "nothing"


def test_every_figure_is_also_a_file_for_a_paper(workspace: Workspace) -> None:
    settings = settings_of(3)
    make_archive(workspace)
    make_discovery(workspace, settings)
    make_run(workspace, settings, "whole")
    make_sweep(workspace)
    make_transfer(workspace, 3)
    folder = workspace.report / "figures"
    folder.mkdir(parents=True)
    (folder / "sweep-of-before.png").touch()
    page = Page(report(workspace, settings))
    names = {path.stem for path in folder.iterdir()}
    assert {path.name for path in folder.iterdir()} == {f"{name}.{end}" for name in names for end in ("svg", "png")}
    galleries = {
        "contact-sheet", "auto-encoder-reconstructions", "neighbours", "patterns-by-class", "where-the-classes-lie",
        "run-whole-restored", "target-heads-tissue-example", "groups", "duplicates", "outliers",
    }  # fmt: skip
    assert "sweep-of-before" not in names
    assert (
        galleries < names
        and {"embedding-map-of-training-scans", "run-whole-accuracy", "semantics-in-heads-tissue-5-labelled"} < names
    )
    assert len(names - galleries) == len(re.findall(r'<figure class="chart', page.html))
    for path in folder.iterdir():
        if path.suffix == ".svg":
            assert ElementTree.parse(path).getroot().tag == "{http://www.w3.org/2000/svg}svg"
            assert "var(--" not in path.read_text()  # colours of their own
        else:
            assert len(np.unique(np.asarray(Image.open(path).convert("L")))) > 10


def test_cubes_of_a_class_are_more_alike_than_others(workspace: Workspace) -> None:
    make_archive(workspace)
    make_discovery(workspace, settings_of(3))
    page = Page(report(workspace, settings_of(3)))
    told = re.search(r"cubes correlate with the reference's of the same class by (\S+), .* by (\S+)\s", page.text)
    assert told is not None
    within, between = map(float, told.groups())
    anchors, held_out = (
        [decode(pattern_of(split, rank, c, "", (16, 16, 16))["cube"], (16, 16, 16)).ravel() for c in (0, 1)]
        for split, rank in (("train", 0), ("validation", 1))
    )
    table = np.corrcoef([*anchors, *held_out])[:2, 2:]
    # One of the two held-out scans shows what the reference shows, to the voxel.
    assert within == pytest.approx((1 + np.diag(table).mean()) / 2, abs=2e-3)
    itself = np.corrcoef(anchors)[0, 1]
    assert between == pytest.approx((itself + table[~np.eye(2, dtype=bool)].mean()) / 2, abs=2e-3)
    assert within > 0.5 > abs(between)


def test_jobs_are_told_with_their_cost_and_without_what_they_said(workspace: Workspace) -> None:
    make_archive(workspace)
    (workspace.private / "jobs").mkdir(parents=True)
    job = {"verb": "ingest", "state": "succeeded", "said": [f"{HOSTILE} is damaged"], "host": "a-host", "process": 1}
    job |= {"started": "2026-01-02T03:04:05+00:00", "updated": "2026-01-02T03:34:05+00:00"}
    job |= {"core_seconds": 7200.0, "gpu_seconds": 1800.0, "hardware": {"num_cores": 4}, "stages": []}
    write_json(workspace.private / "jobs" / "20260102-030405-ingest-abcd.json", job)
    own = {**job, "verb": "report", "state": "running", "host": socket.gethostname(), "process": os.getpid()}
    write_json(workspace.private / "jobs" / "20260102-040405-report-abcd.json", own)
    page = Page(report(workspace, settings_of(3, prices={"cpu_hour": 0.5, "gpu_hour": 3})))
    assert re.search(r"report\s*writes this page\s*2026-01-02 03:04", page.text)
    assert re.search(r"ingest\s*succeeded\s*2026-01-02 03:04\s*30.0 min\s*2.0 h\s*30.0 min\s*2.5\s", page.text)
    assert "a-host" not in page.text and "is damaged" not in page.text


@pytest.mark.slow
@pytest.mark.usefixtures("without_figures")
def test_a_table_made_from_what_is_another_now_says_so_and_how_it_is_made_again(workspace: Workspace) -> None:
    settings = settings_of(3)
    make_archive(workspace)
    make_discovery(workspace, settings)
    make_run(workspace, settings, "whole")
    run = RUNS.require(workspace.run("whole")).fingerprint

    def make_target(name: str, *command: str) -> str:
        stage = Stage(TRANSFER, workspace.transfer(name), {}, {"target": "t"}, command=command)
        begin(stage)
        return stage.finish(target_of({"random": "r", "ours": run}, runs={"ours": "whole"})).finished

    compared = ("compare", "heads.yaml")
    make_target("alone", "finetune", "--target", "TARGET.yaml", "--from", "random", "--from", "ours=whole")
    make_comparison(workspace, {"transfer tissue": make_target("heads-tissue", *compared)}, compared)
    space, command = {"space": {}}, ("sweep", "--name", "wide", "--space", "SPACE.yaml")
    begin(Stage(SWEEPS, workspace.sweep("wide"), {**chosen(settings, "sweep"), **space}, {}, command=command))

    page = Page(report(workspace, settings))
    assert "(changed since)" not in page.text and f"run whole {run}" in page.text
    commands = page.html.partition("<h3>Commands</h3>")[2].partition("</pre>")[0]
    assert commands.count("raygenesis compare heads.yaml --workspace") == 1 and "--name heads-tissue" not in commands
    assert "raygenesis finetune --target TARGET.yaml --from random --from ours=whole --workspace" in commands
    assert "--name wide --space SPACE.yaml --workspace" in page.text  # to go on with

    change(RUNS, workspace.run("whole"), fingerprint="another")
    change(TRANSFER, workspace.transfer("heads-tissue"), finished="2099-01-01T00:00:00+00:00")
    page = Page(report(workspace, settings))
    assert page.text.count(f"run whole {run} (changed since)") == 2
    assert len(re.findall(r"transfer tissue \S+ \(changed since\)", page.text)) == 1


def test_prices_give_a_table_of_costs_and_the_machine_is_what_a_container_leaves_of_it(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "memory_gib", lambda: 3.0)
    monkeypatch.setattr(hardware, "num_cores", lambda: 1)
    monkeypatch.setattr(hardware, "_joined", [])  # tests before this one may have joined a Ray of more
    make_archive(workspace)
    page = Page(report(workspace, settings_of(3)))
    assert "1 core, 3.0 GiB memory" in page.text and "Cost by number of scans" not in page.html
    page = Page(report(workspace, settings_of(3, prices={"cpu_hour": 3600})))
    table = page.html.partition('aria-label="Cost by number of scans"')[2].partition("</table>")[0]
    ingest = table.partition(">ingest<")[2].partition("</tr>")[0]
    costs = [float(cell.replace(",", "")) for cell in re.findall(r"<td[^>]*>\s*([\d,.]+)", ingest)]
    # 6 seconds to start, and a little for six scans; 0.017 s a scan and more, a price of one a second.
    assert 6 < costs[0] < 7 and costs[1] > 6 + 1e4 * 0.017 and costs[3] - 6 == pytest.approx(100 * (costs[1] - 6), 0.01)


def test_slices_stand_upright_with_the_right_on_the_left() -> None:
    head = np.zeros((4, 3, 2))
    head[3, :, 1] = 1  # superior and right
    assert mid_slice(head)[0].tolist() == [1, 0]
    assert mid_slice(head[:, 0])[0].tolist() == [1, 0]


def test_charts_take_the_colours_of_the_page_and_their_files_those_of_light() -> None:
    lines = [charts.Line("training", [None, 1.0, 0.5])]
    chart = charts.curves(charts.Labels("Loss", y="cross-entropy", of="a run"), lines, levels={"chance": 0.1})
    assert "currentColor" in chart.inline and "var(--series-1)" in chart.inline
    assert "xmlns" not in chart.inline and "<style" not in chart.inline
    assert "training ends at 0.5" in chart.alt and "chance is 0.1" in chart.alt
    assert chart.name == "a-run-loss" and dict(chart.files())["svg"].startswith(b"<?xml")
    light = (Path(raygenesis.report.__file__).parent / "colours.css.j2").read_text().partition("@media")[0]
    for name, colour in {"ink": charts.INK, "muted": charts.MUTED, "series-1": charts.SERIES[0]}.items():
        assert f"--{name}: {colour}" in light
    assert charts.SERIES[0] in chart.svg and charts.SERIES[0] not in chart.inline


def test_a_chart_as_a_file_says_of_what_it_is_and_names_both_axes() -> None:
    lines = [charts.Line("training", [1.0]), charts.Line("held out", [0.0])]
    chart = charts.curves(charts.Labels("Accuracy of classes", y="accuracy", of="run a"), lines, limits=(0, 1))

    def texts(svg: str) -> list[str]:
        return [re.sub("<.*?>", "", text) for text in re.findall(r"<text.*?</text>", svg, flags=re.DOTALL)]

    written = texts(chart.svg)
    assert {"epoch", "accuracy"} < set(written) and written[-1] == "Run a: Accuracy of classes"
    assert texts(chart.inline) == written[:-1]  # the page has its title above it
    assert written[: written.index("epoch")] == ["1"]  # one epoch, and no fractions of it
    # What lies on the frame is drawn whole.
    points = re.findall(r"<g[^>]*clip-path[^>]*>\s*<use", chart.svg)
    assert chart.svg.count("<use") > 2 and not points


def test_names_of_figures_are_ascii_and_tell_symbols_apart() -> None:
    assert charts.slug("Sweep default by λcls") == "sweep-default-by-lambda-cls"
    assert charts.slug("Sweep default by λrec") != charts.slug("Sweep default by λcls")
    assert charts.slug("Target Bücher/2 …") == "target-b-cher-2"


def test_a_gallery_as_a_file_shows_its_pictures_in_their_order() -> None:
    shades = np.linspace(0, 1, 6).reshape(2, 3)
    rows = [[picture(np.full((8, 8), shade), "a shade", extent=(8, 8)) for shade in row] for row in shades]
    gallery = Gallery("Shades of grey", rows, ["a", "b", "c"], ["one", "two"])
    sheet = np.asarray(Image.open(BytesIO(dict(gallery.files())["png"])).convert("L"))
    found = sorted(set(np.unique(sheet)) & set(np.rint(shades.ravel() * 255).astype(int)))
    assert gallery.name == "shades-of-grey" and found == [0, 51, 102, 153, 204, 255]
    middle = [np.argwhere(sheet == shade).mean(0) for shade in (51, 102, 153, 204)]
    assert middle[0][0] == pytest.approx(middle[1][0], abs=1) and middle[0][1] < middle[1][1]  # of one row
    assert middle[2][0] > middle[1][0] and middle[3][1] == pytest.approx(middle[0][1], abs=2)  # below, in its column


def test_a_gallery_as_a_file_carries_its_note_its_legend_and_short_ids() -> None:
    shown = [picture(np.zeros((8, 8)), "a scan", f"Rank 1, distance 2.0: {'0123456789abcdef'}")]
    gallery = Gallery("Scans", [shown], note="Coronal slices", legend=[("liver", "#ff0000")])
    svg = dict(gallery.files())["svg"].decode()
    assert "01234567<" in svg and "89abcdef" not in svg and "0123456789abcdef" in gallery.rows[0][0].note
    assert "Scans. Coronal" in svg and "slices<" in svg and "liver" in svg and "#ff0000" in svg


def test_an_example_names_classes_plane_and_labelled_subjects_and_says_where_nothing_is_predicted(
    tmp_path: Path,
) -> None:
    label = np.array([[0, 1], [2, 0]], np.uint8)
    predicted = {"prediction_random": np.zeros_like(label), "prediction_ours": label}
    np.savez(tmp_path / "example.npz", image=np.ones((2, 2), np.float32), label=label, **predicted)
    gallery = example(tmp_path / "example.npz", [1.0, 1.0, 1.0], "Target heads", 20, ["liver"])
    notes = [shown.note for shown in gallery.rows[0]]
    assert notes == ["Image", "Label", "Predicted, random: nothing", "Predicted, ours"]
    assert [name for name, _ in gallery.legend] == ["liver", "class 2"]
    assert gallery.note == "An axial slice of a test scan, predicted by networks that learnt from 20 labelled subjects"
    # The colours are those of the picture: voxel [0, 1] is of class 1, and lies lower left as it is shown.
    pixels = np.asarray(Image.open(BytesIO(gallery.rows[0][1].content)).convert("RGB"), float)
    colours = np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for _, colour in gallery.legend])
    np.testing.assert_allclose(pixels[-1, 0], 0.45 * 255 + 0.55 * colours[0], atol=1)
    np.testing.assert_allclose(pixels[0, -1], 0.45 * 255 + 0.55 * colours[1], atol=1)


def test_numbers_of_boxes_are_apart_and_within_their_boxes() -> None:
    boxes = [Box(10, 10, 40, 40, 0), Box(10, 10, 40, 40, 1), Box(16, 14, 40, 40, 2), Box(80, 80, 20, 20, 9)]
    out = numbered(boxes, 8)
    assert out[3].label is None and numbered(boxes[:1], 8)[0].label is None
    labels = [box.label for box in out[:3]]
    for box, (x, y) in zip(boxes, labels, strict=False):
        assert box.x + 4 < x < box.x + box.width - 4 and box.y + 4 < y < box.y + box.height - 4
    for one, another in itertools.combinations(labels, 2):
        assert max(abs(one[0] - another[0]), abs(one[1] - another[1])) >= 8
    # A free place rather than one on another's edge.
    (beside, _) = numbered([Box(0, 0, 40, 40, 0), Box(3, -20, 30, 30, 1)], 8)
    assert beside.label[1] > 10 + 4


def test_columns_are_in_words() -> None:
    assert heading("sex, 6 labelled: auc") == "sex, 6 labelled: AUC" and heading("mae") == "mean absolute error"
    assert heading("lambda_cls") == "λcls" and heading("best_epoch") == "best epoch"
