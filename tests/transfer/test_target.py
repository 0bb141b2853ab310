"""Labelled scans: found, drawn without leaking, and read onto one grid."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pyarrow as pa
import pytest

from raygenesis.archive.catalogue import CATALOGUE, held_out_subjects, read_catalogue
from raygenesis.archive.identity import open_identity
from raygenesis.archive.intake import file_fingerprint
from raygenesis.config import IntensitySettings, Settings
from raygenesis.errors import ScanError, SettingsError
from raygenesis.patterns.schema import PATTERN
from raygenesis.patterns.writer import part_path
from raygenesis.settings import settings_from
from raygenesis.transfer.target import (
    LabelledScan,
    check_classes,
    common_spacing,
    find_labelled,
    pretrained_on,
    read_case,
    split_scans,
)
from raygenesis.workspace import Workspace, write_json, write_table
from tests.data import HIPPOCAMPI, needs_hippocampi

BRIGHTNESS = IntensitySettings(window=(0.0, 100.0))


def write(path: Path, voxels: np.ndarray, spacing: tuple[float, ...] = (1, 1, 1), affine: np.ndarray | None = None):
    """Voxels [x, y, z] with axes towards right, anterior and superior, or as `affine` says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([*spacing, 1.0]) if affine is None else affine), path)


def write_pair(folder: Path, image: np.ndarray, label: np.ndarray, **where) -> LabelledScan:
    write(folder / "images" / "a.nii.gz", image, **where)
    write(folder / "labels" / "a.nii.gz", label, **where)
    return LabelledScan("a.nii.gz", "a", folder / "images" / "a.nii.gz", folder / "labels" / "a.nii.gz")


def ball(shape: tuple[int, ...] = (12, 10, 8)) -> tuple[np.ndarray, np.ndarray]:
    """An off-centre bright box, 80 on 20, and its label."""
    label = np.zeros(shape, np.uint8)
    label[2:8, 4:8, 2:4] = 1
    return np.where(label, 80, 20).astype(np.int16), label


def scans_of(subjects: dict[str, int]) -> list[LabelledScan]:
    return [
        LabelledScan(f"{subject}-{n}.nii.gz", subject, Path("i"), Path("l"))
        for subject, count in subjects.items()
        for n in range(count)
    ]


def settings(seed: int = 0, **finetune) -> Settings:
    chosen = {"num_labelled": 3, "num_test": 4, "num_trials": 3, **finetune}
    return settings_from({"seed": seed, "finetune": chosen})


def test_images_without_a_label_are_left_out_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image, label = ball()
    for name in ("sub-1_T1w.nii.gz", "more/sub-2_T1w.nii.gz", "sub-3_T1w.nii.gz"):
        write(tmp_path / "images" / name, image)
    for name in ("sub-1_T1w.nii.gz", "more/sub-2_T1w.nii.gz"):
        write(tmp_path / "labels" / name, label)
    (tmp_path / "labels" / "._sub-9.nii.gz").write_bytes(b"left by a Mac")
    found = find_labelled(tmp_path / "images", tmp_path / "labels", None)
    assert [scan.subject for scan in found] == ["sub-2", "sub-1"]
    assert all(scan.image.is_file() and scan.label.is_file() for scan in found)
    assert "1 of 3 images have no label map" in capsys.readouterr().out
    named = find_labelled(tmp_path / "images", tmp_path / "labels", r"sub-(\d)")
    assert [scan.subject for scan in named] == ["2", "1"]


def test_a_label_without_an_image_is_named(tmp_path: Path) -> None:
    image, label = ball()
    write(tmp_path / "images" / "a.nii.gz", image)
    for name in ("a.nii.gz", "b.nii.gz", "c.nii.gz"):
        write(tmp_path / "labels" / name, label)
    with pytest.raises(ScanError, match=r"2 of 3 label maps .* have no image .*b\.nii\.gz the first"):
        find_labelled(tmp_path / "images", tmp_path / "labels", None)


