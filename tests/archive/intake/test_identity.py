"""Who is on the scans stays with their owner: no byte of the archive tells, and the private folder links."""

from __future__ import annotations

import errno
import json
import re
import stat
from pathlib import Path

import pydicom
import pytest

from raygenesis.archive.catalogue import read_catalogue, split_by_subject
from raygenesis.archive.ingest import ingest
from raygenesis.archive.intake.identity import Identity, open_identity, subject_in, subject_of
from raygenesis.archive.intake.known_files import read_known_files
from raygenesis.archive.intake.survey import Scan, ScanFile
from raygenesis.cluster import environment
from raygenesis.errors import SettingsError, WorkspaceError
from raygenesis.settings import load_settings
from raygenesis.workspace.files import locked
from raygenesis.workspace.workspace import Workspace
from tests.support import dicom_series
from tests.support.data import SHARED
from tests.support.nifti import grey, write_nifti

pytestmark = pytest.mark.usefixtures("ray_cluster")

SETTINGS = load_settings("cpu-small")
KEEPING = load_settings("cpu-small", ["archive.keep_ids=true"])

# What identifies: names, dates and times, identifiers, free text. UIDs of standard objects begin with DICOM's own root.
IDENTIFYING = ("PN", "DA", "DT", "TM", "UI", "LT", "ST", "UT")
IDENTIFIERS = ("PatientID", "AccessionNumber", "StudyID", "InstitutionName", "StationName", "DeviceSerialNumber",
               "StudyDescription", "SeriesDescription", "ProtocolName", "PatientAge")  # fmt: skip

STANDARD_UIDS = "1.2.840.10008."


def secrets_of(path: Path) -> set[bytes]:
    """Every identifying value of a DICOM file, of at least five characters."""
    found = set()
    for element in pydicom.dcmread(path, stop_before_pixels=True).iterall():
        if element.VR in IDENTIFYING or element.keyword in IDENTIFIERS:
            values = element.value if element.VM > 1 else [element.value]
            found |= {str(value) for value in values if not str(value).startswith(STANDARD_UIDS)}
    return {text.encode() for text in found if len(text) >= 5}


def archived_bytes(workspace: Workspace) -> bytes:
    paths = sorted(path for path in workspace.archive.rglob("*"))
    names = "\n".join(str(path.relative_to(workspace.archive)) for path in paths).encode()
    # Parquet's pages may be packed: what they hold counts, not how.
    rows = json.dumps(read_catalogue(workspace.catalog), default=str, ensure_ascii=False).encode()
    return names + rows + b"".join(path.read_bytes() for path in paths if path.is_file())


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    folder = tmp_path / "scans"
    (folder / "CANARY-1" / "19631122").mkdir(parents=True)
    dicom_series.write_all(folder / "CANARY-1" / "19631122", dicom_series.series())
    write_nifti(folder / "Canary_Jane.nii.gz", grey((8, 9, 10)))
    (folder / "canary_broken.nii.gz").write_bytes(b"no scan")
    (folder / "CANARY.dcm").write_bytes(b"no scan" * 100)
    return folder


def test_no_byte_of_the_archive_names_a_canary(scans: Path, tmp_path: Path) -> None:
    workspace = Workspace.open(tmp_path / "ws")
    assert ingest(scans, workspace, SETTINGS).counts.failures == 2
    content = archived_bytes(workspace)
    for secret in dicom_series.SECRETS:
        assert secret.encode() not in content
    rows = read_catalogue(workspace.catalog)
    (tags,) = [json.loads(row["tags"]) for row in rows if row["modality"] == "CT"]
    assert tags["Manufacturer"] == "Ray (Works) 2.0" and tags["KVP"] == "120"


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"real DICOM files are not at {SHARED}")
def test_no_byte_of_the_archive_names_a_real_patient(tmp_path: Path) -> None:
    workspace = Workspace.open(tmp_path / "ws")
    scans = SHARED / "odd-dicom"
    assert ingest(scans, workspace, SETTINGS).counts.volumes >= 5
    files = [path for path in scans.rglob("*") if path.suffix == ".dcm"]
    secrets = set().union(*map(secrets_of, files)) | {path.name.encode() for path in files}
    content = archived_bytes(workspace)
    assert len(secrets) > 50
    assert not [secret for secret in secrets if secret in content]


