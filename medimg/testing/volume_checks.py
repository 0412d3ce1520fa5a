"""Checks of volumes of any format."""

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
from medimg.testing.check import require, volume_check

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["VOLUME_CHECKS"]

#: Range of plausible voxel sizes, in millimeters.
_LEAST_MM, _MOST_MM = 1e-6, 1e4
_CODES: Final = ("SPL", "RAS", "PIR", "ILA")


@volume_check
def volume_is_a_volume(volume: Volume) -> None:
    """A reader returns a medimg.Volume."""
    require(isinstance(volume, Volume), f"a {type(volume).__name__}")


@volume_check
def array_has_four_axes(volume: Volume) -> None:
    """The array is a plain numpy.ndarray (C, D, H, W), none of them 0."""
    require(type(volume.array) is np.ndarray, f"a {type(volume.array).__name__}")
    require(volume.array.ndim == 4 and 0 not in volume.array.shape, f"the shape {volume.array.shape}")


@volume_check
def arrays_are_read_only(volume: Volume) -> None:
    """Array, affine and padding are read-only."""
    arrays = {"array": volume.array, "affine": volume.affine, "padding": volume.padding}
    writeable = [name for name, a in arrays.items() if a is not None and a.flags.writeable]
    require(not writeable, f"{' and '.join(writeable)} can be written to")


@volume_check
def array_holds_plain_numbers(volume: Volume) -> None:
    """Values are booleans, integers or floats of up to 8 bytes in native byte order."""
    dtype = volume.array.dtype
    require(dtype.kind in "biuf" and dtype.itemsize <= 8, f"values of type {dtype}")
    require(dtype.isnative, f"values in foreign byte order ({dtype.str})")


@volume_check
def array_is_in_memory(volume: Volume) -> None:
    """The values do not depend on the file: no memory map underlies the array."""
    base: Any = volume.array
    while base is not None:
        require(not isinstance(base, np.memmap), "a memory map of a file")
        base = getattr(base, "base", None)


@volume_check
def affine_is_sound(volume: Volume) -> None:
    """The affine is a finite, invertible 4×4 float64 matrix with a plausible voxel size."""
    affine = volume.affine
    require(
        affine.shape == (4, 4) and affine.dtype == np.float64, f"{affine.dtype} of the shape {affine.shape}"
    )
    require(np.isfinite(affine).all(), "numbers that are not finite")
    require((affine[3] == [0, 0, 0, 1]).all(), f"the last row {affine[3].tolist()}")
    spacing = geometry.spacing_of(affine)
    require(all(_LEAST_MM <= v <= _MOST_MM for v in spacing), f"the spacing {spacing} mm")
    flatness = abs(float(np.linalg.det(affine[:3, :3]))) / math.prod(spacing)
    require(flatness > 1e-3, f"axes that are almost coplanar (determinant {flatness:.2g} of the cosines)")


@volume_check
def space_without_patient_has_no_directions(volume: Volume) -> None:
    """In space "image" the affine holds sizes only, and there is no orientation."""
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
    require(False, "reorient() did not raise an error")


@volume_check
def colors_are_red_green_blue(volume: Volume) -> None:
    """Photometric is RGB exactly if the channels are R, G, B; colors are unsigned and not inverted."""
    require(volume.photometric in get_args(Photometric), f"the photometric {volume.photometric!r}")
    is_color = volume.channels == ("R", "G", "B")
    require(
        (volume.photometric == "RGB") == is_color, f"{volume.photometric} with channels {volume.channels}"
    )
    if is_color:
        require(volume.array.dtype.kind == "u", f"colors of type {volume.array.dtype}")
        require(not volume.inverted, "inverted colors")


@volume_check
def monochrome1_is_shown_inverted(volume: Volume) -> None:
    """MONOCHROME1 sets `inverted`, for the display; the values are unchanged."""
    require(volume.photometric != "MONOCHROME1" or volume.inverted, "MONOCHROME1 that is not `inverted`")


@volume_check
def channels_are_named(volume: Volume) -> None:
    """Each channel has a unique name; a single one may have none."""
    names = volume.channels
    require(isinstance(names, tuple) and all(isinstance(n, str) for n in names), f"{type(names).__name__}")
    require(len(names) == volume.array.shape[0], f"{len(names)} names for {volume.array.shape[0]} channels")
    require(len(set(names)) == len(names) and (len(names) == 1 or all(names)), f"the names {names}")
    require(all(n.isprintable() for n in names), "names with control characters")