def test_the_split_is_by_subject_seeded_and_the_same_for_every_trial() -> None:
    scans = scans_of({f"s{n:02d}": 1 + n % 2 for n in range(12)})
    split = split_scans(scans, set(), settings())
    assert split == split_scans(scans, set(), settings())
    assert split != split_scans(scans, set(), settings(seed=1))
    tested = {scan.subject for scan in split.test}
    assert len(tested) == 4 and split.num_pool_subjects == 8
    for trial in split.trials:
        learnt = {scan.subject for scan in trial.labelled}
        assert len(learnt) == 3 and not learnt & tested
        assert len(trial.labelled) == sum(scan.subject in learnt for scan in scans)  # all scans of a subject
    assert len({trial.labelled for trial in split.trials}) > 1
    assert len({trial.seed for trial in split.trials}) == 3
    used = {*split.test, *(scan for trial in split.trials for scan in trial.labelled)}
    assert set(split.scans) == used and len(split.scans) == len(used)


def test_more_trials_leave_the_first_ones_as_they_were() -> None:
    scans = scans_of({f"s{n:02d}": 1 for n in range(12)})
    few, many = (split_scans(scans, set(), settings(num_trials=n)) for n in (2, 5))
    assert many.trials[:2] == few.trials and many.test == few.test


def test_subjects_seen_in_pretraining_are_learnt_from_and_never_tested_on() -> None:
    subjects = [f"s{n:02d}" for n in range(12)]
    seen = set(subjects[:9])
    for seed in range(5):
        split = split_scans(scans_of(dict.fromkeys(subjects, 1)), seen, settings(seed))
        assert {scan.subject for scan in split.test} == set(subjects[9:])  # num_test=4 is an upper bound
        assert split.num_pool_subjects == 9


@pytest.mark.parametrize(("num_subjects", "num_seen"), [(12, 11), (4, 0), (3, 0)])
def test_too_few_subjects_is_one_sentence(num_subjects: int, num_seen: int) -> None:
    subjects = [f"s{n:02d}" for n in range(num_subjects)]
    with pytest.raises(SettingsError) as error:
        split_scans(scans_of(dict.fromkeys(subjects, 1)), set(subjects[:num_seen]), settings())
    said = str(error.value)
    assert "finetune.num_labelled=3 and finetune.num_test=4" in said
    assert f"{num_subjects} labelled subjects, {num_subjects - num_seen} of them unseen" in said


def test_five_subjects_are_enough_for_three_labelled_and_two_tested() -> None:
    split = split_scans(scans_of({f"s{n}": 1 for n in range(5)}), set(), settings())
    assert len(split.test) == 2 and split.num_pool_subjects == 3


@pytest.fixture
def archive(tmp_path: Path) -> tuple[Workspace, list[LabelledScan]]:
    """Ten scans, eight of which the archive holds (under other paths and subject names)."""
    image, label = ball()
    for n in range(10):
        write(tmp_path / "images" / f"t{n}.nii", image + np.int16(n))  # all of one size
        write(tmp_path / "labels" / f"t{n}.nii", label)
    scans = find_labelled(tmp_path / "images", tmp_path / "labels", None)
    workspace = Workspace.open(tmp_path / "workspace")
    rows = [
        {"volume_id": file_fingerprint(scan.image), "subject_id": f"sub-{scan.subject}", "source": f"x/{scan.name}",
         "source_bytes": scan.image.stat().st_size}
        for scan in scans[:8]
    ]  # fmt: skip
    workspace.archive.mkdir(parents=True)
    open_identity(workspace, keep_ids=False)
    write_table(workspace.catalog, pa.Table.from_pylist(rows, CATALOGUE))
    return workspace, scans


def test_files_of_the_archives_training_split_are_recognised_by_their_bytes(archive) -> None:
    workspace, scans = archive
    held_out = held_out_subjects(read_catalogue(workspace.catalog), 0.25, seed=4)
    tree = settings_from({"seed": 4, "validation_fraction": 0.25})
    expected = {f"t{n}" for n in range(8)} - {subject.removeprefix("sub-") for subject in held_out}
    assert len(expected) == 6
    assert pretrained_on(scans, workspace, tree) == expected


