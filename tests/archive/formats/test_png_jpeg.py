"""PNG and JPEG pictures, against Pillow's own reading."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from raygenesis.archive.volume import Volume
from tests.support.deep_png import deep_png
from tests.support.nifti import grey
from tests.support.scan_files import one, refusal


def shown(volume: Volume) -> NDArray[Any]:
    """Rows from superior down, columns from the patient's right: as the picture is displayed."""
    return volume.voxels[..., ::-1, ::-1]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_grey_png_is_as_pillow_shows_it(tmp_path: Path, dtype: type) -> None:
    pixels = grey((6, 9), dtype) * dtype(2) if dtype == np.uint8 else grey((6, 9), dtype) * dtype(500)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    volume = one(tmp_path / "a.png")
    assert volume.voxels.dtype == dtype and np.array_equal(shown(volume), pixels)
    assert np.array_equal(shown(volume), np.asarray(Image.open(tmp_path / "a.png")))
    assert (volume.ndim, volume.spacing_mm) == (2, (1.0, 1.0))


def test_equal_colours_are_grey_and_others_channels(tmp_path: Path) -> None:
    pixels = grey((6, 9, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "colour.png")
    Image.fromarray(np.repeat(pixels[..., :1], 3, -1)).save(tmp_path / "grey.png")
    colour, same = one(tmp_path / "colour.png"), one(tmp_path / "grey.png")
    assert colour.num_channels == 3 and same.num_channels == 1 and same.voxels.ndim == 2
    assert np.array_equal(shown(colour), np.moveaxis(pixels, -1, 0))
    assert np.array_equal(shown(same), pixels[..., 0])


@pytest.mark.parametrize("mode", ["P", "RGBA", "LA", "1", "L"])
def test_every_kind_of_png_is_a_picture(tmp_path: Path, mode: str) -> None:
    coloured = Image.fromarray(grey((6, 9, 3), np.uint8) * np.uint8(2))
    coloured.convert(mode).save(tmp_path / "a.png")
    again = Image.open(tmp_path / "a.png")
    assert again.mode == mode
    expected = np.asarray(again.convert("RGB" if mode in ("P", "RGBA") else "L"))
    expected = np.moveaxis(expected, -1, 0) if expected.ndim == 3 else expected
    assert np.array_equal(shown(one(tmp_path / "a.png")), expected)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("suffix", [".jpg", ".jpeg"])
def test_a_jpeg_is_as_pillow_decodes_it(tmp_path: Path, mode: str, suffix: str) -> None:
    Image.fromarray(grey((16, 24, 3), np.uint8)).convert(mode).save(tmp_path / f"a{suffix}")
    expected = np.asarray(Image.open(tmp_path / f"a{suffix}").convert("L" if mode == "L" else "RGB"))
    volume = one(tmp_path / f"a{suffix}")
    assert np.array_equal(shown(volume), np.moveaxis(expected, -1, 0) if expected.ndim == 3 else expected)


def test_a_camera_s_note_of_how_it_was_held_is_followed(tmp_path: Path) -> None:
    pixels = grey((16, 24), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.fromarray(pixels).save(tmp_path / "a.jpg", exif=exif)
    assert np.array_equal(shown(one(tmp_path / "a.jpg")), np.rot90(np.asarray(Image.open(tmp_path / "a.jpg")), -1))


def test_a_side_car_gives_a_picture_its_spacing(tmp_path: Path) -> None:
    Image.fromarray(grey((6, 9), np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "a.json").write_text('{"spacing_mm": [0.2, 0.3], "modality": "DX"}')
    volume = one(tmp_path / "a.png")
    assert (volume.spacing_mm, volume.modality) == ((0.2, 0.3), "DX")
    assert nibabel.aff2axcodes(volume.affine)[:2] == ("R", "A")
    (tmp_path / "a.json").write_text('{"spacing_mm": [0.2, 0.3, 1]}')
    assert "spacing_mm of a picture has two numbers" in refusal(tmp_path / "a.png")


def test_a_damaged_picture_is_one_sentence(tmp_path: Path) -> None:
    Image.fromarray(grey((64, 64), np.uint8)).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    for damaged in (b"", content[:20], content[:300], b"GIF89a" + content, b"text" * 50):
        (tmp_path / "a.png").write_bytes(damaged)
        assert "picture" in refusal(tmp_path / "a.png")
    Image.fromarray(grey((64, 64), np.uint8)).save(tmp_path / "b.gif")
    (tmp_path / "b.gif").rename(tmp_path / "b.png")
    assert "not readable as a PNG or JPEG" in refusal(tmp_path / "b.png")


@pytest.mark.parametrize(("colours", "samples"), [(2, 3), (4, 2), (6, 4)])
def test_colours_and_transparency_of_16_bits_keep_them(tmp_path: Path, colours: int, samples: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 65536, (6, 9, samples)).astype(np.uint16)
    (tmp_path / "a.png").write_bytes(deep_png(pixels, colours))
    volume = one(tmp_path / "a.png")
    expected = pixels[..., 0] if samples == 2 else np.moveaxis(pixels[..., :3], -1, 0)
    assert volume.voxels.dtype == np.uint16 and np.array_equal(shown(volume), expected)
    assert volume.corrections == (("transparency left out",) if samples % 2 == 0 else ())
    if samples > 2:
        pixels[..., :3] = pixels[..., :1]
        pixels[..., 3:] = 65535
        (tmp_path / "a.png").write_bytes(deep_png(pixels, colours))
        volume = one(tmp_path / "a.png")
        assert volume.voxels.dtype == np.uint16 and np.array_equal(shown(volume), pixels[..., 0])
        assert volume.corrections == ("three equal colour channels read as grey",)


@pytest.mark.parametrize("colours", [2, 4, 6])
def test_a_damaged_picture_of_16_bits_is_one_sentence(tmp_path: Path, colours: int) -> None:
    samples = {2: 3, 4: 2, 6: 4}[colours]
    content = deep_png(np.random.default_rng(0).integers(0, 65536, (60, 90, samples)).astype(np.uint16), colours)
    for damaged in (content[:300], content[:-700], content[:200] + bytes(300) + content[500:]):
        (tmp_path / "a.png").write_bytes(damaged)
        assert "picture" in refusal(tmp_path / "a.png")


@pytest.mark.parametrize("held", range(1, 9))
def test_every_way_of_holding_the_camera_is_as_pillow_turns_it(tmp_path: Path, held: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = held
    Image.fromarray(grey((16, 24), np.uint8)).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(shown(one(tmp_path / "a.png")), ImageOps.exif_transpose(Image.open(tmp_path / "a.png")))


def test_the_pixel_size_that_is_missing_is_noted(tmp_path: Path) -> None:
    Image.fromarray(grey((6, 9), np.uint8)).save(tmp_path / "a.png")
    volume = one(tmp_path / "a.png")
    assert volume.notes == ("no voxel size along 2 of 2 axes: 1 mm assumed",) and not volume.corrections
    (tmp_path / "a.json").write_text('{"spacing_mm": [0.2, 0.3]}')
    assert not one(tmp_path / "a.png").notes
