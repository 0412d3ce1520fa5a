"""Pillow images: modes, orientation by EXIF, rendering of slices."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import medimg
from medimg.core.display import render
from medimg.errors import ConversionError, ReadError
from tests.interop.libraries import make_affine, make_volume

COLORS = np.random.default_rng(0).integers(0, 255, (5, 6, 4), dtype=np.uint8)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_an_image_is_read_as_its_file_is(mode: str, tmp_path: Path) -> None:
    image = (
        Image.fromarray(COLORS[..., 0].astype(np.uint16) * 99)
        if mode == "I;16"
        else Image.fromarray(COLORS).convert(mode)
    )
    image.save(tmp_path / "a.png")
    wanted = medimg.read(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as opened:
        found = [medimg.read(image), medimg.read(opened)]
    for one in found:
        np.testing.assert_array_equal(one.array, wanted.array)
        assert (one.photometric, one.display_range) == (wanted.photometric, wanted.display_range)
        assert one.space == "image"
    if mode != "1":
        assert found[1].report.transforms == wanted.report.transforms


@pytest.mark.parametrize("orientation", [1, 3, 6, 8, 9])
def test_an_open_file_is_turned_upright_as_a_file_is(orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(COLORS[..., :3]).save(tmp_path / "a.jpg", exif=exif, quality=95)
    wanted = medimg.read(tmp_path / "a.jpg")
    with Image.open(tmp_path / "a.jpg") as opened:
        np.testing.assert_array_equal(medimg.read(opened).array, wanted.array)
        assert medimg.scan(opened)[0].shape == wanted.shape


def test_three_equal_channels_are_one() -> None:
    image = Image.merge("RGB", [Image.fromarray(COLORS[..., 0])] * 3)
    found = medimg.from_pil(image)
    assert (found.shape, found.photometric, found.channels) == ((1, 1, 5, 6), "MONOCHROME2", ("",))
    assert medimg.to_tensor(image, size=32).shape == (1, 3, 32, 32)


def test_what_is_not_one_image_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ReadError, match="the mode LAB"):
        medimg.from_pil(Image.new("LAB", (3, 3)))
    frames = [Image.fromarray(COLORS[..., n]) for n in range(2)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    with Image.open(tmp_path / "a.gif") as opened, pytest.raises(ReadError, match="animation"):
        medimg.from_pil(opened)
    Image.fromarray(np.tile(COLORS, (50, 50, 1))).save(tmp_path / "b.png")
    data = (tmp_path / "b.png").read_bytes()
    (tmp_path / "b.png").write_bytes(data[: len(data) // 2])
    with (
        Image.open(tmp_path / "b.png") as opened,
        pytest.raises(ReadError, match="Pillow image can't be read"),
    ):
        medimg.read(opened)


def test_a_slice_is_rendered_as_it_is_shown() -> None:
    volume = make_volume(affine=make_affine("straight"))
    for index in (0, 3, -1):
        shown = medimg.to_pil(volume, index=index, window="percentile")
        np.testing.assert_array_equal(
            np.asarray(shown), render(volume.take([range(4)[index]]), index=0, window="percentile")
        )
    color = medimg.to_pil(make_volume("uint16", color=True, depth=1), window="auto")
    assert (color.mode, color.size) == ("RGB", (6, 5))


def test_errors_say_what_to_do() -> None:
    with pytest.raises(ConversionError, match="this volume has 4; expected index="):
        medimg.to_pil(make_volume())
    for index in (4, -5, 1.5, "1"):
        with pytest.raises(ConversionError, match="expected index="):
            medimg.to_pil(make_volume(), index=index)  # type: ignore[arg-type]
    with pytest.raises(ConversionError, match=r"volume\.select\(channel\)"):
        medimg.to_pil(make_volume(channels=2), index=0)
    with pytest.raises(ConversionError, match='window="auto"'):
        medimg.to_pil(make_volume("float64"), index=0)
    with pytest.raises(ConversionError, match="a color image of Pillow has no values of type uint16"):
        medimg.to_pil(make_volume("uint16", color=True), index=0)