def test_a_cluster_s_log_names_no_file_and_what_it_names_is_in_the_tables(
    scans: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    """A series is known by another name than its first file's path."""
    monkeypatch.setattr(environment, "is_joined", lambda: True)
    dicom_series.write_all(scans / "CANARY-3", dicom_series.series(SeriesInstanceUID="1.2.3", RescaleSlope=0))
    workspace = Workspace.open(tmp_path / "ws")
    with pytest.raises(SettingsError, match="matches none of the 4 paths") as refused:
        ingest(scans, workspace, load_settings("cpu-small", ["archive.subject_pattern=nobody"]))
    ingest(scans, workspace, load_settings("cpu-small", ["archive.subject_pattern=(CANARY-[0-9])"]))
    logged = f"{capsys.readouterr().out}{refused.value}"
    assert not any(secret in logged.replace("(CANARY-[0-9])", "") for secret in dicom_series.SECRETS)
    skipped = re.findall("skipped ([0-9a-f]{16}): ", logged)
    paths = {row["source"]: path for path, row in read_known_files(workspace.private).items()}
    assert len(skipped) == 3 and sum(paths[source].startswith("CANARY-3/") for source in skipped) == 1


def test_the_private_folder_links_volumes_to_files(scans: Path, tmp_path: Path) -> None:
    workspace = Workspace.open(tmp_path / "ws")
    ingest(scans, workspace, SETTINGS)
    paths = {row["source"]: path for path, row in read_known_files(workspace.private).items()}
    found = {paths[row["source"]] for row in read_catalogue(workspace.catalog)}
    assert "Canary_Jane.nii.gz" in found and any(path.startswith("CANARY-1/") for path in found)
    assert stat.S_IMODE((workspace.root / "private" / "key").stat().st_mode) == 0o600


def test_names_stay_where_they_are_wanted(scans: Path, tmp_path: Path) -> None:
    workspace = Workspace.open(tmp_path / "ws")
    ingest(scans, workspace, KEEPING)
    assert {row["subject_id"] for row in read_catalogue(workspace.catalog)} == {"CANARY-1", "Canary_Jane"}


def test_pseudonyms_depend_on_the_key_and_the_split_does_not(tmp_path: Path) -> None:
    for number in range(12):
        write_nifti(tmp_path / "scans" / f"sub-{number}" / "a.nii.gz", grey((8, 9, 10), seed=number))
        write_nifti(tmp_path / "scans" / f"sub-{number}" / "b.nii.gz", grey((8, 9, 10), seed=100 + number))
    subjects, held_out = [], []
    for name in ("one", "two"):
        workspace = Workspace.open(tmp_path / name)
        ingest(tmp_path / "scans", workspace, SETTINGS)
        rows = read_catalogue(workspace.catalog)
        subjects.append({row["subject_id"] for row in rows})
        held_out.append({row["volume_id"] for row in split_by_subject(rows, 0.25, 0)[1]})
    assert len(subjects[0]) == len(subjects[1]) == 12 and not subjects[0] & subjects[1]
    assert held_out[0] == held_out[1] and len(held_out[0]) == 6


@pytest.mark.parametrize("damage", ["", "zz" * 32, "5a" * 31])
def test_a_damaged_key_is_refused_and_not_replaced(tmp_path: Path, damage: str) -> None:
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "key").write_text(damage)
    with pytest.raises(WorkspaceError, match="expected 64 hex digits"):
        open_identity(Workspace(tmp_path), keep_ids=False)
    assert (tmp_path / "private" / "key").read_text() == damage


