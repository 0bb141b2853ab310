"""The table of published layouts: target tasks as their owners publish them.

A layout is a module beside this one, whose `read(folder, *, …options)` lists the examples in a folder without decoding
any, and a row of this table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from raygenesis.transfer.examples import Target
from raygenesis.transfer.targets import brats, chestxray14, lidc, lits, luna16, medmnist, siim

VOLUME, RADIOGRAPH = (32, 64, 64), (224, 224)


@dataclass(frozen=True)
class Layout:
    """One published data set.

    code: short name of the target task in papers on self-supervised pretraining. read: takes the folder and, by name,
    the layout's options; returns the target, or raises ScanError. source: where to get the data. input_shape: voxels
    z y x (2D: y x) that the network sees by default.
    """

    code: str
    read: Callable[..., Target]
    source: str
    input_shape: tuple[int, ...]


LAYOUTS: dict[str, Layout] = {
    "luna16": Layout("NCC", luna16.read, "the LUNA16 challenge: subset0 to subset9 and candidates_V2.csv", VOLUME),
    "lidc": Layout("NCS", lidc.read, "The Cancer Imaging Archive, LIDC-IDRI: the CT series and the XML", VOLUME),
    "lits": Layout("LCS", lits.read, "the LiTS challenge: training batches 1 and 2", VOLUME),
    "brats": Layout("BMS", brats.read, "the BraTS 2018 challenge: the training data", VOLUME),
    "chestxray14": Layout("DXC", chestxray14.read, "the NIH Clinical Center: images, table and lists", RADIOGRAPH),
    "siim": Layout("PXS", siim.read, "the SIIM-ACR Pneumothorax challenge: images and train-rle.csv", RADIOGRAPH),
    "medmnist": Layout("adrenal", medmnist.read, "MedMNIST v2: adrenalmnist3d_64.npz", (64, 64, 64)),
}
