"""ChestX-ray14: findings as the owners' table has them, split by the official lists."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from raygenesis.errors import ScanError
from raygenesis.transfer.examples import TEST, TRAIN
from raygenesis.transfer.targets.chestxray14 import FINDINGS, read
from tests.support.data import RADIOGRAPHS, needs_radiographs

# The header of the owners' file, whose brackets hold commas.
HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],"
)


def write(
    folder: Path, rows: dict[str, str], train: list[str], test: list[str], table: str = "Data_Entry_2017.csv"
) -> None:
    """Rows from image to findings; the patient is the first part of an image's name."""
    lines = [f"{name},{findings},0,{int(name[:8])},58,M,PA,2682,2749,0.143,0.143," for name, findings in rows.items()]
    (folder / table).write_text("\n".join([HEADER, *lines, ""]))
    (folder / "train_val_list.txt").write_text("\n".join(train))
    (folder / "test_list.txt").write_text("\n".join(test))


def draw(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (8, 8)).astype(np.uint8)).save(folder / name)


@pytest.mark.parametrize("table", ["Data_Entry_2017.csv", "Data_Entry_2017_v2020.csv"])
@pytest.mark.parametrize("folders", [("images_001/images", "images_012/images"), ("images", "images")])
def test_findings_patients_and_split(tmp_path: Path, table: str, folders: tuple[str, str]) -> None:
    names = ["00000001_000.png", "00000001_001.png", "00000002_000.png"]
    draw(tmp_path / folders[0], *names[:2])
    draw(tmp_path / folders[1], names[2])
    draw(tmp_path / "thumbnails", "00000009_000.png")
    rows = dict(zip(names, ["Cardiomegaly|Hernia", "No Finding", "Pleural_Thickening"], strict=True))
    write(tmp_path, rows, names[:2], names[2:], table)
    target = read(tmp_path)
    assert not target.problems
    assert [example.name for example in target.examples] == names
    assert [example.split for example in target.examples] == [TRAIN, TRAIN, TEST]
    assert [example.subject for example in target.examples] == ["1", "1", "2"]
    found = [[FINDINGS[n] for n, there in enumerate(example.value) if there] for example in target.examples]
    assert found == [["Cardiomegaly", "Hernia"], [], ["Pleural_Thickening"]]
    assert all(len(example.value) == 14 for example in target.examples)
    assert (target.task, target.ndim, target.classes, target.window) == ("multilabel", 2, FINDINGS, None)
    assert target.examples[2].image.read().shape == (8, 8)


@needs_radiographs
def test_real_radiographs(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    names = sorted(path.name for path in RADIOGRAPHS.glob("*.png"))[:20]
    for name in names:
        shutil.copy(RADIOGRAPHS / name, tmp_path / "images" / name)
    write(tmp_path, dict.fromkeys(names, "Pneumonia"), names[:15], names[15:])
    target = read(tmp_path)
    assert len(target.examples) == 20 and not target.problems
    assert {example.image.read().shape for example in target.examples} == {(256, 256)}


def test_what_cannot_be_used_is_said(tmp_path: Path) -> None:
    names = [f"0000000{number}_000.png" for number in range(6)]
    draw(tmp_path / "images_001" / "images", *names[:5], "a b.png")
    draw(tmp_path / "images_002" / "images", names[0])
    rows = dict(zip([*names[:4], names[5]], ["Mass", "Masses", "Mass", "", "Mass"], strict=True))
    write(tmp_path, rows, [names[0], names[1], names[5], "../../secret.png"], [names[3], names[4]])
    with (tmp_path / "Data_Entry_2017.csv").open("a") as table:
        table.write(f"{names[0]},Hernia,0,1\n00000008_000.png\n")
    target = read(tmp_path)
    assert [example.name for example in target.examples] == [names[0]]
    assert target.examples[0].value[FINDINGS.index("Mass")] == 1
    folder = "images_001/images"
    lacking = "it lacks one of Image Index, Finding Labels, Patient ID"
    assert {problem.name: problem.reason for problem in target.problems} == {
        f"{folder}/a b.png": "its name has other characters than letters, digits, '.', '_' and '-'",
        f"images_002/images/{names[0]}": f"{folder}/{names[0]} has its name already",
        names[1]: "finding 'Masses' is none of the 14 and not 'No Finding'",
        names[2]: "neither train_val_list.txt nor test_list.txt names it",
        names[3]: "no row of the table names it",
        names[4]: "no row of the table names it",
        names[5]: "a table or list names it, and no images folder holds it",
        "../../secret.png": "a table or list names it, and no images folder holds it",
        "Data_Entry_2017.csv:5": lacking,
        "Data_Entry_2017.csv:7": f"a second row of {names[0]}",
        "Data_Entry_2017.csv:8": lacking,
    }


def test_a_wrong_folder_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ScanError, match=r"Data_Entry_2017\.csv does not exist"):
        read(tmp_path)
    name = "00000001_000.png"
    draw(tmp_path / "images", name)
    write(tmp_path, {name: "Mass"}, [name], [name])
    with pytest.raises(ScanError, match=f"both name {name}"):
        read(tmp_path)
    (tmp_path / "test_list.txt").unlink()
    with pytest.raises(ScanError, match=r"test_list\.txt does not exist"):
        read(tmp_path)
    (tmp_path / "Data_Entry_2017.csv").write_text("Image,Labels\n")
    with pytest.raises(ScanError, match="has no column 'Image Index': it has Image, Labels"):
        read(tmp_path)
