"""The viewer of a scan's patterns: its greys and boxes are where the scan has them, for mouse and keyboard."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from PIL import Image
from playwright.sync_api import Browser, Page

from raygenesis import cli
from raygenesis.errors import SettingsError
from raygenesis.report.viewer import MOST_VOXELS, level_shown, mosaic, view
from raygenesis.workspace.workspace import Workspace
from tests.support.browser import browser, check, check_keyboard, needs_chromium, opened
from tests.support.workspaces import make_archive, make_discovery, settings_of

FIRST = f"{0:016x}"
SPACING = np.array([2.0, 2.0, 1.0])


@pytest.fixture(scope="module", params=[3, 2])
def workspace(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    made = Workspace.open(tmp_path_factory.mktemp("viewer") / "w")
    make_archive(made, request.param)
    make_discovery(made, settings_of(request.param))
    return made


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as started:
        yield started


def shown(page: Page) -> list[list[int]]:
    """The numbers of the boxes on each slice."""
    return page.evaluate("""[...document.querySelectorAll('figure')].map(
      figure => [...figure.querySelectorAll('rect')].map(box => Number(box.dataset.number)).sort())""")


def data_of(path: Path) -> dict[str, Any]:
    return json.loads(re.search(r'id="data">(.*?)</script>', path.read_text()).group(1))


def stored(workspace: Workspace) -> np.ndarray:
    """The scan's voxels as zarr-python reads them, as greys."""
    folder = workspace.volumes / f"{FIRST}.ome.zarr"
    return np.rint(np.asarray(zarr.open_group(str(folder), mode="r")["0"]) * 255).astype(int)


def slices_of(page: Page) -> list[np.ndarray]:
    """The greys that each canvas shows, as rows and columns."""
    images = page.evaluate("""[...document.querySelectorAll('canvas')].map(canvas => [canvas.height, canvas.width,
      [...canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data].filter((v, n) => n % 4 === 0)])
    """)
    return [np.reshape(values, (height, width)) for height, width, values in images]


def expected(workspace: Workspace, at: tuple[int, ...]) -> list[np.ndarray]:
    """The slices through a voxel: up is superior or anterior, and the patient's right is on the left."""
    voxels = stored(workspace)
    planes = [voxels] if voxels.ndim == 2 else [voxels.take(place, axis) for axis, place in enumerate(at)]
    return [plane[::-1, ::-1] for plane in planes]


def cut(data: dict[str, Any], at: tuple[int, ...]) -> list[list[int]]:
    """The patterns that the slices through a voxel cut."""

    def within(pattern: dict[str, Any], axis: int) -> bool:
        inside = (at[axis] + 0.5) * SPACING[axis] - pattern["origin_mm"][axis]
        return 0 <= inside < pattern["extent_mm"][axis]

    every = list(enumerate(data["patterns"]))
    if len(at) == 2:
        return [[number for number, _ in every]]
    return [[number for number, pattern in every if within(pattern, axis)] for axis in range(3)]


@needs_chromium
@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1440, "light")])
def test_slices_and_boxes_are_where_the_scan_has_them(
    workspace: Workspace, chromium: Browser, tmp_path: Path, width: int, scheme: str
) -> None:
    path = tmp_path / "view.html"
    assert view(workspace, FIRST, path) == 2
    data, ndim = data_of(path), stored(workspace).ndim
    with opened(chromium, path, width, scheme) as page:
        page.wait_for_selector("body[data-ready]")
        check(page, width)
        at = (12, 10, 14)[:ndim]  # the middle of 24 × 20 × 28 voxels
        for found, right in zip(slices_of(page), expected(workspace, at), strict=True):
            np.testing.assert_allclose(found, right, atol=1)
        assert shown(page) == cut(data, at)

        # The pattern of coordinate 1 spans 9 to 25 mm: its centre lies in voxel 8 (z), 8 (y) and 17 (x).
        page.locator("rect[data-number='1']").first.click(position={"x": 3, "y": 3})
        assert page.locator("#chosen").inner_text().startswith("Class 1 (reference 0, coordinate 1), the reference its")
        assert "around 17.0, 17.0" in page.locator("#chosen").inner_text()
        assert page.locator("tr[aria-current=true] td").nth(3).inner_text() == "1"
        at = (8, 8, 17)[:ndim]
        if ndim == 3:
            assert [int(slider.input_value()) for slider in page.locator("input").all()] == list(at)
            for found, right in zip(slices_of(page), expected(workspace, at), strict=True):
                np.testing.assert_allclose(found, right, atol=1)
        box = page.locator("rect.selected").first.bounding_box()
        frame = page.locator("figure svg").first.bounding_box()
        down, across = (np.array((24, 20, 28))[axis] * SPACING[axis] for axis in ((1, 2) if ndim == 3 else (0, 1)))
        assert (box["x"] - frame["x"]) / frame["width"] == pytest.approx(1 - 25 / across, abs=0.02)
        assert (box["y"] - frame["y"]) / frame["height"] == pytest.approx(1 - 25 / down, abs=0.02)
        assert box["width"] / frame["width"] == pytest.approx(16 / across, abs=0.02)


