"""LIDC-IDRI: what half of a nodule's readers have inside their outlines, on the voxels of the scan."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from scipy import ndimage

from raygenesis.archive.volume import Volume
from raygenesis.errors import ScanError
from raygenesis.transfer.examples import Example
from raygenesis.transfer.targets import lidc_outlines
from raygenesis.transfer.targets.lidc import NoduleMap, read
from tests.support.data import LIDC, needs_lidc
from tests.support.dicom_series import STUDY, series, write_all

NAME = f"CANARY-1/{STUDY}.1"
Roi = tuple[int, Sequence[tuple[int, int]], bool]


def outline(left: int, top: int, right: int, bottom: int) -> list[tuple[int, int]]:
    """Points x y along the edge of a rectangle: the pixels inside are those strictly between."""
    across, down = range(left, right), range(top, bottom)
    return [
        *((x, top) for x in across), *((right, y) for y in down),
        *((x, bottom) for x in range(right, left, -1)), *((left, y) for y in range(bottom, top, -1)),
    ]  # fmt: skip


def document(
    readers: Sequence[Sequence[Sequence[Roi]]],
    uid: str = f"{STUDY}.2.{{}}",
    root: str = "LidcReadMessage",
    z_mm: Sequence[float] = range(0, 20, 2),
) -> str:
    """What each reader marked: nodules of rois, each a slice's number, points and whether they are included."""
    sessions = ""
    for nodules in readers:
        marks = ""
        for rois in nodules:
            text = "".join(
                f"<roi><imageZposition>{z_mm[number]:.6f} </imageZposition>"
                f"<imageSOP_UID>{uid.format(number + 1)}</imageSOP_UID><inclusion>{str(included).upper()}</inclusion>"
                + "".join(f"<edgeMap><xCoord>{x}</xCoord><yCoord>{y}</yCoord></edgeMap>" for x, y in points)
                + "</roi>"
                for number, points, included in rois
            )
            marks += f"<unblindedReadNodule><noduleID>n</noduleID>{text}</unblindedReadNodule>"
        sessions += f"<readingSession>{marks}</readingSession>"
    header = f"<ResponseHeader><SeriesInstanceUid>{STUDY}.1</SeriesInstanceUid></ResponseHeader>"
    return f'<{root} xmlns="http://www.nih.gov">{header}{sessions}</{root}>'


def write(folder: Path, text: str, slices: list[Dataset] | None = None) -> None:
    write_all(folder / "scan", series() if slices is None else slices)
    (folder / "scan" / "069.xml").write_text(text)


def label_of(example: Example) -> tuple[np.ndarray, Volume]:
    image = example.image.read()
    return example.label.read(image), image


def displayed(label: np.ndarray) -> np.ndarray:
    """A canonical label of the synthetic scan as its slices are displayed: rows down, columns to the left."""
    return label[:, ::-1, ::-1]


# The real scan, one nodule of which all four readers outlined.


@pytest.fixture(scope="module")
def real() -> tuple[Example, Volume]:
    (example,) = read(LIDC).examples
    return example, example.image.read()


@needs_lidc
def test_the_real_scan_has_one_nodule_of_four_readers(real: tuple[Example, Volume]) -> None:
    target, (example, _) = read(LIDC, min_readers=4), real
    assert target.examples == (example,) and not target.problems
    assert len(example.label.marks) == 4
    assert example.subject == "LIDC-IDRI-0001" and example.split is None
    assert (target.task, target.classes, target.window) == ("segmentation", ("nodule",), (-1000.0, 1000.0))
    with pytest.raises(ScanError, match="holds no example"):
        read(LIDC, min_readers=5)


@needs_lidc
def test_the_real_nodule_is_soft_tissue_in_lung(real: tuple[Example, Volume]) -> None:
    example, image = real
    label = example.label.read(image)
    hu = image.voxels * image.slope + image.intercept
    shell = ndimage.binary_dilation(label, iterations=4) & ~ndimage.binary_dilation(label, iterations=2)
    assert np.median(hu[label == 1]) > -50 and np.median(hu[shell]) < -750
    # Moved by a voxel in any direction it would be less of a nodule.
    moved = [hu[np.roll(label, step, axis) == 1].mean() for axis in range(3) for step in (-1, 1)]
    assert hu[label == 1].mean() > max(moved)


