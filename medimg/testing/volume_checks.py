"""What a volume must satisfy, whatever it was read from."""

from __future__ import annotations

import math
from itertools import permutations
from typing import TYPE_CHECKING, Any, Final, get_args

import numpy as np

from medimg.core import geometry
from medimg.core.read_report import ReadReport, Skipped
from medimg.core.volume import Photometric, Space, Volume
from medimg.core.window import LookupTable, Window
from medimg.errors import GeometryError
from medimg.testing.check import on_volumes, require

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["VOLUME_CHECKS"]

#: Lengths beyond which a voxel can't be meant, in millimeters.
_LEAST_MM, _MOST_MM = 1e-6, 1e4
_CODES: Final = ("SPL", "RAS", "PIR", "ILA")


@on_volumes
def volume_is_a_volume(volume: Volume) -> None:
    """A reader returns a medimg.Volume."""
    require(isinstance(volume, Volume), f"a {type(volume).__name__}")


@on_volumes
def array_has_four_axes(volume: Volume) -> None:
    """The array is a plain numpy.ndarray (C, D, H, W), none of them 0."""
    require(type(volume.array) is np.ndarray, f"a {type(volume.array).__name__}")
    require(volume.array.ndim == 4 and 0 not in volume.array.shape, f"the shape {volume.array.shape}")


@on_volumes
def arrays_are_read_only(volume: Volume) -> None:
    """Array, affine and padding can't be written to, as a volume is a value."""
    arrays = {"array": volume.array, "affine": volume.affine, "padding": volume.padding}
    writeable = [name for name, a in arrays.items() if a is not None and a.flags.writeable]
    require(not writeable, f"{' and '.join(writeable)} can be written to")


@on_volumes
def array_holds_plain_numbers(volume: Volume) -> None:
    """Values are booleans, integers or floats of up to 8 bytes in the byte order of the machine."""
    dtype = volume.array.dtype
    require(dtype.kind in "biuf" and dtype.itemsize <= 8, f"values of type {dtype}")
    require(dtype.isnative, f"values in foreign byte order ({dtype.str})")


@on_volumes
def array_is_in_memory(volume: Volume) -> None:
    """The values don't change or die with the file: no memory map lies below the array."""
    base: Any = volume.array
    while base is not None:
        require(not isinstance(base, np.memmap), "a memory map of a file")
        base = getattr(base, "base", None)


@on_volumes
def affine_is_sound(volume: Volume) -> None:
    """The affine is a finite, invertible 4×4 float64 matrix with voxels of a size that can be meant."""
    affine = volume.affine
    require(
        affine.shape == (4, 4) and affine.dtype == np.float64, f"{affine.dtype} of the shape {affine.shape}"
    )
    require(np.isfinite(affine).all(), "numbers that are not finite")
    require((affine[3] == [0, 0, 0, 1]).all(), f"the last row {affine[3].tolist()}")
    spacing = geometry.spacing_of(affine)
    require(all(_LEAST_MM <= v <= _MOST_MM for v in spacing), f"the spacing {spacing} mm")
    flatness = abs(float(np.linalg.det(affine[:3, :3]))) / math.prod(spacing)
    require(flatness > 1e-3, f"axes that almost lie in one plane (determinant {flatness:.2g} of the cosines)")


@on_volumes
def space_without_patient_has_no_directions(volume: Volume) -> None:
    """In space "image" the affine holds sizes only, and no orientation is claimed."""
    require(volume.space in get_args(Space), f"the space {volume.space!r}")
    if volume.space == "patient":
        return
    sizes = geometry.image_affine(geometry.spacing_of(volume.affine))
    require(np.allclose(volume.affine, sizes), "an affine with directions or an origin")
    require(volume.orientation not in repr(volume), "an orientation in the repr")
    try:
        volume.reorient("SPL")
    except GeometryError:
        return
    require(False, "reorient() turned it all the same")


