"""The demonstration's population: repeatable, truthful about its deformations, varied like people.

Places and tissues are checked against the template read here, by other code than the package's.
"""

import importlib.util
import itertools
import json
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
from nibabel.affines import apply_affine
from scipy.ndimage import map_coordinates

from raygenesis.demo import population
from raygenesis.demo.population import PopulationError, anatomy, simulate, write_population

SEED = 5
SUBJECTS = 6


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("population")
    write_population(directory, SUBJECTS, SEED)
    return directory


@pytest.fixture(scope="module")
def template() -> nibabel.Nifti1Image:
    folder = Path(importlib.util.find_spec("nilearn").origin).parent / "datasets" / "data"
    return nibabel.load(folder / "mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz")


@pytest.fixture(scope="module")
def brain_points(template: nibabel.Nifti1Image) -> np.ndarray:
    """World points float64[n, 3] in mm, 8 mm apart, all over the template's brain."""
    inside = np.argwhere(np.asarray(template.dataobj)[::8, ::8, ::8] > 30) * 8
    return apply_affine(template.affine, inside)


def contents(directory: Path) -> dict[str, bytes]:
    files = (path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


def load(directory: Path, folder: str, subject: int) -> nibabel.Nifti1Image:
    return nibabel.load(directory / folder / f"sub-{subject:03d}_T1w.nii.gz")


def template_seen_through(subject: int, scan: nibabel.Nifti1Image, template: nibabel.Nifti1Image) -> np.ndarray:
    """The template's T1 where the subject's anatomy says that each of the scan's voxels lies."""
    voxels = np.stack(np.meshgrid(*map(np.arange, scan.shape), indexing="ij"), -1).reshape(-1, 3)
    places = anatomy(SEED, subject).to_template(apply_affine(scan.affine, voxels))
    voxels = apply_affine(np.linalg.inv(template.affine), places)
    image = np.asarray(template.dataobj, dtype=np.float64)
    return map_coordinates(image, voxels.T, order=1).reshape(scan.shape)


def test_writes_a_scan_and_its_labels_for_each_subject_and_the_record_of_how(written: Path) -> None:
    names = [f"sub-{subject:03d}_T1w.nii.gz" for subject in range(SUBJECTS)]
    expected = [f"{folder}/{name}" for folder in ("labels", "scans") for name in names]
    assert sorted(contents(written)) == sorted([*expected, "population.json"])
    record = json.loads((written / "population.json").read_text())
    assert (record["seed"], record["num_subjects"]) == (SEED, SUBJECTS)
    for subject in range(SUBJECTS):
        scan, labels = load(written, "scans", subject), load(written, "labels", subject)
        assert scan.get_data_dtype() == np.int16 and labels.get_data_dtype() == np.uint8
        assert scan.shape == labels.shape and np.array_equal(scan.affine, labels.affine)
        assert np.allclose(scan.get_qform(), scan.get_sform(), atol=1e-3)  # readers use either


def test_a_run_cut_short_ends_in_the_bytes_of_one_never_cut(written: Path, tmp_path: Path) -> None:
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "sub-001_T1w.nii.gz").write_bytes(b"of another seed")
    (tmp_path / "scans" / ".sub-002_T1w.nii.gz.1a2b3c4d").write_bytes(b"half")
    write_population(tmp_path, SUBJECTS, SEED)
    assert contents(tmp_path) == contents(written)


def test_a_second_call_does_no_work(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def times() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in written.rglob("*")}

    def fail(*_: object) -> None:
        raise AssertionError("simulated again")

    monkeypatch.setattr(population, "simulate", fail)
    before = times()
    write_population(written, SUBJECTS, SEED)
    assert times() == before


@pytest.mark.parametrize(("num_subjects", "seed"), [(SUBJECTS, SEED + 1), (SUBJECTS - 1, SEED)])
def test_refuses_a_directory_made_with_other_arguments(written: Path, num_subjects: int, seed: int) -> None:
    before = contents(written)
    with pytest.raises(PopulationError, match="holds the population"):
        write_population(written, num_subjects, seed)
    assert contents(written) == before


def test_refuses_to_mix_with_files_of_others(tmp_path: Path) -> None:
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "mine.nii.gz").write_bytes(b"precious")
    with pytest.raises(PopulationError, match=r"mine\.nii\.gz is no part"):
        write_population(tmp_path, 1, SEED)
    assert contents(tmp_path) == {"scans/mine.nii.gz": b"precious"}


@pytest.mark.parametrize(("num_subjects", "seed"), [(0, 0), (1, -1)])
def test_refuses_arguments_out_of_range(tmp_path: Path, num_subjects: int, seed: int) -> None:
    with pytest.raises(PopulationError, match="at least"):
        write_population(tmp_path / "new", num_subjects, seed)
    assert not (tmp_path / "new").exists()


def test_says_what_to_install_without_nilearn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    population.load_template.cache_clear()
    monkeypatch.setitem(sys.modules, "nilearn", None)
    with pytest.raises(ValueError, match=r"pip install raygenesis\[demo\]"):
        write_population(tmp_path / "new", 1, SEED)
    assert not (tmp_path / "new").exists()