@needs_lidc
def test_each_real_outline_encloses_its_polygon_by_picks_theorem(real: tuple[Example, Volume]) -> None:
    example, image = real
    root = ElementTree.parse(LIDC / "069.xml").getroot()
    nodules = root.findall("{*}readingSession/{*}unblindedReadNodule")
    uids = {dcmread(path, stop_before_pixels=True).SOPInstanceUID: path for path in example.image.paths}
    for mark in example.label.marks:
        label = NoduleMap(example.label.xml, (mark,), example.label.slices).read(image)
        expected = np.zeros(len(label))
        for roi in nodules[mark].findall("{*}roi"):
            x, y = (np.array([int(c.text) for c in roi.iterfind(f"{{*}}edgeMap/{{*}}{k}Coord")]) for k in "xy")
            area = abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2  # the shoelace formula
            z = dcmread(uids[roi.findtext("{*}imageSOP_UID")], stop_before_pixels=True).ImagePositionPatient[2]
            closed = len(np.unique(np.stack([x, y]), axis=1)[0])
            expected[round((z - image.affine[2, 3]) / 2.5)] = area - closed / 2 + 1
        found = label.sum((1, 2))
        assert np.flatnonzero(found).tolist() == np.flatnonzero(expected).tolist()
        np.testing.assert_allclose(found, expected, rtol=0.05, atol=5)


@needs_lidc
def test_the_real_region_is_centred_on_the_nodule(real: tuple[Example, Volume]) -> None:
    example, image = real
    places = np.argwhere(example.label.read(image))
    middle = (places.min(0) + places.max(0)) / 2
    np.testing.assert_allclose(example.region.centre_mm, (image.affine @ [*middle[::-1], 1])[:3], atol=1e-3)


# Made scans: five slices of 16 × 16 pixels of 0.75 × 0.5 mm, 2 mm apart.


def test_voxels_strictly_inside_the_outline(tmp_path: Path) -> None:
    write(tmp_path, document([[[(1, outline(3, 2, 9, 7), True), (2, outline(4, 3, 8, 6), True)]]]))
    (example,) = read(tmp_path, extent_mm=(10.0, 20.0, 20.0)).examples
    label, image = label_of(example)
    expected = np.zeros((5, 16, 16), np.uint8)
    expected[1, 3:7, 4:9] = 1
    expected[2, 4:6, 5:8] = 1
    np.testing.assert_array_equal(displayed(label), expected)
    assert example.name == f"{NAME}/nodule-1" and label.shape == image.shape
    # The first pixel lies at 10, 20, 0 mm, LPS.
    np.testing.assert_allclose(example.region.centre_mm, (-(10 + 6 * 0.75), -(20 + 4.5 * 0.5), 3.0))
    assert example.region.extent_mm == (10.0, 20.0, 20.0)


@pytest.mark.parametrize(("readers", "votes"), [(1, 1), (2, 1), (3, 2), (4, 2)])
def test_half_of_the_readers_of_a_nodule_decide(tmp_path: Path, readers: int, votes: int) -> None:
    """Reader n's square is n pixels longer than the first one's."""
    marks = [[[(2, outline(2, 2, 6 + number, 6), True)]] for number in range(readers)]
    write(tmp_path, document([*marks, *[[]] * (4 - readers)]))
    (example,) = read(tmp_path).examples
    columns = displayed(label_of(example)[0])[2].any(0)
    # Of 3, 4, … columns, the longest that `votes` readers have.
    assert columns.sum() == 3 + readers - votes
    assert len(read(tmp_path, min_readers=readers).examples) == 1
    with pytest.raises(ScanError, match="holds no example"):
        read(tmp_path, min_readers=readers + 1)