@pytest.mark.parametrize("keep_ids", [False, True])
def test_another_scan_of_a_training_subject_is_recognised_by_the_name(archive, keep_ids: bool) -> None:
    """Also where the archive holds a keyed hash of it; under another key nobody is recognised."""
    workspace, scans = archive
    identity = open_identity(workspace, keep_ids)
    rows = read_catalogue(workspace.catalog)
    changed = [{**row, "subject_id": identity.subject(row["subject_id"].removeprefix("sub-")), "source_bytes": -1}
               for row in rows]  # fmt: skip
    write_table(workspace.catalog, pa.Table.from_pylist(changed, CATALOGUE))
    tree = settings_from({"seed": 4, "validation_fraction": 0.25, "archive": {"keep_ids": keep_ids}})
    seen = pretrained_on(scans, workspace, tree)
    held_out = held_out_subjects(changed, 0.25, seed=4)
    assert {identity.subject(name) for name in seen} == {row["subject_id"] for row in changed} - held_out
    assert len(seen) == 6
    (workspace.private / "key").write_text("00" * 32)
    assert len(pretrained_on(scans, workspace, tree)) == (6 if keep_ids else 0)


def test_what_the_pattern_store_holds_counts_as_seen_even_if_the_seed_has_changed(archive) -> None:
    workspace, scans = archive
    tree = settings_from({"validation_fraction": 0.25})
    seen = pretrained_on(scans, workspace, tree)
    held_out = [n for n in range(8) if f"t{n}" not in seen]
    ids = [file_fingerprint(scans[n].image) for n in held_out]
    workspace.patterns.mkdir()
    rows = [{"split": split, "volume_id": i} for split, i in zip(("training", "validation"), ids, strict=True)]
    write_table(part_path(workspace.patterns, 0), pa.Table.from_pylist(rows, PATTERN))
    write_json(workspace.patterns / "manifest.json", {"counts": {"parts": 1}})
    assert pretrained_on(scans, workspace, tree) == seen | {f"t{held_out[0]}"}


def test_a_case_keeps_axes_z_y_x_and_its_values(tmp_path: Path) -> None:
    image, label = ball()
    case, values = read_case(write_pair(tmp_path, image, label), (1, 1, 1), (8, 8, 8), BRIGHTNESS)
    assert case.image.shape == case.label.shape == (8, 10, 12)
    assert case.image.dtype == np.float32 and case.label.dtype == np.uint8 and values == [0, 1]
    assert np.array_equal(case.label, label.T)
    assert np.allclose(case.image, image.T / 100, atol=1e-6)


def test_any_orientation_gives_the_same_case(tmp_path: Path) -> None:
    image, label = ball()
    expected, _ = read_case(write_pair(tmp_path / "ras", image, label), (1, 1, 1), (8, 8, 8), BRIGHTNESS)
    turned = np.array([[0, 0, 1, 0], [-1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1.0]])
    source = nibabel.Nifti1Image(image, np.eye(4))
    ornt = nibabel.orientations.ornt_transform(
        nibabel.orientations.io_orientation(source.affine), nibabel.orientations.io_orientation(turned)
    )
    affine = source.as_reoriented(ornt).affine
    pair = [nibabel.Nifti1Image(array.astype(np.int16), np.eye(4)).as_reoriented(ornt) for array in (image, label)]
    scan = write_pair(tmp_path / "turned", *(np.asarray(one.dataobj) for one in pair), affine=affine)
    case, _ = read_case(scan, (1, 1, 1), (8, 8, 8), BRIGHTNESS)
    assert np.array_equal(case.label, expected.label) and np.allclose(case.image, expected.image)


@pytest.mark.parametrize("spacing", [(0.5, 0.5, 0.5), (2.0, 2.0, 2.0), (1.5, 0.7, 1.0)])
def test_resampling_keeps_the_extent_and_label_on_image(tmp_path: Path, spacing: tuple[float, ...]) -> None:
    label = np.zeros((24, 24, 24), np.uint8)
    label[6:18, 4:12, 8:20] = 1
    image = np.where(label, 100, 0).astype(np.int16)
    scan = write_pair(tmp_path, image, label, spacing=(1.0, 1.0, 2.0))
    case, _ = read_case(scan, spacing, (8, 8, 8), BRIGHTNESS)
    assert case.image.shape == tuple(round(size / step) for size, step in zip((48, 24, 24), spacing, strict=True))
    assert case.label.mean() == pytest.approx(label.mean(), rel=0.12)
    assert np.mean((case.image > 0.5) == (case.label == 1)) > 0.96


