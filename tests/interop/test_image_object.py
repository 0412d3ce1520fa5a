"""Images of other libraries as sources, whatever takes one, and round trips of all of them."""

from __future__ import annotations

import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import medimg
from medimg.core import geometry
from medimg.errors import (
    AmbiguousSeriesError,
    ConversionError,
    GeometryError,
    MedimgError,
    MedimgWarning,
    MissingDependencyError,
    PreprocessError,
    ReadError,
)
from medimg.interop.image_object import find_library
from tests.interop.libraries import (
    CASES,
    LIBRARIES,
    Library,
    make_affine,
    make_volume,
    try_round_trip,
)
from tests.io.volumes import affines

PLACING = [library for library in LIBRARIES if library.name != "Pillow"]
TABLE = Path(__file__).parents[2] / "docs" / "interop.rst"


@pytest.fixture(params=LIBRARIES, ids=str)
def library(request: pytest.FixtureRequest) -> Library:
    found: Library = request.param
    pytest.importorskip(found.module)
    return found


@pytest.mark.parametrize("case", CASES)
def test_a_round_trip_gives_what_the_table_in_docs_says(library: Library, case: str) -> None:
    result, _ = try_round_trip(library, CASES[case]())
    rows = TABLE.read_text(encoding="utf-8").partition(f"   * - {case}\n")[2].partition("   * - ")[0]
    cells = [line.removeprefix("     - ") for line in rows.splitlines() if line.startswith("     - ")]
    stated = cells[LIBRARIES.index(library)]
    assert stated.partition(" (")[0].strip("`") == result


@pytest.mark.parametrize("library", PLACING, ids=str)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    ras=affines(),
    shape=st.tuples(st.sampled_from([1, 2, 5]), *[st.integers(1, 4)] * 3),
    dtype=st.sampled_from(["int8", "uint8", "int16", "int32", "int64", "float32", "float64"]),
    data=st.data(),
)
def test_each_voxel_stays_where_it_is(
    library: Library, ras: Any, shape: tuple[int, ...], dtype: str, data: st.DataObject
) -> None:
    """By the positions that the library itself computes, in both directions."""
    pytest.importorskip(library.module)
    array = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    volume = medimg.Volume(array, geometry.lps_from_ras(ras), "MR")
    image = library.to(volume)
    index = tuple(data.draw(st.integers(0, size - 1)) for size in array.shape)
    value, point = library.look(image, (index[0], index[1], index[2], index[3]))
    assert value == array[index]
    np.testing.assert_allclose(point, geometry.index_to_lps(volume.affine, index[1:]), atol=1e-6)
    found = library.back(image)
    assert found.array.dtype == dtype
    np.testing.assert_array_equal(found.array, array)
    np.testing.assert_allclose(found.affine, volume.affine, rtol=0, atol=1e-6)


@pytest.mark.parametrize("color", [False, True])
@pytest.mark.parametrize("kind", ["left-handed", "sheared"])
def test_voxels_of_left_handed_and_sheared_images_stay_where_they_are(
    library: Library, kind: Any, color: bool
) -> None:
    volume = make_volume("uint8", affine=make_affine(kind), color=color)
    if library.name == "Pillow":
        pytest.skip("Pillow has no positions")
    if kind == "sheared" and library.name in ("SimpleITK", "highdicom"):
        with pytest.raises(GeometryError, match=r'sheared by 3\.43 degrees.*on_tilt="fix"'):
            library.to(volume)
        return
    image = library.to(volume)
    for index in [(0, 0, 0, 0), (volume.shape[0] - 1, 3, 1, 4), (0, 1, 4, 5)]:
        value, point = library.look(image, index)
        assert value == volume.array[index]
        np.testing.assert_allclose(point, geometry.index_to_lps(volume.affine, index[1:]), atol=1e-6)


def test_an_image_is_a_source_as_its_volume_is(library: Library) -> None:
    volume = make_volume(affine=make_affine("straight"))
    if library.name == "Pillow":
        volume = make_volume(depth=1, space="image")
    image = library.to(volume)
    recipe = medimg.Preprocess(window="percentile", size=32)
    wanted = recipe(volume)
    assert find_library(image) == library.name
    found = medimg.read(image)
    assert (found.report.format, found.report.files) == (library.name, ())
    np.testing.assert_array_equal(found.array, volume.array)
    for tensor in (
        recipe(image),
        medimg.to_tensor(image, window="percentile", size=32),
        medimg.read_tensors([image], recipe, on_error="raise").tensor,
        next(medimg.iter_tensors([image], recipe, on_error="raise")).tensor,
        recipe(medimg.scan(image)[0]),
        recipe(pickle.loads(pickle.dumps(medimg.scan(image)[0]))),
    ):
        assert tensor.equal(wanted)
    with pytest.raises(PreprocessError, match="expected several sources, found one"):
        medimg.read_tensors(image, recipe)