@volume_check
def windows_fit_the_slices(volume: Volume) -> None:
    """Windows are declared for no slice, once for all or for each, and each can be applied."""
    depth = volume.array.shape[1]
    require(len(volume.voi) in {0, 1, depth}, f"{len(volume.voi)} sets for {depth} slices")
    for alternatives in volume.voi:
        require(isinstance(alternatives, tuple), f"a set that is a {type(alternatives).__name__}")
        for voi in alternatives:
            require(isinstance(voi, Window | LookupTable), f"a {type(voi).__name__}")
            shown = voi.apply(np.array([0.0, 1.0]))
            require(np.isfinite(shown).all(), "a window that gives values that are not finite")
    require(volume.voi != ((),), "one empty set, where () says that nothing is declared")


@volume_check
def padding_has_the_shape_of_the_array(volume: Volume) -> None:
    """The padding mask is boolean and has the shape of the array; None if there is no padding."""
    if volume.padding is None:
        return
    require(volume.padding.dtype == np.bool_, f"a mask of {volume.padding.dtype}")
    require(volume.padding.shape == volume.array.shape, f"the shape {volume.padding.shape}")


@volume_check
def units_are_said(volume: Volume) -> None:
    """Units are a short word, "raw" if there are none; Hounsfield units are of CT."""
    units = volume.units
    require(
        isinstance(units, str) and 0 < len(units) <= 32 and units.isprintable(), "no short, printable word"
    )
    require(units != "HU" or volume.modality in {"CT", ""}, f"HU of {volume.modality}")


@volume_check
def modality_is_a_code(volume: Volume) -> None:
    """The modality is a DICOM code such as "CT" or "MR", or "" if the format has none."""
    text = volume.modality
    sound = isinstance(text, str) and len(text) <= 16 and text == text.strip().upper() and text.isprintable()
    require(sound, "no code")


@volume_check
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
    require(all(0 <= index < d for index in report.missing), f"missing after {report.missing} of {d} slices")
    require(0 <= report.tilt < 90, f"a tilt of {report.tilt}°")
    both = set(report.files) & set(report.duplicates)
    require(not both, "files that are both used and left out as duplicates")


@volume_check
def picture_and_repr_can_be_shown(volume: Volume) -> None:
    """The repr is one short line, and a notebook can show the volume without an error."""
    text = repr(volume)
    require(len(text) < 300 and "\n" not in text, f"a repr of {len(text)} characters")
    html = volume._repr_html_()
    require(html.startswith("<figure>") and html.endswith("</figure>"), "HTML that is no figure")
    require(str(volume.report), "an empty report")


@volume_check
def turning_keeps_each_voxel_in_place(volume: Volume) -> None:
    """Reorienting permutes and flips, so that each value keeps its position in the patient."""
    if volume.space != "patient":
        return
    rng = np.random.default_rng(0)
    index = np.stack([rng.integers(0, n, 16) for n in volume.shape[1:]], axis=-1)
    world = geometry.index_to_lps(volume.affine, index)
    scale = 1e-6 * (1 + np.abs(world).max()) / min(volume.spacing)
    for code in _CODES:
        turned = volume.reorient(code)
        as_asked = turned.orientation == code or _is_ambiguous(volume.affine)
        require(as_asked, f"{turned.orientation} instead of {code}")
        found = (world - turned.affine[:3, 3]) @ np.linalg.inv(turned.affine[:3, :3]).T
        indices = np.rint(found).astype(np.int64)
        require(
            np.abs(found - indices).max() <= scale, f"voxels off their positions after reorient({code!r})"
        )
        require(_is_inside(indices, turned.shape[1:]), f"voxels outside after reorient({code!r})")
        same = _has_equal_values(volume.array[:, *index.T], turned.array[:, *indices.T])
        require(same, f"other values after reorient({code!r})")


@volume_check
def taking_slices_keeps_them_in_place(volume: Volume) -> None:
    """Slices taken from a volume keep values and positions."""
    depth = volume.shape[1]
    for chosen in ([0], [depth - 1], list(range(0, depth, 2))):
        part = volume.take(chosen)
        require(
            _has_equal_values(part.array, volume.array[:, chosen]), f"other values in slices {chosen[:4]}"
        )
        corner = geometry.index_to_lps(volume.affine, (chosen[0], 0, 0))
        require(np.allclose(part.affine[:3, 3], corner), f"another position of slices {chosen[:4]}")


def _is_ambiguous(affine: geometry.Affine) -> bool:
    """Whether the axes are exactly between those of the patient, so that several codes fit equally well."""
    cosines = np.abs(affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0))
    fits = sorted(sum(cosines[axis, n] for n, axis in enumerate(p)) for p in permutations(range(3)))
    return bool(fits[-1] - fits[-2] < 1e-6)


def _is_inside(indices: npt.NDArray[np.int64], shape: tuple[int, ...]) -> bool:
    return bool(((indices >= 0) & (indices < np.asarray(shape))).all())


def _has_equal_values(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> bool:
    return np.array_equal(one, other, equal_nan=one.dtype.kind == "f")


#: Checks of every volume.
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
