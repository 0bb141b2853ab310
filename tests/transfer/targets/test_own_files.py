"""Users' own images with label maps or a table: what is an example, and every reason why something is none."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raygenesis.errors import ScanError, SettingsError
from raygenesis.transfer.examples import Target
from raygenesis.transfer.targets.csv_tables import named_rows
from raygenesis.transfer.targets.own_files import Columns, OwnFiles, read_label_maps, read_table
from tests.support.cases import write_nifti
from tests.support.data import HIPPOCAMPI, needs_hippocampi
from tests.support.dicom_series import STUDY, series, write_all

# Only names are looked at: nothing is decoded here.
CONTENT = b"never decoded"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    return tmp_path


def put(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(CONTENT)


def write_series(folder: Path, number: int, patient: str) -> None:
    folder.mkdir(parents=True)
    slices = series(PatientID=patient, SeriesInstanceUID=f"{STUDY}.9.{number}")
    for one in slices:
        one.SOPInstanceUID += f".{number}"
    write_all(folder, slices)


def maps(folder: Path, pattern: str | None = None, **options: Any) -> Target:
    files = OwnFiles("segmentation", folder / "images", folder / "labels", subject_pattern=pattern, **options)
    return read_label_maps(files)


def table(folder: Path, text: str | bytes, task: str = "classification", **options: Any) -> Target:
    content = text.encode() if isinstance(text, str) else text
    (folder / "labels.csv").write_bytes(content)
    names = {name: options.pop(f"{name}_column", usual) for name, usual in
             (("key", "image"), ("value", "value"), ("subject", None))}  # fmt: skip
    return read_table(OwnFiles(task, folder / "images", folder / "labels.csv", **options), Columns(**names))


def values(target: Target) -> dict[str, Any]:
    return {example.name: example.value for example in target.examples}


def reasons(target: Target) -> dict[str, str]:
    return {problem.name: problem.reason for problem in target.problems}


def test_images_and_label_maps_meet_by_their_paths(folder: Path) -> None:
    put(folder, "images/sub-1_T1w.nii.gz", "images/more/sub-2_T1w.nii.gz", "images/c.nii")
    put(folder, "labels/sub-1_T1w.nii.gz", "labels/more/sub-2_T1w.nii.gz", "labels/c.nii", "labels/._sub-9.nii.gz")
    target = maps(folder, classes=["left", 2])
    assert [(example.name, example.subject) for example in target.examples] == [
        ("c.nii", "c"), ("more/sub-2_T1w.nii.gz", "sub-2"), ("sub-1_T1w.nii.gz", "sub-1"),
    ]  # fmt: skip
    assert target.examples[1].image.paths == (folder / "images/more/sub-2_T1w.nii.gz",)
    assert target.examples[1].label.path == folder / "labels/more/sub-2_T1w.nii.gz"
    assert (target.task, target.classes, target.problems) == ("segmentation", ("left", "2"), ())
    put(folder, "images/xsub-3x.nii", "labels/xsub-3x.nii")
    assert {example.subject for example in maps(folder, r"sub-(\d)").examples} == {"1", "2", "3", "c"}


def test_what_has_no_partner_is_left_out_and_named(folder: Path) -> None:
    put(folder, "images/a.nii", "images/b.nii", "labels/a.nii", "labels/c.nii")
    target = maps(folder)
    assert [example.name for example in target.examples] == ["a.nii"]
    assert reasons(target)["b.nii"] == "an image without a label map"
    assert reasons(target)["c.nii"] == "a label map without an image: images/c.nii is not there"


def test_files_that_are_not_followed_say_why(folder: Path) -> None:
    put(folder, "images/a.nii", "labels/a.nii", "labels/b.nii", "images/c.nii", "elsewhere/b.nii", "images/d.hdr")
    for link in ("images/b.nii", "labels/c.nii"):
        (folder / link).symlink_to(folder / "elsewhere/b.nii")
    found = reasons(maps(folder))
    assert "leads out" in found["b.nii"] and "leads out" in found["c.nii"] and "save each as" in found["d.hdr"]
    for name in ("images/a.nii", "images/c.nii"):
        (folder / name).unlink()
    with pytest.raises(ScanError, match=r"none of the files in images folder .* the first, b\.nii: a link that leads"):
        maps(folder)


def test_an_image_in_two_files_has_both(folder: Path) -> None:
    header = "ObjectType = Image\nNDims = 3\nDimSize = 2 2 2\nElementType = MET_UCHAR\nElementDataFile = a.raw\n"
    for name in ("images", "labels"):
        (folder / name / "a.mhd").write_text(header)
        (folder / name / "a.raw").write_bytes(bytes(range(8)))
    (example,) = maps(folder).examples
    assert {path.name for path in example.image.paths} == {"a.mhd", "a.raw"}
    assert np.array_equal(np.sort(example.label.read(example.image.read()), None), np.arange(8))


@pytest.mark.parametrize("missing", ["images", "labels"])
def test_a_folder_that_is_not_there_is_named(folder: Path, missing: str) -> None:
    put(folder, "images/a.nii", "labels/a.nii")
    (folder / missing / "a.nii").unlink()
    (folder / missing).rmdir()
    with pytest.raises(ScanError, match=f"^{missing} folder {folder}/{missing} does not exist .* check `{missing}`$"):
        maps(folder)


def test_no_pair_at_all_is_one_sentence(folder: Path) -> None:
    put(folder, "images/a.nii", "labels/b.nii")
    with pytest.raises(ScanError, match=r"^no label map in .*labels has an image of the same name in .*images$"):
        maps(folder)


def test_rows_name_images_by_path_name_stem_or_subject(folder: Path) -> None:
    put(folder, "images/x/a.nii.gz", "images/b.png", "images/c.nii", "images/p-04-T1.nii")
    rows = "image,value\nx/a.nii.gz,yes\nb,no\nc.nii,no\n04,yes\n"
    target = table(folder, rows, subject_pattern=r"p-(\d\d)")
    assert target.classes == ("no", "yes") and not target.problems
    assert values(target) == {"x/a.nii.gz": 1, "b.png": 0, "c.nii": 0, "p-04-T1.nii": 1}
    assert {example.subject for example in target.examples} == {"x/a", "b", "c", "04"}


@pytest.mark.parametrize("encoded", [
    "\ufeffimage,value\na,1\nb,0\n".encode(), b" image , value \r\n a , 1 \r\n b ,0\r\n\r\n",
    b'image,more,value\n"a","x, y",1\nb,,0\n', b"value,image\n1,a\n0,b",
])  # fmt: skip
def test_a_table_as_spreadsheets_write_it(folder: Path, encoded: bytes) -> None:
    put(folder, "images/a.nii", "images/b.nii")
    target = table(folder, encoded)
    assert values(target) == {"a.nii": 1, "b.nii": 0} and not target.problems


def test_every_row_and_image_that_is_no_example_says_why(folder: Path) -> None:
    put(folder, *(f"images/{name}.nii" for name in "abcdegh"), "images/x/h.nii")
    rows = "image,value\na,no\nb,yes\nc,maybe\nd,\nf,yes\n,no\na.nii,yes\nb,yes\nh,no\nshort\n"
    target = table(folder, rows, classes=["no", "yes"])
    assert values(target) == {"a.nii": 0, "b.nii": 1}
    assert reasons(target) == {
        "c": "the unknown class 'maybe': known are no, yes", "d": "it has no value", "f": "a label without an image",
        "(no name)": "a label without an image", "a.nii": "named twice", "b": "named twice",
        "h": "its name fits 2 images, h.nii and x/h.nii among them", "short": "a label without an image",
        **{f"{name}.nii": "an image without a row in labels.csv" for name in ("c", "d", "e", "g", "h", "x/h")}
    }  # fmt: skip


def test_numbers_must_be_numbers(folder: Path) -> None:
    put(folder, *(f"images/{name}.nii" for name in "abcd"))
    target = table(folder, "image,value\na,-1.5e1\nb,12 years\nc,nan\nd,inf\n", "regression")
    assert values(target) == {"a.nii": -15.0} and target.classes == ()
    found = reasons(target)
    assert found["b"] == "'12 years' is not a number" and found["c"] == "'nan' is not a finite number"
    assert found["d"] == "'inf' is not a finite number"


def test_subjects_come_from_their_column(folder: Path) -> None:
    put(folder, *(f"images/{name}.nii" for name in "abc"))
    target = table(folder, "image,value,who\na,0,Ann\nb,1,Ann\nc,1,\n", subject_column="who")
    assert [example.subject for example in target.examples] == ["Ann", "Ann"]
    assert reasons(target)["c"] == "it has no 'who'"


@pytest.mark.parametrize(("rows", "said"), [
    ("image,label\na,1\n", "labels.csv has no column 'value': it has image, label"),
    ("", "labels.csv has no column 'image': it has none"),
    ("image,value\nz,1\ny,0\n", "no row of .*labels.csv gives an example: z: a label without an image"),
    ("image,value\n", "no row of .*labels.csv gives an example$"),
    (b"\xff\xfei\x00", "labels.csv cannot be read as a table"),
])  # fmt: skip
def test_a_table_that_is_none_is_one_sentence(folder: Path, rows: str | bytes, said: str) -> None:
    put(folder, "images/a.nii")
    with pytest.raises(ScanError, match=said) as error:
        table(folder, rows)
    assert "\n" not in str(error.value)


def test_a_table_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ScanError, match=r"no\.csv does not exist: put the table there"):
        named_rows(tmp_path / "no.csv", ["image"])


def test_classes_are_at_least_two_and_not_as_many_as_numbers(folder: Path) -> None:
    put(folder, *(f"images/{n}.nii" for n in range(101)))
    with pytest.raises(SettingsError, match=r"column 'value' holds only 'yes': there must be two classes"):
        table(folder, "image,value\n1,yes\n2,yes\n")
    with pytest.raises(SettingsError, match=r"holds 101 different values: give `task: regression`, or `classes`"):
        table(folder, "image,value\n" + "".join(f"{n},{n}\n" for n in range(101)))


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=5), min_size=2, max_size=2))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50)
def test_rows_are_what_the_csv_module_wrote(tmp_path: Path, cells: list[str]) -> None:
    text = io.StringIO()
    csv.writer(text).writerows([["image", "value"], cells])
    (tmp_path / "t.csv").write_text(text.getvalue(), newline="")
    (row,) = named_rows(tmp_path / "t.csv", ["image", "value"])
    assert list(row.values()) == [cell.strip() for cell in cells]


def test_a_list_says_who_learns_and_who_tests(folder: Path) -> None:
    put(folder, *(f"{kind}/{name}.nii" for kind in ("images", "labels") for name in "abcd"))
    split = folder / "split.csv"
    split.write_text("subject,split\na,train\nb,test\nc,validation\n")
    target = maps(folder, split=split)
    assert {example.name: example.split for example in target.examples} == {
        "a.nii": "train", "b.nii": "test", "c.nii": "validation",
    }  # fmt: skip
    assert reasons(target) == {"d.nii": "its subject is not in split.csv"}
    assert [e.split for e in table(folder, "image,value\na,0\nb,1\n", split=split).examples] == ["train", "test"]


@pytest.mark.parametrize(("rows", "said"), [
    ("subject,split\na,training\n", "split.csv: subject a is in 'training': use train, validation or test"),
    ("subject,split\na,train\na,test\n", "split.csv: subject a is in two splits: leave one out"),
    ("subject,split\nx,train\ny,test\n", "split.csv names none of the subjects, such as 'a': it names x, y"),
    ("subject,split\n", "split.csv names none of the subjects, such as 'a': it names nobody"),
    ("subject,split\na,train\nb,train\n", "split.csv leaves 2 examples to learn from and 0 to test on"),
    ("subject,split\na,test\nb,validation\n", "split.csv leaves 0 examples to learn from and 1 to test on"),
    ("subject\na\n", "split.csv has no column 'split': it has subject"),
])  # fmt: skip
def test_a_faulty_list_is_one_sentence(folder: Path, rows: str, said: str) -> None:
    put(folder, *(f"{kind}/{name}.nii" for kind in ("images", "labels") for name in "ab"))
    (folder / "split.csv").write_text(rows)
    with pytest.raises(ScanError, match=said):
        maps(folder, split=folder / "split.csv")


def test_label_maps_are_read_beside_their_images(folder: Path) -> None:
    label = np.zeros((4, 5, 6), np.uint8)
    label[1, 2, 3] = 2
    write_nifti(folder / "images/a.nii.gz", np.arange(120, dtype=np.int16).reshape(4, 5, 6))
    write_nifti(folder / "labels/a.nii.gz", label)
    (example,) = maps(folder).examples
    assert np.array_equal(example.label.read(example.image.read()), label.T)


@needs_hippocampi
def test_real_hippocampi_are_one_example_a_subject() -> None:
    target = read_label_maps(OwnFiles("segmentation", HIPPOCAMPI / "images", HIPPOCAMPI / "labels"))
    assert len(target.examples) == len({example.subject for example in target.examples}) == 170
    assert not target.problems


def test_a_label_map_may_have_another_ending_and_a_series_goes_by_its_folder(folder: Path) -> None:
    put(folder, "images/a.nii.gz", "images/b.nii", "labels/a.nii", "labels/b.nii", "labels/b.nii.gz")
    write_series(folder / "images" / "p1" / "ct", 1, "DOE")
    put(folder, "labels/p1/ct.nii.gz")
    target = maps(folder)
    assert {example.name.rpartition("/")[0] or example.name for example in target.examples} == {
        "a.nii.gz", "b.nii", "p1/ct",
    }  # fmt: skip
    ct = next(example for example in target.examples if example.name.startswith("p1"))
    assert ct.subject == "DOE" and len(ct.image.paths) == 5
    assert reasons(target) == {"b.nii.gz": "another label map is of the same image"}


def test_two_series_of_a_patient_are_one_subject_who_may_be_named_by_the_patients_id(folder: Path) -> None:
    for number, (name, patient) in enumerate((("one", "DOE"), ("two", "DOE"), ("three", "ROE"))):
        write_series(folder / "images" / name, number, patient)
    target = table(folder, "image,value\none,ill\ntwo,ill\nROE,well\n")
    assert [example.subject for example in target.examples] == ["DOE", "DOE", "ROE"]