def test_small_scans_are_padded_with_background(tmp_path: Path) -> None:
    image, label = ball()
    case, _ = read_case(write_pair(tmp_path, image, label), (1, 1, 1), (16, 8, 16), BRIGHTNESS)
    assert case.image.shape == (16, 10, 16)
    assert case.label.sum() == label.sum() and np.array_equal(case.label[4:12, :, 2:14], label.T)
    assert case.image[:4].max() == 0 and case.image[12:].max() == 0


def test_without_a_window_the_scans_own_percentiles_count(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    image = generator.normal(500, 100, (12, 10, 8)).astype(np.float32)
    case, _ = read_case(write_pair(tmp_path, image, ball()[1]), (1, 1, 1), (8, 8, 8), IntensitySettings())
    low, high = np.percentile(image, (0.5, 99.5))
    assert np.allclose(case.image, np.clip((image.T - low) / (high - low), 0, 1), atol=1e-5)


def test_two_dimensional_cases(tmp_path: Path) -> None:
    image, label = (array[:, :, 2:3] for array in ball())
    case, values = read_case(write_pair(tmp_path, image, label), (0.5, 1), (8, 16), BRIGHTNESS)
    assert case.image.shape == (20, 16) and values == [0, 1]


def test_files_that_do_not_lie_on_each_other_are_refused(tmp_path: Path) -> None:
    image, label = ball()
    scan = write_pair(tmp_path, image, label)
    write(scan.label, label[:-1])
    with pytest.raises(ScanError, match=r"a\.nii\.gz has 8×10×11 voxels and its image 8×10×12"):
        read_case(scan, (1, 1, 1), (8, 8, 8), BRIGHTNESS)
    write(scan.label, label, affine=np.diag([-1.0, -1, 1, 1]))  # of another origin and orientation
    with pytest.raises(ScanError, match=r"lies up to 11\.0 mm beside its image"):
        read_case(scan, (1, 1, 1), (8, 8, 8), BRIGHTNESS)


@pytest.mark.parametrize("value", [0.5, -1, 300])
def test_what_is_no_label_map_is_named(tmp_path: Path, value: float) -> None:
    image, label = ball()
    scan = write_pair(tmp_path, image, np.where(label, value, 0).astype(np.float32))
    with pytest.raises(ScanError, match=r"a\.nii\.gz holds other values than whole numbers"):
        read_case(scan, (1, 1, 1), (8, 8, 8), BRIGHTNESS)


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    image, label = ball()
    scan = write_pair(tmp_path, image, label)
    scan.image.write_bytes(scan.image.read_bytes()[:60])
    with pytest.raises(ScanError, match=r"images/a\.nii\.gz: .*(damaged|not readable)"):
        read_case(scan, (1, 1, 1), (8, 8, 8), BRIGHTNESS)


def test_classes_are_numbered_without_a_gap() -> None:
    assert check_classes({0, 1, 2}) == 3
    for values in ({0, 2}, {1, 2}, {0}, set()):
        with pytest.raises(ScanError, match="number the classes 0"):
            check_classes(values)


def test_the_common_spacing_is_the_median_or_the_setting(tmp_path: Path) -> None:
    image, label = ball()
    scans = [
        write_pair(tmp_path / f"{n}", image, label, spacing=(1.0, 2.0, step)) for n, step in enumerate((1.0, 3.0, 9.0))
    ]
    assert common_spacing(scans, settings()) == pytest.approx((3.0, 2.0, 1.0))
    assert common_spacing(scans, settings(spacing_mm=[1, 1, 2])) == (1, 1, 2)


@needs_hippocampi
def test_real_hippocampi_are_one_case_a_subject_with_three_classes() -> None:
    scans = find_labelled(HIPPOCAMPI / "images", HIPPOCAMPI / "labels", None)
    assert len(scans) == len({scan.subject for scan in scans}) == 170
    spacing = common_spacing(scans, settings())
    assert spacing == pytest.approx((1, 1, 1))
    case, values = read_case(scans[0], spacing, (32, 32, 32), IntensitySettings())
    assert values == [0, 1, 2] and min(case.image.shape) >= 32
    assert 0.02 < (case.label > 0).mean() < 0.3 and 0 <= case.image.min() < case.image.max() <= 1