@on_volumes
def colors_are_red_green_blue(volume: Volume) -> None:
    """Photometric is RGB exactly where the channels are R, G, B; colors are unsigned and not inverted."""
    require(volume.photometric in get_args(Photometric), f"the photometric {volume.photometric!r}")
    is_color = volume.channels == ("R", "G", "B")
    require(
        (volume.photometric == "RGB") == is_color, f"{volume.photometric} with channels {volume.channels}"
    )
    if is_color:
        require(volume.array.dtype.kind == "u", f"colors of type {volume.array.dtype}")
        require(not volume.inverted, "inverted colors")


@on_volumes
def monochrome1_is_shown_inverted(volume: Volume) -> None:
    """MONOCHROME1 says so by `inverted`, for the display; the values stay as they are."""
    require(volume.photometric != "MONOCHROME1" or volume.inverted, "MONOCHROME1 that is not `inverted`")


@on_volumes
def channels_are_named(volume: Volume) -> None:
    """Each channel has a name of its own; a single one may go without."""
    names = volume.channels
    require(isinstance(names, tuple) and all(isinstance(n, str) for n in names), f"{type(names).__name__}")
    require(len(names) == volume.array.shape[0], f"{len(names)} names for {volume.array.shape[0]} channels")
    require(len(set(names)) == len(names) and (len(names) == 1 or all(names)), f"the names {names}")
    require(all(n.isprintable() for n in names), "names with control characters")


@on_volumes
def windows_fit_the_slices(volume: Volume) -> None:
    """Windows are declared for no slice, for all alike or for each, and each of them can be applied."""
    depth = volume.array.shape[1]
    require(len(volume.voi) in {0, 1, depth}, f"{len(volume.voi)} sets for {depth} slices")
    for alternatives in volume.voi:
        require(isinstance(alternatives, tuple), f"a set that is a {type(alternatives).__name__}")
        for voi in alternatives:
            require(isinstance(voi, Window | LookupTable), f"a {type(voi).__name__}")
            shown = voi.apply(np.array([0.0, 1.0]))
            require(np.isfinite(shown).all(), "a window that gives values that are not finite")
    require(volume.voi != ((),), "one empty set, where () says that nothing is declared")


@on_volumes
def padding_has_the_shape_of_the_array(volume: Volume) -> None:
    """The mask of padded pixels is boolean and has the shape of the array; None where there is none."""
    if volume.padding is None:
        return
    require(volume.padding.dtype == np.bool_, f"a mask of {volume.padding.dtype}")
    require(volume.padding.shape == volume.array.shape, f"the shape {volume.padding.shape}")


@on_volumes
def units_are_said(volume: Volume) -> None:
    """Units are a short word, "raw" where there are none; Hounsfield units are of CT."""
    units = volume.units
    require(
        isinstance(units, str) and 0 < len(units) <= 32 and units.isprintable(), "no short, printable word"
    )
    require(units != "HU" or volume.modality in {"CT", ""}, f"HU of {volume.modality}")


@on_volumes
def modality_is_a_code(volume: Volume) -> None:
    """The modality is a DICOM code such as "CT" or "MR", and "" where the format does not say."""
    text = volume.modality
    sound = isinstance(text, str) and len(text) <= 16 and text == text.strip().upper() and text.isprintable()
    require(sound, "no code")


@on_volumes
def report_says_what_was_done(volume: Volume) -> None:
    """The report holds files, steps and warnings as texts, and none, D or C·D SOP Instance UIDs."""
    report = volume.report
    require(isinstance(report, ReadReport), f"a {type(report).__name__}")
    texts = (*report.files, *report.transforms, *report.warnings, *report.duplicates)
    require(all(isinstance(t, str) and t for t in texts), "an entry that is empty or no text")
    require(
        all(isinstance(s, Skipped) and s.reason for s in report.skipped), "a skipped file without a reason"
    )
    c, d = volume.array.shape[:2]
    uids = report.sop_instance_uids
    require(len(uids) in {0, d, c * d}, f"{len(uids)} SOP Instance UIDs for {c} channels of {d} slices")
    require(all(0 <= place < d for place in report.missing), f"missing after {report.missing} of {d} slices")
    require(0 <= report.tilt < 90, f"a tilt of {report.tilt}°")
    both = set(report.files) & set(report.duplicates)
    require(not both, "files that are both used and left out as duplicates")