def test_some_slices_of_an_image_are_those_of_its_series(library: Library) -> None:
    if library.name == "Pillow":
        pytest.skip("one slice")
    volume = make_volume(affine=make_affine("straight"))
    series = medimg.scan(library.to(volume))[0]
    assert series.shape == volume.shape
    np.testing.assert_allclose(series.affine, volume.affine, atol=1e-6)
    part = series.read([1, 3])
    np.testing.assert_array_equal(part.array, volume.array[:, [1, 3]])
    np.testing.assert_allclose(part.affine, volume.take([1, 3]).affine, atol=1e-6)
    assert part.report.transforms == ("2 of 4 slices read",)
    pieces = [piece.array for piece in series.pieces(3)]
    assert [piece.shape[1] for piece in pieces] == [3, 1]
    np.testing.assert_array_equal(np.concatenate(pieces, axis=1), volume.array)
    with pytest.raises(ReadError, match="no data to compute SUV"):
        series.read(values="suv")
    for slices in ([3, 2, 1, 0], [0, 0, 1, 2]):
        with pytest.raises(GeometryError, match="expected ascending indices of 4 slices"):
            series.read(slices)


def test_later_changes_of_an_image_do_not_reach_its_volume(library: Library) -> None:
    volume = make_volume("float32", depth=1)
    image = library.to(volume)
    found = library.back(image)
    if library.name in ("MONAI", "TorchIO"):
        data = image if library.name == "MONAI" else image.data
        data += 1
    elif library.name == "Pillow":
        image.putpixel((0, 0), 99)
    elif library.name == "SimpleITK":
        image[0, 0, 0] = 99
    else:
        array = {"nibabel": "dataobj", "highdicom": "array", "xarray": "values"}[library.name]
        with pytest.raises(ValueError, match="read-only"):
            np.asarray(getattr(image, array))[...] = 99
    np.testing.assert_array_equal(found.array, volume.array)
    np.testing.assert_array_equal(volume.array, make_volume("float32", depth=1).array)


def test_facts_travel_where_an_image_has_a_place_for_them(library: Library) -> None:
    volume = replace(make_volume("uint8", channels=2), inverted=True, photometric="MONOCHROME1")
    if library.name == "Pillow":
        volume = replace(make_volume("uint8", depth=1), inverted=True, photometric="MONOCHROME1")
    if library.name in ("nibabel", "highdicom", "Pillow"):
        with pytest.warns(MedimgWarning, match="can't say that a display inverts this image"):
            library.to(volume)
        return
    found = library.back(library.to(volume))
    facts = ("modality", "units", "photometric", "inverted", "space", "channels")
    assert [getattr(found, fact) for fact in facts] == [getattr(volume, fact) for fact in facts]
    plain = library.back(library.to(make_volume()))
    assert (plain.photometric, plain.inverted) == ("MONOCHROME2", False)


def test_stated_facts_replace_those_of_an_image(library: Library) -> None:
    back: Any = library.back
    found = back(library.to(make_volume(depth=1)), modality="MR", units="raw")
    assert (found.modality, found.units) == ("MR", "raw")


def test_nothing_that_identifies_travels(library: Library) -> None:
    report = medimg.ReadReport(
        files=("/data/SENTINEL.dcm",), series_uid="1.2.SENTINEL", sop_instance_uids=("1.SENTINEL",)
    )
    image = library.to(replace(make_volume(depth=1), report=report))
    texts = [repr(image), repr(getattr(image, "__dict__", ""))]
    if library.name == "SimpleITK":
        texts += [image.GetMetaData(key) for key in image.GetMetaDataKeys()]
    texts += [
        repr(dict(getattr(image, name)))
        for name in ("meta", "attrs", "header", "info")
        if hasattr(image, name)
    ]
    assert "SENTINEL" not in " ".join(texts)


def test_a_type_that_a_library_lacks_is_an_error_with_the_way_out(library: Library) -> None:
    if library.name == "xarray":
        pytest.skip("it has all types")
    volume = medimg.Volume(np.zeros((1, 1, 2, 2), np.longdouble), np.eye(4))
    with pytest.raises(ConversionError, match=r"no values of type \w+; expected .*: convert them"):
        library.to(volume)