@pytest.mark.parametrize("has_links", [True, False])
def test_two_jobs_that_make_a_key_at_once_have_the_same(tmp_path: Path, monkeypatch, has_links: bool) -> None:
    path = tmp_path / "private" / "key"

    def meanwhile(num_bytes: int) -> bytes:
        if has_links:
            path.write_text("5a" * 32)
        return b"\1" * num_bytes

    def no_link(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr("secrets.token_bytes", meanwhile)
    if not has_links:
        monkeypatch.setattr("os.link", no_link)
    identity = open_identity(Workspace(tmp_path), keep_ids=False)
    assert identity.key == bytes.fromhex(path.read_text()) == (b"\x5a" if has_links else b"\1") * 32
    assert [file.name for file in path.parent.iterdir()] == ["key"]


def test_an_ingest_beside_another_makes_no_key(scans: Path, tmp_path: Path) -> None:
    workspace = Workspace.open(tmp_path / "ws")
    workspace.archive.mkdir()
    with locked(workspace.archive), pytest.raises(WorkspaceError, match="is being written by another job"):
        ingest(scans, workspace, SETTINGS)
    assert not (workspace.private / "key").exists()


def test_a_lost_key_is_not_replaced_where_subjects_are_named_by_it(scans: Path, tmp_path: Path) -> None:
    workspace = Workspace.open(tmp_path / "ws")
    ingest(scans, workspace, SETTINGS)
    assert stat.S_IMODE((workspace.root / "private").stat().st_mode) == 0o700
    (workspace.root / "private" / "key").unlink()
    write_nifti(scans / "new.nii", grey((8, 9, 11)))
    with pytest.raises(WorkspaceError, match="key is gone"):
        ingest(scans, workspace, SETTINGS)
    assert (workspace.archive / "manifest.json").is_file() and not (workspace.private / "key").exists()


@pytest.mark.parametrize(
    ("source", "pattern", "subject"),
    [
        ("sub-01/ses-2/anat/sub-01_ses-2_T1w.nii.gz", None, "sub-01"),
        ("site_sub-A7_T1w.nii", None, "sub-A7"),
        ("hippocampussub-set/a.nii.gz", None, "hippocampussub-set/a"),  # not an entity of BIDS
        ("a/b.nii.gz", None, "a/b"),
        ("a/b.NII", None, "a/b"),
        ("b.nii.gz.nii", None, "b.nii.gz"),
        ("IXI014-HH-1236_T1.nii.gz", r"(IXI\d+)", "IXI014"),
        ("IXI014-HH-1236_T1.nii.gz", r"IXI\d+", "IXI014"),
        ("sub-01_run-3.nii", r"(?:run-)?(P\d+)?", "sub-01_run-3"),
        ("sub-A.nii", r"sub-(\d+)?", "sub-A"),
        ("scan.nii", r"sub-(\d+)", "scan"),
    ],
)
def test_the_subject_of_a_scan(source: str, pattern: str | None, subject: str) -> None:
    assert subject_in(source, pattern) == subject
    assert subject_of(Scan((ScanFile(source, 1, 0),)), pattern) == subject


def test_a_dicom_patient_id_counts_before_the_path_and_a_pattern_before_it() -> None:
    scan = Scan((ScanFile("sub-01/IM1", 1, 0), ScanFile("sub-01/IM2", 1, 0)), "P7")
    assert subject_of(scan, None) == "P7"
    assert subject_of(scan, r"sub-(\d+)") == "01"


def test_names_become_keyed_hashes_that_only_the_key_can_repeat(tmp_path: Path) -> None:
    identity = open_identity(Workspace(tmp_path), keep_ids=False)
    hashed = identity.subject("sub-01")
    assert re.fullmatch("[0-9a-f]{16}", hashed)
    assert hashed == open_identity(Workspace(tmp_path), keep_ids=False).subject("sub-01")
    others = identity.source("sub-01"), identity.subject("sub-02"), Identity(bytes(32)).subject("sub-01")
    assert len({hashed, *others}) == 4
    kept = open_identity(Workspace(tmp_path), keep_ids=True)
    assert (kept.subject("sub-01"), kept.source("a/b.nii")) == ("sub-01", "a/b.nii")
    assert (tmp_path / "private/key").stat().st_mode & 0o077 == 0