@on_volumes
def picture_and_repr_can_be_shown(volume: Volume) -> None:
    """The repr is one short line, and a notebook can show the volume without an error."""
    text = repr(volume)
    require(len(text) < 300 and "\n" not in text, f"a repr of {len(text)} characters")
    html = volume._repr_html_()
    require(html.startswith("<figure>") and html.endswith("</figure>"), "HTML that is no figure")
    require(str(volume.report), "an empty report")


@on_volumes
def turning_keeps_each_voxel_in_place(volume: Volume) -> None:
    """Reorienting permutes and flips, so that each value keeps its place in the patient."""
    if volume.space != "patient":
        return
    rng = np.random.default_rng(0)
    index = np.stack([rng.integers(0, n, 16) for n in volume.shape[1:]], axis=-1)
    world = geometry.index_to_lps(volume.affine, index)
    scale = 1e-6 * (1 + np.abs(world).max()) / min(volume.spacing)
    for code in _CODES:
        turned = volume.reorient(code)
        as_asked = turned.orientation == code or _halfway(volume.affine)
        require(as_asked, f"{turned.orientation} instead of {code}")
        found = (world - turned.affine[:3, 3]) @ np.linalg.inv(turned.affine[:3, :3]).T
        places = np.rint(found).astype(np.int64)
        require(np.abs(found - places).max() <= scale, f"voxels off their places after reorient({code!r})")
        require(_inside(places, turned.shape[1:]), f"voxels outside after reorient({code!r})")
        same = _equal(volume.array[:, *index.T], turned.array[:, *places.T])
        require(same, f"other values after reorient({code!r})")


@on_volumes
def taking_slices_keeps_them_in_place(volume: Volume) -> None:
    """Slices taken out of a volume keep values and places."""
    depth = volume.shape[1]
    for chosen in ([0], [depth - 1], list(range(0, depth, 2))):
        part = volume.take(chosen)
        require(_equal(part.array, volume.array[:, chosen]), f"other values in slices {chosen[:4]}")
        corner = geometry.index_to_lps(volume.affine, (chosen[0], 0, 0))
        require(np.allclose(part.affine[:3, 3], corner), f"another place of slices {chosen[:4]}")


def _halfway(affine: geometry.Affine) -> bool:
    """Whether the axes lie exactly between those of the patient, so that several codes fit equally well."""
    cosines = np.abs(affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0))
    fits = sorted(sum(cosines[axis, n] for n, axis in enumerate(p)) for p in permutations(range(3)))
    return bool(fits[-1] - fits[-2] < 1e-6)


def _inside(places: npt.NDArray[np.int64], shape: tuple[int, ...]) -> bool:
    return bool(((places >= 0) & (places < np.asarray(shape))).all())


def _equal(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> bool:
    return np.array_equal(one, other, equal_nan=one.dtype.kind == "f")


#: What every volume must satisfy.
VOLUME_CHECKS: Final = (
    volume_is_a_volume,
    array_has_four_axes,
    arrays_are_read_only,
    array_holds_plain_numbers,
    array_is_in_memory,
    affine_is_sound,
    space_without_patient_has_no_directions,
    colors_are_red_green_blue,
    monochrome1_is_shown_inverted,
    channels_are_named,
    windows_fit_the_slices,
    padding_has_the_shape_of_the_array,
    units_are_said,
    modality_is_a_code,
    report_says_what_was_done,
    picture_and_repr_can_be_shown,
    turning_keeps_each_voxel_in_place,
    taking_slices_keeps_them_in_place,
)