def test_other_objects_are_named_in_errors(library: Library) -> None:
    with pytest.raises(ReadError, match=r"expected an image of \w+; found a dict: medimg.read takes"):
        library.back({})
    with pytest.raises(
        ConversionError, match=r"medimg.to_\w+ takes a Volume or a heat map; found a str: read it first"
    ):
        library.to("scan.dcm")  # type: ignore[arg-type]


def test_truth_values_are_rendered_and_shown_as_0_and_1_are() -> None:
    """A mask of highdicom or MONAI stays one of truth values."""
    mask = np.random.default_rng(0).random((1, 3, 16, 16)) > 0.7
    volume = medimg.Volume(mask, make_affine("straight"))
    numbers = volume.with_array(mask.astype(np.uint8))
    assert volume._repr_png_() == numbers._repr_png_()
    for window in ("auto", "percentile"):
        recipe = medimg.Preprocess(window=window, size=16)
        wanted = recipe(numbers)
        assert recipe(volume).equal(wanted)
        assert recipe(medimg.to_highdicom(volume)).equal(wanted)
    assert medimg.Preprocess(window="percentile", size=16)(mask[0, 0]).shape == (1, 3, 16, 16)


def test_big_endian_and_strided_values_are_converted(library: Library) -> None:
    array = np.arange(2 * 3 * 4, dtype=">i2").reshape(1, 1, 4, 6)[..., ::-2]
    volume = medimg.Volume(array, np.eye(4))
    found = library.back(library.to(volume))
    np.testing.assert_array_equal(found.array, array)
    assert found.array.dtype.isnative


def test_several_images_are_several_series() -> None:
    image = medimg.to_nibabel(make_volume())
    index = medimg.scan([image, image])
    assert len(index) == len({series.uid for series in index}) == 2
    with pytest.raises(AmbiguousSeriesError, match="2 series in these files"):
        medimg.read([image, image])
    assert medimg.read([image]).shape == (1, 4, 5, 6)
    with pytest.raises(ReadError, match="nowhere"):
        medimg.scan([image, "/nowhere"])


def test_images_and_files_form_one_index(tmp_path: Path) -> None:
    import nibabel as nib

    image = medimg.to_nibabel(make_volume())
    nib.save(image, tmp_path / "a.nii")
    assert [series.format for series in medimg.scan([str(tmp_path / "a.nii"), image])] == ["nibabel", "NIfTI"]


def test_a_model_predicts_and_explains_images_of_all_libraries() -> None:
    recipe = medimg.Preprocess(size=64, window="percentile", slices=1)
    model = medimg.TransferClassifier("squeezenet1_1", classes=["a", "b"], weights=None, preprocess=recipe)
    volume = make_volume(affine=make_affine("straight"))
    images = [library.to(volume) for library in LIBRARIES[:3]]
    wanted = model.predict(volume)["p_a"][0]
    assert model.predict(images)["p_a"].tolist() == [wanted] * 3
    for image in images:
        assert model.predict(image)["p_a"].tolist() == [wanted]
    found = medimg.explain(model, images[2])
    assert found.heat.shape == (1, 5, 6)
    heat, wanted_heat = medimg.from_sitk(medimg.to_sitk(found)), found.to_volume()
    np.testing.assert_array_equal(heat.array, wanted_heat.array)
    np.testing.assert_allclose(heat.affine, wanted_heat.affine, atol=1e-9)


def test_reading_an_image_imports_no_other_library() -> None:
    code = (
        "import sys, medimg, PIL.Image\n"
        "medimg.read(PIL.Image.new('L', (4, 4)))\n"
        "others = {'torch', 'monai', 'torchio', 'highdicom', 'xarray', 'SimpleITK', 'nibabel'}\n"
        "found = others & set(sys.modules)\n"
        "assert not found, found\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_library_that_is_missing_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("torchio", "xarray", "highdicom"):
        monkeypatch.setitem(sys.modules, name, None)
    for function in (medimg.to_torchio, medimg.to_xarray, medimg.to_highdicom):
        with pytest.raises(MissingDependencyError, match="pip install"):
            function(make_volume())


def test_errors_of_a_library_become_read_errors_without_their_text(tmp_path: Path) -> None:
    import nibabel as nib

    path = tmp_path / "SENTINEL.nii"
    nib.save(medimg.to_nibabel(make_volume()), path)
    image = nib.load(path)
    path.unlink()
    with pytest.raises(ReadError, match=r"the nibabel image can't be read \(FileNotFoundError\)") as caught:
        medimg.read(image)
    assert "SENTINEL" not in str(caught.value)
    failed = medimg.read_tensors([image], medimg.Preprocess(size=32))
    assert isinstance(failed.errors[0], MedimgError)