def test_outlines_that_overlap_are_of_one_nodule(tmp_path: Path) -> None:
    near, far, small = outline(1, 1, 6, 6), outline(6, 1, 11, 6), [(13, 13)]
    write(tmp_path, document([
        [[(1, near, True)], [(1, far, True)], [(3, small, True)]], [[(1, far, True)]],
        [[(2, near, True)]], [[(1, near, True), (2, near, True)]],
    ]))  # fmt: skip
    target = read(tmp_path)
    assert [example.name for example in target.examples] == [f"{NAME}/nodule-1", f"{NAME}/nodule-2"]
    # Marks 0, 4 and 5 hang together by the last, whose slices are those of both others.
    assert [example.label.marks for example in target.examples] == [(0, 4, 5), (1, 3)]
    assert not target.problems  # a point marks a nodule below 3 mm


def test_a_hole_is_left_out(tmp_path: Path) -> None:
    write(tmp_path, document([[[(2, outline(2, 2, 12, 12), True), (2, outline(5, 5, 8, 8), False)]]]))
    label = displayed(label_of(read(tmp_path).examples[0])[0])[2]
    assert label.sum() == 9 * 9 - 2 * 2
    assert not label[6:8, 6:8].any() and label[5, 5]


def test_slices_are_found_by_place_where_their_uids_are_others(tmp_path: Path) -> None:
    rois = [[[(1, outline(3, 2, 9, 7), True)]]]
    write(tmp_path, document(rois))
    expected = label_of(read(tmp_path).examples[0])[0]
    for uid in ("9.9.{}", ""):
        (tmp_path / "scan" / "069.xml").write_text(document(rois, uid))
        np.testing.assert_array_equal(label_of(read(tmp_path).examples[0])[0], expected)


def test_a_scan_of_a_patient_on_the_belly(tmp_path: Path) -> None:
    prone = series(ImageOrientationPatient=[-1, 0, 0, 0, -1, 0])
    write(tmp_path, document([[[(1, outline(3, 2, 9, 7), True)]]]), prone)
    label, _ = label_of(read(tmp_path).examples[0])
    assert label[1, 3:7, 4:9].all() and label.sum() == 4 * 5


def test_no_slice_of_an_image_laid_out_evenly_is_missed(tmp_path: Path) -> None:
    """The scanner's slices lie 2.5 mm apart round the nodule, and the image's 2.1 mm."""
    z_mm = np.cumsum([0, *[1.8] * 6, *[2.5] * 5]).tolist()
    slices = series(np.random.default_rng(0).integers(0, 99, (12, 16, 16)).astype(np.uint16))
    for one, z in zip(slices, z_mm, strict=True):
        one.ImagePositionPatient = [10, 20, z]
    write(tmp_path, document([[[(n, outline(3, 2, 9, 7), True) for n in range(7, 11)]]], z_mm=z_mm), slices)
    label, image = label_of(read(tmp_path).examples[0])
    filled = image.affine[2, 3] + image.affine[2, 2] * np.flatnonzero(label.any((1, 2)))
    assert image.spacing_mm[0] < 2.2 and np.diff(filled).max() == pytest.approx(image.spacing_mm[0])
    assert abs(filled[0] - z_mm[7]) <= 1.25 and abs(filled[-1] - z_mm[10]) <= 1.25


def test_what_cannot_be_used_is_said(tmp_path: Path) -> None:
    write(tmp_path, document([[[(1, outline(3, 2, 9, 7), True)], [(2, [(3, 3), (4, 4)], True)]]]))
    write_all(tmp_path / "other", series(SeriesInstanceUID=f"{STUDY}.9"))
    write_all(tmp_path / "copy", series())
    write_all(tmp_path / "film", series(SeriesInstanceUID=f"{STUDY}.8", Modality="DX", ImagePositionPatient=None)[:1])
    write_all(tmp_path / "upright", series(SeriesInstanceUID=f"{STUDY}.7", ImageOrientationPatient=[1, 0, 0, 0, 0, -1]))
    (tmp_path / "second.xml").write_text(document([]))
    (tmp_path / "lost.xml").write_text(document([]).replace(f"{STUDY}.1<", "1.2.3<"))
    (tmp_path / "film.xml").write_text(document([], root="IdriReadMessage"))
    (tmp_path / "cut.xml").write_text(document([])[:-9])
    (tmp_path / "word.xml").write_text(document([[[(1, outline(3, 2, 9, 7), True)]]]).replace(">9<", ">nine<", 1))
    target = read(tmp_path)
    assert [example.name for example in target.examples] == [f"{NAME}/nodule-1"]
    problems = {problem.name: problem.reason for problem in target.problems}
    assert problems.pop("cut.xml").startswith("not readable as XML")
    assert problems == {
        f"{NAME}/mark-1": "a reader's outline that encloses no voxel",
        "other": "no readers' document is about it",
        "scan": "its series lies in copy too",
        "film": "a film and no CT",
        "upright": "its slices are not axial, or have no place",
        "second.xml": "scan/069.xml is about the same series",
        "lost.xml": "series 1.2.3, which it is about, is not there",
        "film.xml": "not the readers' document of a CT (a LidcReadMessage that names a series)",
        "word.xml": "an outline lacks its place, or holds what is no number",
    }


