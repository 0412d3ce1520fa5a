"""Windowed 8-bit pictures against dcmtk's, and the choice among the windows that a file declares."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom.dataset import Dataset, FileDataset
from pydicom.sequence import Sequence

from medimg.core import geometry
from medimg.core.display import choose_voi, render
from medimg.core.volume import Volume
from medimg.core.window import LookupTable, Voi, VoiFunction, Window
from medimg.errors import PreprocessError, ReadError
from medimg.io.dicom.header.attributes import quiet_pydicom
from medimg.io.dicom.header.functional_groups import FrameViews
from medimg.io.dicom.header.open import open_dataset
from medimg.io.dicom.pixels._frames import StoredFrames
from medimg.preprocessing.preprocess import Preprocess
from tests.conformance import Conformance
from tests.dicom_files import make_instance, write
from tests.io.dicom.encodings import modality_values
from tests.io.dicom.independent import dcmtk
from tests.io.dicom.kinds import of_each_kind
from tests.io.dicom.plain_values import SliceValues
from tests.io.dicom.test_frame_reader import opened, parts
from tests.sampling import SLOW

#: Where dcmtk gives another picture, and why; see DIFFERENT in test_pixels.py.
KNOWN_DIFFERENCES = {
    "SC_rgb_jpeg_lossy_gdcm.dcm": "the header says RGB, the data are YCbCr: dcmtk follows the header",
    "RG3_JPLY": "lossy JPEG overshoots 10 bits: dcmtk drops the higher bit",
    "rtdose_expb.dcm": "dcmtk swaps 32 bits as two words; the same image in little endian has other values",
    "rtdose_expb_1frame.dcm": "as rtdose_expb.dcm",
}


#: Groups of elements that decide how an image looks.
GROUPS = (0x0002, 0x0008, 0x0020, 0x0028, 0x2050, 0x7FE0)


def dictionary(path: Path) -> str:
    """Write a data dictionary of `GROUPS` alone: dcmtk parses its own, which is long, at every start."""
    if path.exists():
        return str(path)
    from pydicom._dicom_dict import DicomDictionary

    mixed = {"US or SS": "xs", "OB or OW": "ox", "US or OW": "lt", "US or SS or OW": "lt"}
    lines = [
        f"({tag >> 16:04x},{tag & 0xFFFF:04x})\t{mixed.get(vr, vr)}\t{keyword}\t{vm}\tDICOM\n"
        for tag, (vr, vm, _, _, keyword) in DicomDictionary.items()
        if tag >> 16 in GROUPS and keyword and vr != "NONE"
    ]
    path.write_text("".join(lines))
    return str(path)


def by_dcmtk(path: Path, picture: Path, *options: str) -> npt.NDArray[np.int64] | None:
    """An 8-bit picture without overlays; None if dcmtk does not read the file."""
    picture.unlink(missing_ok=True)
    command = [dcmtk("dcmj2pnm"), "-q", "-O", "+op", *options, str(path), str(picture)]
    environment = {**os.environ, "DCMDICTPATH": dictionary(picture.with_suffix(".dic"))}
    done = subprocess.run(command, capture_output=True, check=False, env=environment)
    if done.returncode or not picture.exists() or not picture.stat().st_size:
        return None
    return np.asarray(Image.open(picture)).astype(np.int64)


def first_slice(dataset: Any) -> SliceValues:
    with quiet_pydicom():
        source = StoredFrames(dataset)
        stored, is_rgb = source.decode(0)
        return modality_values(FrameViews(dataset, source.count)[0], source.format, stored, is_rgb=is_rgb)


def as_volume(values: SliceValues) -> Volume:
    return Volume(
        array=values.array[:, None],
        affine=geometry.image_affine(),
        photometric=values.photometric,
        inverted=values.inverted,
        space="image",
        voi=(values.voi,) if values.voi else (),
        padding=None if values.padding is None else values.padding[:, None],
    )


def rendered(values: SliceValues, window: Voi) -> npt.NDArray[np.int64]:
    return render(as_volume(values), window=window).astype(np.int64)


def declared(values: SliceValues) -> list[tuple[Voi, list[str]]]:
    """What a file declares, with the option of dcmtk that takes it."""
    tables = [v for v in values.voi if isinstance(v, LookupTable)]
    windows = [v for v in values.voi if isinstance(v, Window)]
    chosen: list[tuple[Voi, list[str]]] = [(v, ["+Wl", str(n)]) for n, v in enumerate(tables, 1)]
    return chosen + [(v, ["+Wi", str(n)]) for n, v in enumerate(windows, 1)]


def given_windows(values: SliceValues) -> list[tuple[Voi, list[str]]]:
    """Windows that cut both ends of the range off."""
    low, high = float(values.array.min()), float(values.array.max())
    center, width = (low + high) / 2, max(2.0, (high - low) / 2)
    functions: tuple[tuple[VoiFunction, str], ...] = (("LINEAR", "+Wfl"), ("SIGMOID", "+Wfs"))
    return [(Window(center, width, f), ["+Ww", str(center), str(width), option]) for f, option in functions]


def differences(path: Path, values: SliceValues, picture: Path) -> list[tuple[str, int]]:
    """For each picture that dcmtk makes of a slice: what it shows, and by how much ours differs."""
    if values.photometric == "RGB":
        theirs = by_dcmtk(path, picture)
        if theirs is None or theirs.ndim != 3:
            return []
        ours = np.moveaxis(values.array, 0, -1) * (255.0 / np.iinfo(values.array.dtype).max)
        return [("color", int(np.abs(np.rint(ours) - theirs).max()))]
    if values.array.dtype.kind == "f":
        # dcmtk rounds modality values to integers
        return []
    keep = slice(None) if values.padding is None else ~values.padding[0]
    found = []
    for window, options in declared(values) + given_windows(values):
        theirs = by_dcmtk(path, picture, *options)
        if theirs is not None:
            difference = np.abs(rendered(values, window) - theirs)[keep].max(initial=0)
            found.append((options[0][1:], int(difference)))
    return found


@pytest.mark.slow
def test_pictures_of_real_files_equal_those_of_dcmtk(
    real_data: Path, tmp_path: Path, conformance: Conformance
) -> None:
    problems: list[str] = []
    known = set()
    counts = dict.fromkeys(("color", "Wi", "Wl", "Ww", "inverted"), 0)
    every = parts(real_data)
    chosen = set(of_each_kind((path for paths in every.values() for path in paths), KNOWN_DIFFERENCES))
    for part, paths in every.items():
        reasons, compared = [], 0
        for path in (path for path in paths if path in chosen):
            dataset = opened(path)
            try:
                if dataset is None or FrameViews(dataset, 1).has_per_frame_groups:
                    continue
                values = first_slice(dataset)
            except ReadError:
                continue
            found = differences(path, values, tmp_path / "picture")
            compared += len(found)
            if path.name in KNOWN_DIFFERENCES:
                known.add(path.name)
                reasons += [f"{path.name}: {KNOWN_DIFFERENCES[path.name]}"] * len(found)
                continue
            for what, difference in found:
                counts[what] += 1
                counts["inverted"] += values.inverted
                if difference > (2 if what == "color" else 1):
                    problems.append(f"{part}/{path.name}: {what} by {difference}")
        conformance.note(
            "comparison with dcmtk: rendered images", part, compared, len(reasons), sorted(set(reasons))
        )
    assert not problems, "\n".join(problems)
    assert known == set(KNOWN_DIFFERENCES)
    least = {"color": 50, "Wi": 50, "Ww": 200, "Wl": 1, "inverted": 10}
    if not SLOW:
        least = {"color": 20, "Wi": 20, "Ww": 80, "Wl": 1, "inverted": 5}
    assert all(counts[what] >= number for what, number in least.items()), counts


def table(first: int, entries: npt.NDArray[Any], bits: int, vr: str = "US") -> Dataset:
    item = Dataset()
    item.add_new(0x00283002, vr, [len(entries) & 0xFFFF, first, bits])
    item.add_new(0x00283006, "OW", entries.astype("<u2").tobytes())
    return item


def gray_ramp(signed: bool) -> FileDataset:
    ramp = np.arange(-2048, 2048) if signed else np.arange(4096)
    pixels = ramp.reshape(64, 64).astype(np.int16 if signed else np.uint16)
    return make_instance(pixels, BitsStored=12, HighBit=11, Modality="CR")


EIGHT_BITS = np.minimum(np.arange(4096) // 9, 255)
SIXTEEN_BITS = np.arange(4096)[::-1] * 16 + 15


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize(("entries", "bits"), [(EIGHT_BITS, 8), (SIXTEEN_BITS, 16), (np.arange(256), 8)])
@pytest.mark.parametrize("first", [0, 1000, -2048, -500])
def test_voi_tables_as_dcmtk_applies_them(
    tmp_path: Path, photometric: str, entries: npt.NDArray[Any], bits: int, first: int
) -> None:
    signed = first < 0
    dataset = gray_ramp(signed)
    dataset.PhotometricInterpretation = photometric
    dataset.RescaleIntercept = 0
    dataset.VOILUTSequence = Sequence([table(first, entries, bits, "SS" if signed else "US")])
    path = write(dataset, tmp_path / "one.dcm")
    values = first_slice(open_dataset(path))
    (voi,) = values.voi
    assert isinstance(voi, LookupTable)
    assert (voi.first, voi.entries.size) == (first, len(entries))
    theirs = by_dcmtk(path, tmp_path / "picture", "+Wl", "1")
    assert theirs is not None
    assert np.ptp(theirs) > 100
    assert np.abs(rendered(values, voi) - theirs).max() <= 1


def test_the_first_value_of_a_table_is_signed_where_its_input_is() -> None:
    """Implicit VR and careless writers give it as unsigned."""
    dataset = gray_ramp(True)
    dataset.RescaleIntercept = 0
    dataset.VOILUTSequence = Sequence([table(65536 - 500, EIGHT_BITS, 8)])
    (voi,) = first_slice(dataset).voi
    assert isinstance(voi, LookupTable)
    assert voi.first == -500


@pytest.mark.parametrize("bits", [8, 10, 16])
def test_a_table_that_understates_its_bits_does_not_wrap_around(bits: int) -> None:
    dataset = gray_ramp(False)
    dataset.RescaleIntercept = 0
    dataset.VOILUTSequence = Sequence([table(0, np.arange(4096) * 16, bits)])
    values = first_slice(dataset)
    shown = rendered(values, values.voi[0]).ravel()
    assert np.all(np.diff(shown) >= 0)
    assert shown[-1] >= 254


@pytest.mark.parametrize("signed", [False, True])
def test_modality_tables_as_dcmtk_applies_them(tmp_path: Path, signed: bool) -> None:
    dataset = gray_ramp(signed)
    del dataset.RescaleSlope, dataset.RescaleIntercept
    entries = np.sqrt(np.arange(2000) * 1000).astype(int)
    item = table(-1000 if signed else 1000, entries, 16, "SS" if signed else "US")
    item.ModalityLUTType = "US"
    dataset.ModalityLUTSequence = Sequence([item])
    path = write(dataset, tmp_path / "one.dcm")
    values = first_slice(open_dataset(path))
    assert (int(values.array.min()), int(values.array.max())) == (0, int(np.sqrt(1999 * 1000)))
    theirs = by_dcmtk(path, tmp_path / "picture", "+Ww", "700", "900")
    assert theirs is not None
    assert np.abs(rendered(values, Window(700, 900)) - theirs).max() <= 1


@pytest.mark.parametrize("function", ["LINEAR", "SIGMOID"])
@pytest.mark.parametrize(("photometric", "shape"), [("MONOCHROME1", ""), ("MONOCHROME2", "INVERSE")])
def test_declared_windows_and_inversion_as_dcmtk_applies_them(
    tmp_path: Path, function: str, photometric: str, shape: str
) -> None:
    dataset = gray_ramp(False)
    dataset.PhotometricInterpretation = photometric
    dataset.WindowCenter, dataset.WindowWidth = [300, -400.5, 1000], [700, 1, 2.5]
    dataset.VOILUTFunction = function
    options = ["+Piv"] if shape else []
    if shape:
        dataset.PresentationLUTShape = shape
    path = write(dataset, tmp_path / "one.dcm")
    values = first_slice(open_dataset(path))
    assert len(values.voi) == 3
    for number, window in enumerate(values.voi, 1):
        theirs = by_dcmtk(path, tmp_path / "picture", "+Wi", str(number), *options)
        assert theirs is not None
        assert theirs.ravel()[0] > theirs.ravel()[-1]
        assert np.abs(rendered(values, window) - theirs).max() <= 1, window


def reference(x: float, window: Window) -> float:
    """PS3.3 C.11.2.1.2.1, C.11.2.1.3.1 and C.11.2.1.3.2, word by word, for the range 0 to 1."""
    c, w = window.center, window.width
    if window.function == "SIGMOID":
        return float(1 / (1 + np.exp(np.float64(np.clip(-4 * (x - c) / w, -700, 700)))))
    if window.function == "LINEAR_EXACT":
        if x <= c - w / 2:
            return 0.0
        return 1.0 if x > c + w / 2 else (x - c) / w + 0.5
    if x <= c - 0.5 - (w - 1) / 2:
        return 0.0
    return 1.0 if x > c - 0.5 + (w - 1) / 2 else (x - (c - 0.5)) / (w - 1) + 0.5


@settings(deadline=None)
@given(
    center=st.floats(-5000, 5000),
    width=st.one_of(st.just(1.0), st.floats(1.001, 70000)),
    function=st.sampled_from(["LINEAR", "LINEAR_EXACT", "SIGMOID"]),
    values=st.lists(st.floats(-40000, 70000, width=32), min_size=1, max_size=20),
)
def test_window_functions_equal_their_definition(
    center: float, width: float, function: VoiFunction, values: list[float]
) -> None:
    window = Window(center, width, function)
    expected = [reference(x, window) for x in values]
    assert np.allclose(window.apply(values), expected, rtol=0, atol=1e-9)


BONES = Window(400, 2000, explanation="Bone")
CURVE = LookupTable(0, np.arange(4), 8, "CURVE")


def declaring(*alternatives: tuple[Voi, ...]) -> Volume:
    count = max(1, len(alternatives))
    array = np.arange(count * 12, dtype=np.int16).reshape(1, count, 3, 4)
    return Volume(array, geometry.image_affine(), "MR", voi=alternatives)


@pytest.mark.parametrize(
    ("window", "expected"),
    [
        ("dicom", CURVE),
        ("dicom:0", CURVE),
        ("dicom:1", BONES),
        ("dicom:BONE", BONES),
        ("dicom: bone", BONES),
        ("dicom:curve", CURVE),
        ("bone ", BONES),
    ],
)
def test_alternatives_by_place_and_by_explanation(window: str, expected: Voi) -> None:
    volume = declaring((CURVE, BONES))
    assert choose_voi(volume, window) == (expected,)


def test_explanations_are_looked_up_in_every_slice() -> None:
    other = Window(1, 2, explanation="BONE")
    volume = declaring((CURVE, BONES), (other, CURVE))
    assert choose_voi(volume, "dicom:bone") == (BONES, other)
    assert choose_voi(volume, "dicom:1") == (BONES, CURVE)
    with pytest.raises(PreprocessError, match=r"'lung' in every slice"):
        choose_voi(volume, "dicom:lung")


@pytest.mark.parametrize("window", ["dicom:2", "dicom:lung", "dicom:-1", "dicom:"])
def test_what_is_not_declared_is_an_error_that_lists_what_is(window: str) -> None:
    with pytest.raises(PreprocessError) as caught:
        choose_voi(declaring((CURVE, BONES)), window)
    for text in ("2 window(s)", "0: CURVE table of 4", "1: Bone center 400 width 2000"):
        assert text in str(caught.value)


def test_recipes_choose_among_declared_windows() -> None:
    volume = declaring((Window(5, 20, explanation="WIDE"), Window(5, 2, explanation="NARROW")))
    pictures = {w: Preprocess(window=w).render(volume).planes for w in ("dicom", "dicom:0", "dicom:1")}
    assert bool((pictures["dicom"] == pictures["dicom:0"]).all())
    assert not bool((pictures["dicom"] == pictures["dicom:1"]).all())
    narrow = Preprocess(window="dicom:narrow")
    assert bool((narrow.render(volume).planes == pictures["dicom:1"]).all())
    assert Preprocess.from_dict(narrow.to_dict()) == narrow
    for wrong in ("dicom:", "dicom: ", "dicomx"):
        with pytest.raises(PreprocessError, match="unknown window"):
            Preprocess(window=wrong)


def test_explanations_that_may_be_a_name_are_not_kept() -> None:
    dataset = gray_ramp(False)
    dataset.WindowCenter, dataset.WindowWidth = [1, 2], [3, 4]
    dataset.WindowCenterWidthExplanation = ["Sentinel^Name", "BONE"]
    first, second = first_slice(dataset).voi
    assert (first.explanation, second.explanation) == ("", "BONE")
