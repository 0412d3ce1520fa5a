"""Figures of volumes: planes, their sizes and directions, windows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import medimg
from medimg import Volume, Window
from medimg.core.display import render
from medimg.core.geometry import affine_from_slices
from medimg.errors import GeometryError, MedimgError, MissingDependencyError
from medimg.plotting.volume_viewer import encode_nifti

NIBABEL = pytest.importorskip("nibabel")


def ct(affine: np.ndarray[Any, Any] | None = None, **fields: Any) -> Volume:
    """A volume of distinct values: D toward S, H toward P, W toward L."""
    axial = affine_from_slices([0, 0, 0], [0, 0, 4], [1, 0, 0, 0, 1, 0], [0.5, 0.8])
    values = np.random.default_rng(0).integers(-100, 200, (1, 6, 20, 30)).astype(np.int16)
    return Volume(values, axial if affine is None else affine, **{"modality": "CT", "units": "HU", **fields})


def shown(volume: Volume, **options: Any) -> list[tuple[np.ndarray[Any, Any], tuple[float, ...], str]]:
    """Image, extent and title of each plane."""
    figure = volume.plot(**options)
    return [
        (np.asarray(axes.images[0].get_array()), axes.images[0].get_extent(), axes.get_title())
        for axes in figure.axes
    ]


def test_three_planes_in_physical_aspect() -> None:
    volume = ct()
    axial, coronal, sagittal = shown(volume, at=(1, 2, 3))
    window = Window.preset("soft_tissue")
    expected = window.apply(volume.array[0])
    assert np.allclose(axial[0], expected[1])
    assert np.allclose(coronal[0], expected[::-1, 2]), "the head is up"
    assert np.allclose(sagittal[0], expected[::-1, :, 3])
    # width and height in millimeters: 30 × 0.8 (columns), 20 × 0.5 (rows), 6 × 4 (slices)
    sizes = [(extent[1], extent[2]) for _, extent, _ in (axial, coronal, sagittal)]
    assert np.allclose(sizes, [(24.0, 10.0), (24.0, 24.0), (10.0, 24.0)])
    assert [title for *_, title in (axial, coronal, sagittal)] == [
        "axial, d = 1", "coronal, h = 2", "sagittal, w = 3",
    ]  # fmt: skip


@pytest.mark.parametrize("code", ["LSA", "IPR", "PIL"])
def test_the_order_of_the_array_does_not_change_the_planes(code: str) -> None:
    volume = ct()
    for one, other in zip(shown(volume, at=(3, 10, 15)), shown(volume.reorient(code)), strict=True):
        assert one[0].shape == other[0].shape
        assert np.allclose(one[1], other[1])


def test_planes_of_a_marked_voxel_are_those_of_the_patient() -> None:
    volume = ct()
    values = np.zeros(volume.shape, np.int16)
    values[0, 1, 2, 3] = 400
    marked = volume.with_array(values)
    for code in ("SPL", "LSA", "IPR", "PIL"):
        turned = marked.reorient(code)
        at = [int(n) for n in np.argwhere(turned.array[0] == 400)[0]]
        rows = [np.argwhere(image == image.max())[0].tolist() for image, *_ in shown(turned, at=at)]
        assert rows == [[2, 3], [6 - 1 - 1, 3], [6 - 1 - 1, 2]], code


def test_letters_mark_the_directions() -> None:
    texts = [{t.get_text(): t.get_position() for t in axes.texts} for axes in ct().plot().axes]
    assert [set(one) for one in texts] == [set("APRL"), set("SIRL"), set("SIAP")]
    assert texts[0]["R"][0] < texts[0]["L"][0], "the patient's right is on the left"
    assert texts[1]["S"][1] > 0.9
    assert texts[2]["A"][0] < 0.1


def test_windows_inversion_and_padding() -> None:
    volume = ct(voi=tuple((Window(100.0 * d, 50.0),) for d in range(1, 7)))
    axial, coronal, _ = shown(volume, window="dicom", at=(1, 2, 3))
    assert np.allclose(axial[0], Window(200.0, 50.0).apply(volume.array[0, 1]))
    assert np.allclose(coronal[0][-1], Window(100.0, 50.0).apply(volume.array[0, 0, 2]))
    padding = np.zeros(volume.shape, bool)
    padding[..., :5] = True
    dark = replace(ct(), inverted=True, padding=padding)
    plain, inverted = shown(ct())[0][0], shown(dark)[0][0]
    assert np.allclose(inverted[:, 5:], 1 - plain[:, 5:])
    assert not inverted[:, :5].any()
    values = ct().array.astype(np.float32)
    values[0, 3, 10] = np.nan
    assert not shown(ct().with_array(values))[0][0][10].any()


@pytest.mark.parametrize("space", ["patient", "image"])
def test_a_single_slice_is_shown_as_it_is_rendered(space: Any) -> None:
    volume = replace(ct().take([2]), space=space)
    ((image, extent, title),) = shown(volume)
    assert np.allclose(np.rint(image * 255), render(volume))
    assert np.allclose((extent[1], extent[2]), (24.0, 10.0))
    assert title == ""


def test_colors_and_channels() -> None:
    rgb = np.random.default_rng(1).integers(0, 255, (3, 1, 8, 12)).astype(np.uint8)
    ((image, *_),) = shown(Volume(rgb, np.eye(4), photometric="RGB", space="image"))
    assert np.allclose(image, rgb[:, 0].transpose(1, 2, 0) / 255)
    two = Volume(np.stack([ct().array[0], ct().array[0] + 50]), ct().affine, channels=("a", "b"))
    window = Window(0.0, 100.0)
    assert np.allclose(shown(two, channel="b", window=window)[0][0], window.apply(two.array[1, 3]))


def test_oblique_volumes_are_cut_along_their_own_axes() -> None:
    angle = np.deg2rad(20)
    tilted = affine_from_slices(
        [0, 0, 0],
        [0, -4 * np.sin(angle), 4 * np.cos(angle)],
        [1, 0, 0, 0, np.cos(angle), np.sin(angle)],
        [1, 1],
    )
    assert [title.partition(",")[0] for *_, title in shown(ct(tilted))] == ["axial", "coronal", "sagittal"]


@pytest.mark.parametrize("at", [(1, 2), (9, 0, 0), (-1, 0, 0), (0.5, 0, 0), 3, "abc", (True, 0, 0)])
def test_positions_outside_are_refused(at: Any) -> None:
    with pytest.raises(GeometryError, match=r"of at must be|at must be three indices"):
        ct().plot(at=at)


def test_other_mistakes_are_named() -> None:
    with pytest.raises(GeometryError, match="no channel 3"):
        ct().plot(channel=3)
    with pytest.raises(MedimgError):
        ct().plot(window="lungs")
    empty = ct().with_array(np.full((1, 6, 20, 30), np.nan, np.float32))
    with pytest.raises(MedimgError, match="padding or not finite"):
        empty.plot(window="percentile")


def test_figures_show_themselves_and_pyplot_does_not_keep_them() -> None:
    figure = ct().plot()
    assert figure._repr_png_()[:4] == b"\x89PNG"  # type: ignore[attr-defined]  # a subclass, made on use
    from matplotlib import pyplot

    assert pyplot.get_fignums() == []


def test_a_series_reads_only_the_slices_that_it_shows(tmp_path: Path) -> None:
    values = np.random.default_rng(2).integers(0, 500, (16, 12, 9)).astype(np.int16)
    NIBABEL.save(NIBABEL.Nifti1Image(values, np.diag([1.0, 2.0, 3.0, 1.0])), tmp_path / "a.nii")
    (series,) = medimg.scan(tmp_path)
    read = []

    def observe(slices: Any, policies: Any) -> Volume:
        read.append(slices)
        return series.reader(slices, policies)

    figure = replace(series, reader=observe).plot(most=4)
    assert read == [[0, 3, 5, 8]]
    assert [axes.get_title() for axes in figure.axes if axes.images] == [f"slice {n}" for n in (0, 3, 5, 8)]
    assert [axes.get_title() for axes in series.plot(most=1).axes if axes.images] == ["slice 4"]
    for most in (0, 101, "all"):
        with pytest.raises(MedimgError, match="most must be a whole number"):
            series.plot(most=most)  # type: ignore[arg-type]  # refused


@pytest.mark.parametrize("dtype", ["int16", "float64", "uint8", "int64"])
def test_the_viewer_gets_values_and_positions(dtype: str) -> None:
    volume = Volume(ct().array.astype(dtype), ct().affine)
    image = NIBABEL.Nifti1Image.from_bytes(encode_nifti(volume))
    assert np.array_equal(np.asarray(image.dataobj), volume.array[0].transpose(2, 1, 0))
    index = np.array([3.0, 2.0, 1.0, 1.0])
    assert np.allclose((image.affine @ index)[:3] * (-1, -1, 1), (volume.affine @ [1.0, 2.0, 3.0, 1.0])[:3])


def test_the_viewer_gets_colors_and_channels() -> None:
    rgb = np.random.default_rng(1).integers(0, 255, (3, 2, 4, 5)).astype(np.uint8)
    image = NIBABEL.Nifti1Image.from_bytes(encode_nifti(Volume(rgb, np.eye(4), photometric="RGB")))
    found = np.asarray(image.dataobj)
    assert [np.array_equal(found[c], rgb[n].transpose(2, 1, 0)) for n, c in enumerate("RGB")] == [True] * 3
    two = Volume(np.zeros((2, 2, 4, 5), np.float32), np.eye(4))
    assert NIBABEL.Nifti1Image.from_bytes(encode_nifti(two)).shape == (5, 4, 2, 2)


def test_the_viewer_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "ipyniivue", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'medimg\[view\]'"):
        ct().view()
