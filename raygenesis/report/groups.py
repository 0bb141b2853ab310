"""The section of groups: the kinds of scans that the archive holds, copies among them, and scans with nothing near."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from raygenesis.archive.catalogue import CatalogueRow, read_catalogue
from raygenesis.discovery.scan_table import read_scans
from raygenesis.report.artifact import ArtifactView
from raygenesis.report.galleries import MOST_COLUMNS, draw_each, evenly, in_rows
from raygenesis.report.parts import ScanPictures
from raygenesis.report.pictures import Gallery, Picture, SliceSpec, plane_note, scan_picture
from raygenesis.settings import IntensitySettings
from raygenesis.workspace.manifest import NeighboursManifest
from raygenesis.workspace.workspace import Workspace

MOST_GROUPS, MOST_PAIRS, MOST_OUTLIERS = 8, 16, 16


@dataclass(frozen=True)
class GroupsSection:
    """groups: a row of pictures each; copies: two pictures each."""

    manifest: NeighboursManifest
    groups: ScanPictures
    copies: ScanPictures
    outliers: ScanPictures


def groups_section(
    workspace: Workspace, view: ArtifactView[NeighboursManifest], intensity: IntensitySettings
) -> GroupsSection:
    """Some members of each group, pairs of copies side by side, and outliers, sparsest first."""
    scans = read_scans(view.folder)
    shown = ScanPainter(workspace, intensity)
    manifest = view.finished
    members = {
        f"group {group}\n{size:,} scans": [
            (name, name) for name in evenly(_ids(scans.filter(pc.equal(scans["group"], group))), MOST_COLUMNS)
        ]
        for group, size in enumerate(manifest.groups[:MOST_GROUPS])
    }
    copied = scans.filter(pc.not_equal(scans["duplicate_of"], ""))
    pairs = [
        ((row["duplicate_of"], f"scan: {row['duplicate_of']}"), (row["volume_id"], f"its copy: {row['volume_id']}"))
        for row in evenly(copied.to_pylist(), MOST_PAIRS)
    ]
    alone = scans.filter(scans["is_outlier"]).sort_by([("sparsity", "descending")])
    outliers = [(name, name) for name in _ids(alone)[:MOST_OUTLIERS]]
    return GroupsSection(
        manifest=manifest,
        groups=shown.gallery("Groups", list(members.values()), list(members)),
        copies=shown.gallery("Duplicates", in_rows([one for pair in pairs for one in pair])),
        outliers=shown.gallery("Outliers", in_rows(outliers)),
    )


def _ids(scans: pa.Table) -> list[str]:
    names: list[str] = scans["volume_id"].to_pylist()
    return names


@dataclass(frozen=True)
class ScanPainter:
    """Draws the mid-slices of scans."""

    workspace: Workspace
    intensity: IntensitySettings

    def gallery(self, title: str, rows: Sequence[Sequence[tuple[str, str]]], names: Sequence[str] = ()) -> ScanPictures:
        """A gallery of scans, by volume id and caption, in rows; those that are damaged are left out."""
        found = {row["volume_id"]: row for row in read_catalogue(self.workspace.catalog, _named(rows))}
        notes = [[(found[name], note) for name, note in row if name in found] for row in rows]
        drawn, damages = [], []
        for row in notes:
            pictures, damage = self._draw(row)
            drawn.append(pictures)
            damages += [damage] if damage else []
        kept = [number for number, row in enumerate(drawn) if row]
        if not kept:
            return ScanPictures(None, " ".join(damages))
        note = plane_note(max(len(row["shape"]) for row in found.values()))
        titles = [names[number] for number in kept] if names else ()
        return ScanPictures(Gallery(title, [drawn[n] for n in kept], names=titles, note=note), " ".join(damages))

    def _draw(self, row: Sequence[tuple[CatalogueRow, str]]) -> tuple[list[Picture], str]:
        notes = {scan["volume_id"]: note for scan, note in row}

        def draw(scan: CatalogueRow) -> Picture:
            spec = SliceSpec(f"Mid-slice of {scan['volume_id']}", notes[scan["volume_id"]])
            return scan_picture(self.workspace.volumes, scan, self.intensity, spec)

        return draw_each(draw, [scan for scan, _ in row])


def _named(rows: Sequence[Sequence[tuple[str, str]]]) -> set[str]:
    return {name for row in rows for name, _ in row}