@pytest.mark.parametrize("uid", ["../../../../ESCAPED", "/ESCAPED", "..", "1.2\\..", "1.2\x1b[2J"])
def test_a_series_that_could_lead_out_of_a_folder_is_a_problem(tmp_path: Path, uid: str) -> None:
    write(tmp_path, document([[[(1, outline(3, 2, 9, 7), True)]]]))
    write_all(tmp_path / "attack", series(SeriesInstanceUID=uid))
    text = document([[[(1, outline(3, 2, 9, 7), True)]]]).replace(f"{STUDY}.1<", f"{uid.replace(chr(27), '&#9;')}<")
    (tmp_path / "attack" / "1.xml").write_text(text)
    target = read(tmp_path)
    assert [example.name for example in target.examples] == [f"{NAME}/nodule-1"]
    problems = {problem.name: problem.reason for problem in target.problems}
    assert problems["attack"] == "its series has other characters than letters, digits, '.', '_' and '-'"
    assert "is not there" in problems["attack/1.xml"] and problems["attack/1.xml"].isprintable()


def test_a_scan_without_a_nodule_is_said(tmp_path: Path) -> None:
    write(tmp_path, document([[[(1, [(3, 3)], True)]], [], [], []]))
    with pytest.raises(ScanError, match="no reader outlined a nodule of 3 mm or more"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("points", "reason"),
    [
        (outline(10, 10, 30, 30), "leaves the 16×16 pixels of its series"),
        ([(0, 0), (65535, 0), (0, 65535)], "leaves the 16×16 pixels of its series"),
        ([(0, 0), (10**30, 0), (0, 1)], "leaves the 16×16 pixels of its series"),
        ([(0, 0), ("1" * 5000, 0), (0, 1)], "is no number"),
        ([(0, 0), (-1, 0), (0, 1)], "leaves the 16×16 pixels of its series"),
    ],
)
def test_an_outline_beyond_the_matrix_takes_no_memory(
    tmp_path: Path, points: list[tuple[int, int]], reason: str
) -> None:
    """Drawn, the second would take 80 GiB."""
    write(tmp_path, document([[[(1, points, True)]]]))
    with pytest.raises(ScanError, match=reason):
        read(tmp_path)


def test_a_document_of_more_than_a_reader_draws_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = [(1, outline(0, 0, 15, 15), True)]
    write(tmp_path, document([[whole] * 5]))
    assert len(read(tmp_path).examples) == 1
    for name, most in (("MAX_VOXELS", 14 * 14 * 5 - 1), ("MAX_MARKS", 4), ("MAX_BYTES", 1000)):
        with monkeypatch.context() as patch:
            patch.setattr(lidc_outlines, name, most)
            with pytest.raises(ScanError, match="not the readers' document of a CT"):
                read(tmp_path)


def test_what_is_no_regular_file_is_passed_by(tmp_path: Path) -> None:
    """Opening a pipe would wait for ever."""
    write(tmp_path, document([[[(1, outline(3, 2, 9, 7), True)]]]))
    for name in ("a.dcm", "a.xml"):
        os.mkfifo(tmp_path / "scan" / name)
    assert len(read(tmp_path).examples) == 1


def test_an_outline_on_no_slice_is_refused(tmp_path: Path) -> None:
    write(tmp_path, document([[[(7, outline(3, 2, 9, 7), True)]]]))
    (example,) = read(tmp_path).examples
    with pytest.raises(ScanError, match="no such slice"):
        label_of(example)
