"""One scan's nearest scans: lines for a terminal, and a self-contained page with their mid-slices."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from raygenesis.discovery.groups import NO_GROUP
from raygenesis.discovery.neighbour_table import part_paths, read_part
from raygenesis.discovery.scan_table import read_scans
from raygenesis.errors import SettingsError
from raygenesis.report.galleries import in_rows
from raygenesis.report.groups import ScanPainter
from raygenesis.report.page import render
from raygenesis.settings import IntensitySettings
from raygenesis.text.tables import aligned
from raygenesis.workspace.artifacts import NEIGHBOURS
from raygenesis.workspace.files import Place, publish
from raygenesis.workspace.workspace import Workspace

NUM_SHOWN = 10
HEADER = ("rank", "scan", "distance", "group", "is")


def show_nearest(workspace: Workspace, volume_id: str, k: int | None = None, output: Path | None = None) -> list[str]:
    """Lines about a scan and its k nearest scans; with `output`, a page with their mid-slices too.

    k: NUM_SHOWN, or as many as are kept, when None. Raises SettingsError for a scan that is not in the table, or more
    neighbours than are kept.
    """
    folder = workspace.neighbours
    kept = NEIGHBOURS.require(folder).settings["index"]["num_neighbours"]
    k = min(NUM_SHOWN, kept) if k is None else k
    if k > kept:
        raise SettingsError(
            f"--k {k} is more than the {kept} nearest scans that are kept (index.num_neighbours): lower it"
        )
    names, distances = _row(folder, volume_id)
    wanted = [volume_id, *names[:k]]
    scans = read_scans(folder)
    known = {row["volume_id"]: row for row in scans.filter(pc.is_in(scans["volume_id"], pa.array(wanted))).to_pylist()}
    rows = []
    for rank, (name, distance) in enumerate(zip(wanted, [0.0, *distances], strict=False)):
        facts = known.get(name)
        group = str(facts["group"]) if facts and facts["group"] != NO_GROUP else "none"
        rows.append((str(rank or "itself"), name, f"{distance:.4g}", group, _facts(facts)))
    if output is not None:
        notes = [(name, f"{rank}, distance {distance}: {name}") for rank, name, distance, *_ in rows]
        pictures = ScanPainter(workspace, IntensitySettings()).gallery("Nearest scans", in_rows(notes))
        _write(
            output,
            render("nearest.html.j2", {"volume_id": volume_id, "header": HEADER, "rows": rows, "pictures": pictures}),
        )
    return [*aligned([HEADER, *rows]), *([] if output is None else [f"→ {output}"])]


def _row(folder: Place, volume_id: str) -> tuple[list[str], list[float]]:
    """The ids of a scan's neighbours, and their distances."""
    ids: list[str] = []
    for path in part_paths(folder):
        table = read_part(path)
        found = table.filter(pc.equal(table["volume_id"], volume_id))
        if found.num_rows:
            row = found.to_pylist()[0]
            return row["neighbours"], row["distances"]
        ids += table["volume_id"].to_pylist()
    others = difflib.get_close_matches(volume_id, ids, n=3) or ids[:3]
    raise SettingsError(
        f"--volume {volume_id}: no scan in {folder} is called that; there are {len(ids)}, such as {', '.join(others)}"
    )


def _facts(facts: Mapping[str, Any] | None) -> str:
    if facts is None:
        return "no longer in the archive"
    if facts["duplicate_of"]:
        return f"a copy of {facts['duplicate_of']}"
    return "an outlier" if facts["is_outlier"] else ""


def _write(path: Path, page: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"--output {path} cannot be written ({error.strerror}): give another name") from None
    publish(path, lambda aside: aside.write_text(page, encoding="utf-8"))
