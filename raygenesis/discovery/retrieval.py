"""One new scan against an archive: its embedding, and the archive's scans that are nearest to it; no Ray here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from raygenesis.archive.catalogue import read_columns
from raygenesis.archive.coarse import whole_scan
from raygenesis.archive.formats.readers import read_scan
from raygenesis.archive.intake.preparation import prepare
from raygenesis.archive.intake.survey import survey
from raygenesis.archive.intake.take_in import describe, max_bytes
from raygenesis.archive.store import pyramid
from raygenesis.archive.volume import Volume
from raygenesis.discovery.embeddings import Embeddings, present_embeddings
from raygenesis.discovery.exact import exact_search
from raygenesis.errors import ScanError, WorkspaceError
from raygenesis.networks.weights.native import ENCODER_FILE
from raygenesis.networks.weights.scan_encoders import AUTOENCODER_FILE, COMPONENTS_FILE, load_scan_encoder
from raygenesis.patterns.cells import decode, encode
from raygenesis.settings import ArchiveSettings, IntensitySettings
from raygenesis.workspace.artifacts import ARCHIVE, AUTOENCODER, COMPONENTS, RUNS
from raygenesis.workspace.files import Place, as_place, blake2b_of
from raygenesis.workspace.manifest import EmbeddingsManifest
from raygenesis.workspace.workspace import Workspace


@dataclass(frozen=True)
class SimilarScan:
    """A scan of the archive. distance: Euclidean, between its embedding and that of the scan that was asked about."""

    volume_id: str
    distance: float


def similar_scans(
    scan: str | Path, workspace: str | Place, k: int = 10, embeddings: str | Place | None = None
) -> list[SimilarScan]:
    """The k scans of an archive that are nearest to one scan, nearest first; all of fewer.

    A scan that is in the archive itself is its own nearest. Arguments and errors are those of `embed_scan`.
    """
    place = Workspace.existing(workspace)
    vector = embed_scan(scan, workspace, embeddings)
    table = Embeddings(_folder(place, embeddings))
    ids = table.ids()
    is_there = pc.is_in(ids, value_set=read_columns(place.catalog, ["volume_id"])["volume_id"]).to_numpy(
        zero_copy_only=False
    )
    found = exact_search(table.blocks(is_there), vector[None], min(k, int(is_there.sum())))
    names = ids.take(pa.array(found.numbers[0])).to_pylist()
    return [SimilarScan(*pair) for pair in zip(names, found.distances[0].tolist(), strict=True)]


def embed_scan(scan: str | Path, workspace: str | Place, embeddings: str | Place | None = None) -> NDArray[np.float32]:
    """The embedding of one scan, float32 [size], as `raygenesis embed` computes those of an archive.

    The scan is prepared as the archive's scans were, and embedded by the encoder of the archive's embeddings. Nothing
    is written.

    Args:
        scan: A file, or the folder of one DICOM series.
        workspace: The folder, or s3://bucket/prefix, with the archive.
        embeddings: Another folder of embeddings than the workspace's own (`raygenesis embed --output`).

    Raises:
        ScanError: The scan cannot be read, or is not one volume.
        WorkspaceError: There are no embeddings of the archive as it is, or their encoder is gone.
    """
    place = Workspace.existing(workspace)
    folder = _folder(place, embeddings)
    made = present_embeddings(place, folder)
    model = load_scan_encoder(_encoder_file(place, folder, made), made.settings["autoencoder"]["input_shape"])
    archive = ArchiveSettings.model_validate(ARCHIVE.require(place.archive).settings["archive"])
    intensity = IntensitySettings.model_validate(made.settings["intensity"])
    paths = _files_of(Path(scan))
    try:
        image = _whole(_volume(paths, archive), archive, model.input_shape, intensity)
    except ScanError as error:
        raise ScanError(f"{scan}: {error}") from None
    image = decode(encode(image), model.input_shape)  # in the steps in which `embed` hands scans to the encoder
    with torch.inference_mode():
        return model.encode(torch.from_numpy(image)[None, None])[0].numpy()


def _folder(workspace: Workspace, embeddings: str | Place | None) -> Place:
    return workspace.embeddings if embeddings is None else as_place(embeddings)


def _encoder_file(workspace: Workspace, folder: Place, made: EmbeddingsManifest) -> Place:
    """The weights that embeddings were made by, which their manifest identifies. Raises WorkspaceError."""
    identity = made.inputs["encoder"]
    trained, fitted = AUTOENCODER.read(workspace.autoencoder), COMPONENTS.read(workspace.pca)
    if trained is not None and trained.fingerprint == identity:
        return workspace.autoencoder / AUTOENCODER_FILE
    if fitted is not None and fitted.fingerprint == identity:
        return workspace.pca / COMPONENTS_FILE
    for run in workspace.folders(RUNS):
        file = run / ENCODER_FILE
        if file.is_file() and blake2b_of(file) == identity:
            return file
    raise WorkspaceError(
        f"the encoder that made {folder} is not in {workspace.root}: run `raygenesis embed` again with `--encoder` and "
        "an encoder of this workspace (autoencoder, pca, or the folder of a run)"
    )


def _files_of(scan: Path) -> list[Path]:
    """The files of a scan: a file itself, or those of the one series in a folder. Raises ScanError."""
    if scan.is_dir():
        found = survey(scan)
        if len(found.scans) != 1:
            raise ScanError(f"{scan} holds {len(found.scans)} scans: give the folder of one series, or one file")
        return [scan / file.path for file in found.scans[0].files]
    if not scan.is_file():
        raise ScanError(f"{scan} does not exist: give a file, or the folder of one DICOM series")
    return [scan]


def _volume(paths: Sequence[Path], settings: ArchiveSettings) -> Volume:
    """The one volume of a scan's files, prepared as those of the archive. Raises ScanError."""
    volumes = read_scan(paths, settings.fourth_axis, max_bytes(settings), settings.fill_nan, settings.uneven)
    if len(volumes) != 1:
        raise ScanError(f"it holds {len(volumes)} volumes: give a file of one")
    return prepare(volumes[0], settings)


def _whole(
    volume: Volume, archive: ArchiveSettings, shape: Sequence[int], intensity: IntensitySettings
) -> NDArray[np.float32]:
    """A volume as an encoder of whole scans sees it, float32 of `shape` in [0, 1]. Raises ScanError."""
    if len(shape) != volume.ndim:
        raise ScanError(f"it has {volume.ndim} dimensions, and the embeddings are of scans with {len(shape)}")
    record = describe(volume, "", 1, archive.coarse_size)
    for level in pyramid(volume, record["levels"]):
        coarsest = level
    if coarsest.ndim > volume.ndim:
        if intensity.channel >= len(coarsest):
            raise ScanError(
                f"it has {len(coarsest)} channels, and intensity.channel={intensity.channel} asks for another"
            )
        coarsest = coarsest[intensity.channel]
    return whole_scan(coarsest, record, shape, intensity)
