"""The section of the auto-encoder: its training, and held-out scans beside their reconstructions."""

from __future__ import annotations

from dataclasses import dataclass

from raygenesis.archive.catalogue import read_catalogue
from raygenesis.report import galleries
from raygenesis.report.artifact import ArtifactView, column, history_of
from raygenesis.report.parts import Absent, ScanPictures, guarded
from raygenesis.text import charts
from raygenesis.text.charts import Chart, Labels, Line
from raygenesis.workspace.manifest import AutoencoderManifest
from raygenesis.workspace.workspace import Workspace

MOST_HELD_OUT = 4


@dataclass(frozen=True)
class AutoencoderSection:
    """curve: of its error over epochs. held_out: scans and their reconstructions."""

    manifest: AutoencoderManifest
    curve: Chart | Absent
    held_out: ScanPictures | Absent


def autoencoder_section(workspace: Workspace, view: ArtifactView[AutoencoderManifest]) -> AutoencoderSection:
    """The training curve, and held-out scans beside their reconstructions."""
    held_out = galleries.evenly(galleries.split_of(workspace, view.finished)[1], MOST_HELD_OUT)
    rows = read_catalogue(workspace.catalog, held_out)
    return AutoencoderSection(
        manifest=view.finished,
        curve=guarded(_curve, view),
        held_out=guarded(galleries.reconstructions, view.folder, workspace.volumes, rows, view.finished),
    )


def _curve(view: ArtifactView[AutoencoderManifest]) -> Chart:
    history = history_of(view)
    lines = [Line("training", column(history, "train_loss")), Line("held out", column(history, "val_mse"))]
    labels = Labels("Mean squared error", y="mean squared error", of="the auto-encoder")
    return charts.curves(labels, lines, limits=(0, None))