@needs_chromium
def test_the_keyboard_moves_slices_and_chooses_patterns(
    workspace: Workspace, chromium: Browser, tmp_path: Path
) -> None:
    view(workspace, FIRST, tmp_path / "view.html")
    data, ndim = data_of(tmp_path / "view.html"), stored(workspace).ndim
    with opened(chromium, tmp_path / "view.html", 1440, "dark") as page:
        page.wait_for_selector("body[data-ready]")
        check_keyboard(page)
        page.locator("td button").nth(1).focus()
        page.keyboard.press("Enter")
        assert page.locator("#chosen").inner_text().startswith("Class 1 ")
        page.get_by_role("button", name="Next pattern").focus()
        page.keyboard.press("Space")
        assert page.locator("#chosen").inner_text().startswith("Class 0 ")
        if ndim == 2:
            assert page.locator("input").count() == 0 and page.locator("figure").count() == 1
            return
        for axis, presses in ((0, 9), (2, 10)):
            page.locator("input").nth(axis).focus()
            for _ in range(presses):
                page.keyboard.press("ArrowLeft" if axis == 0 else "ArrowRight")
        at = (6 - 9 + 3, 6, 12 + 10)  # class 0 lies around 12 mm; the first slice stops at voxel 0
        assert page.locator("output").first.inner_text() == "1 of 24, 1.0 mm"
        assert shown(page) == cut(data, at) and cut(data, at)[0] == []
        for found, right in zip(slices_of(page), expected(workspace, at), strict=True):
            np.testing.assert_allclose(found, right, atol=1)


@needs_chromium
@pytest.mark.parametrize("width", [390, 1440])
def test_boxes_carry_their_class_sides_their_letters_and_what_is_chosen_is_in_sight(
    workspace: Workspace, chromium: Browser, tmp_path: Path, width: int
) -> None:
    view(workspace, FIRST, tmp_path / "view.html")
    data = data_of(tmp_path / "view.html")
    with opened(chromium, tmp_path / "view.html", width, "light") as page:
        page.wait_for_selector("body[data-ready]")
        told = page.evaluate("""[...document.querySelectorAll('svg text')].map(
          text => [Number(text.dataset.number), text.textContent])""")
        assert told and all(text == str(data["patterns"][number]["label"]) for number, text in told)
        ends = page.evaluate("""[...document.querySelectorAll('figure')].map(figure => Object.fromEntries(
          [...figure.querySelectorAll('.end')].map(end => [end.classList[1], end.textContent])))""")
        sides = ("above", "below", "left", "right")
        of = {"Axial": "APRL", "Coronal": "SIRL", "Sagittal": "SIAP"} if stored(workspace).ndim == 3 else {"Image": ""}
        assert ends == [dict(zip(sides, letters, strict=False)) for letters in of.values()]
        # From the table, what is chosen and the first slice come into sight.
        button = page.locator("td button").last
        button.scroll_into_view_if_needed()
        button.click()
        for where in ("#chosen", "figure svg"):
            box = page.locator(where).first.bounding_box()
            assert box["y"] >= 0 and box["y"] + min(box["height"], 300) <= 900


@needs_chromium
def test_a_click_beside_the_boxes_moves_the_other_slices_there(
    workspace: Workspace, chromium: Browser, tmp_path: Path
) -> None:
    view(workspace, FIRST, tmp_path / "view.html")
    with opened(chromium, tmp_path / "view.html", 1440, "light") as page:
        page.wait_for_selector("body[data-ready]")
        svg = page.locator("figure svg").first
        frame = svg.bounding_box()
        svg.click(position={"x": frame["width"] * 0.02, "y": frame["height"] * 0.02})
        if stored(workspace).ndim == 3:  # upper left of the axial slice: anterior and right
            assert [int(slider.input_value()) for slider in page.locator("input").all()] == [12, 19, 27]
        assert page.locator("#chosen").inner_text().startswith("No pattern is selected")


def test_an_unknown_scan_is_one_sentence_with_close_ids(workspace: Workspace, tmp_path: Path, capsys) -> None:
    path = tmp_path / "view.html"
    with pytest.raises(SystemExit) as ended:
        wrong = ["--volume", "000000000000004", "--output", str(path)]
        cli.main(["patterns", "view", "--workspace", str(workspace.root), *wrong])
    assert ended.value.code == 2 and not path.exists()
    said = capsys.readouterr().err
    assert said.startswith("raygenesis: --volume 000000000000004: no volume of ") and said.count("\n") == 1
    assert f"{4:016x}" in said
    with pytest.raises(SettingsError, match=rf"--volume {3:016x}: no pattern in .* such as {0:016x}, "):
        view(workspace, f"{3:016x}", path)
    with pytest.raises(SettingsError, match=r"--volume nonsense: .* there are 6, such as 0{16}, 0{15}1, 0{15}2$"):
        view(workspace, "nonsense", path)


def test_a_large_scan_is_shown_by_a_coarse_level() -> None:
    levels = [[1, 1, 1], [2, 2, 2], [4, 4, 4]]
    assert level_shown({"shape": [100, 200, 200], "levels": levels}) == 0
    assert level_shown({"shape": [300, 512, 512], "levels": levels}) == 2  # 9.8 million voxels at level 1
    assert level_shown({"shape": [2000, 2000, 2000], "levels": levels}) == 2
    assert level_shown({"shape": [5000, 4000], "levels": [[1, 1], [2, 2]]}) == 1
    assert MOST_VOXELS < 16 * 2**20  # what phones draw on one canvas


@pytest.mark.parametrize("shape", [(7, 5, 3), (1, 4, 9), (6, 8)])
def test_a_mosaic_holds_every_slice(shape: tuple[int, ...]) -> None:
    voxels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    (down, across), content = mosaic(voxels)
    sheet = np.asarray(Image.open(io.BytesIO(content)))
    height, width = shape[-2:]
    assert sheet.shape == (down * height, across * width)
    for number, image in enumerate(voxels.reshape(-1, height, width)):
        row, column = divmod(number, across)
        tile = sheet[row * height : (row + 1) * height, column * width : (column + 1) * width]
        np.testing.assert_array_equal(tile, image)