def test_subjects_and_seeds_differ(written: Path) -> None:
    scans = [bytes_ for name, bytes_ in contents(written).items() if name.startswith("scans")]
    assert len(set(scans)) == SUBJECTS
    one, other = anatomy(SEED, 0), anatomy(SEED + 1, 0)
    assert not np.allclose(one.bends_mm, other.bends_mm)
    assert not np.allclose(one.matrix, other.matrix)


def test_scans_differ_in_orientation_spacing_shape_and_brightness(written: Path) -> None:
    scans = [load(written, "scans", subject) for subject in range(SUBJECTS)]
    codes = ["".join(nibabel.aff2axcodes(scan.affine)) for scan in scans]
    assert set(codes) == {"RAS", "LAS", "PSR"}
    assert len({scan.shape for scan in scans}) == SUBJECTS
    for scan in scans:
        first, second, between_slices = scan.header.get_zooms()
        assert first == second and 1.8 <= first <= 2.4 and 1.8 <= between_slices <= 2.8
        assert 70**3 < np.prod(scan.shape) < 115**3
    brightest = [np.percentile(np.asarray(scan.dataobj), 99) for scan in scans]
    assert max(brightest) > 1.3 * min(brightest)


@pytest.mark.parametrize("subject", [0, 2, 5])  # one of each orientation
def test_the_anatomy_says_where_each_voxel_lies_in_the_template(
    written: Path, template: nibabel.Nifti1Image, subject: int
) -> None:
    scan = load(written, "scans", subject)
    voxels = np.asarray(scan.dataobj, dtype=np.float64)

    def correlation(of_subject: int) -> float:
        expected = template_seen_through(of_subject, scan, template)
        brain = expected > 30
        return float(np.corrcoef(expected[brain], voxels[brain])[0, 1])

    assert correlation(subject) > 0.9
    assert correlation(subject + 1) < 0.5  # and no other subject's anatomy does


@pytest.mark.parametrize("subject", [0, 2, 5])
def test_labels_are_the_quarters_of_the_brain(written: Path, subject: int) -> None:
    scan, image = load(written, "scans", subject), load(written, "labels", subject)
    voxels, labels = np.asarray(scan.dataobj), np.asarray(image.dataobj)
    assert set(np.unique(labels)) == {0, 1, 2, 3, 4}
    assert voxels[labels > 0].mean() > 2 * voxels[labels == 0].mean()
    sizes = np.bincount(labels.ravel())[1:] / np.count_nonzero(labels)
    assert sizes.min() > 0.1
    world = apply_affine(image.affine, np.indices(labels.shape).reshape(3, -1).T)
    left_front, right_front, left_back, right_back = (
        world[labels.ravel() == quarter].mean(0) for quarter in range(1, 5)
    )
    for left, right in ((left_front, right_front), (left_back, right_back)):
        assert right[0] - left[0] > 40
    for front, back in ((left_front, left_back), (right_front, right_back)):
        assert front[1] - back[1] > 50
    # A voxel's shift of the labels must fit worse: they are aligned, and not merely bright.
    shifted = np.roll(labels, 1, axis=(0, 1, 2))
    assert voxels[labels > 0].mean() > voxels[shifted > 0].mean()


def test_a_scan_made_alone_is_the_scan_written(written: Path) -> None:
    alone, scan = simulate(SEED, 3), load(written, "scans", 3)
    assert np.array_equal(alone.voxels, np.asarray(scan.dataobj))
    assert np.allclose(alone.affine, scan.affine, atol=1e-4)


def test_nothing_folds_and_no_displacement_is_too_long() -> None:
    axis = np.arange(-170.0, 171.0, 10.0)  # beyond the lattice too
    points = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
    for subject in range(4):
        one = anatomy(SEED, subject)
        columns = [(one.to_template(points + step) - one.to_template(points - step)) / 0.2 for step in 0.1 * np.eye(3)]
        assert np.linalg.det(np.stack(columns, -1)).min() > 0.2
        assert np.linalg.norm(one.displacement(points), axis=1).max() < 12


def test_subjects_vary_by_millimetres_and_some_are_alike(brain_points: np.ndarray) -> None:
    subjects = [anatomy(SEED, subject) for subject in range(24)]
    places = [one.to_template(brain_points) for one in subjects]
    apart = np.array([np.linalg.norm(a - b, axis=1).mean() for a, b in itertools.combinations(places, 2)])
    assert 8 < apart.mean() < 25
    assert apart.min() > 3  # no two the same
    assert apart.min() < apart.mean() / 2  # but neighbours exist
    bends = np.linalg.norm([one.displacement(brain_points) for one in subjects], axis=-1)
    assert 2 < np.sqrt(np.mean(bends**2)) < 4
    assert max(np.abs(np.log(np.linalg.norm(one.matrix, axis=0))).max() for one in subjects) < 0.081


def test_the_command_prints_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["population", str(tmp_path / "new"), "--subjects", "1", "--seed", "7"])
    population.main()
    out = capsys.readouterr().out
    assert out.startswith("1 subjects, 2 files, ") and out.count("\n") == 1
    monkeypatch.setattr(sys, "argv", ["population", str(tmp_path / "new"), "--seed", "8"])
    with pytest.raises(SystemExit) as exit_:
        population.main()
    assert exit_.value.code == 2
