"""
Hypothesis strategies for affines, volumes and DICOM studies.

They need Hypothesis: ``pip install "medimg[testing]"``.

Examples
--------
>>> from hypothesis import given
>>> from medimg.testing import check_volume, strategies
>>> @given(strategies.volumes())
... def test_something(volume):
...     check_volume(volume)
"""

from __future__ import annotations

from itertools import permutations, product
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from medimg.core import geometry
from medimg.core.volume import Volume
from medimg.core.window import Window
from medimg.errors import MissingDependencyError
from medimg.testing.studies import Study

if TYPE_CHECKING:
    from hypothesis.strategies import DrawFn, SearchStrategy

    from medimg.core.geometry import Affine

__all__ = ["affines", "directions", "studies", "volumes"]

try:
    from hypothesis import strategies as st
except ImportError:
    raise MissingDependencyError(
        'medimg.testing.strategies needs Hypothesis: pip install "medimg[testing]"'
    ) from None

_AXES: Final = tuple(
    np.eye(3)[:, list(order)] * signs
    for order in permutations(range(3))
    for signs in product((1, -1), repeat=3)
)
_DTYPES: Final = ("u1", "i2", "u2", "i4", "f4", "f8")
_TILTS: Final = (0.0, 0.02, -0.1, 0.3)


#: Least distance of slices, in millimeters, that are drawn with a shear.
_LEAST_SHEARED: Final = 0.5


def _draw_lengths(least: float = 0.1, most: float = 8.0) -> SearchStrategy[float]:
    return st.floats(least, most).map(lambda v: round(v, 4))


@st.composite
def directions(draw: DrawFn, *, oblique: bool = True, mirrored: bool = True) -> Any:
    """
    Draw a (3, 3) matrix of perpendicular unit columns: one of the 48 orientations, possibly rotated.

    Parameters
    ----------
    oblique : bool
        Whether axes may be rotated off those of the patient.
    mirrored : bool
        Whether determinants of −1 are drawn too.
    """
    axes = draw(st.sampled_from([a for a in _AXES if mirrored or np.linalg.det(a) > 0]))
    if not oblique or draw(st.booleans()):
        return axes
    turn = np.asarray(draw(st.tuples(*[st.floats(-0.6, 0.6)] * 3)))
    return _make_rotation(turn) @ axes


def _make_rotation(turn: Any) -> Any:
    """Return a rotation by a Cayley transform, orthogonal for any three numbers."""
    a, b, c = turn
    skew = np.array([[0, -c, b], [c, 0, -a], [-b, a, 0]])
    return np.linalg.solve(np.eye(3) + skew, np.eye(3) - skew)


@st.composite
def affines(draw: DrawFn, *, sheared: bool = True, mirrored: bool = True) -> Affine:
    """
    Draw an affine, index (d, h, w) to LPS millimeters: any orientation, oblique, anisotropic, any origin.

    Parameters
    ----------
    sheared : bool
        Whether slices may be shifted relative to each other, as by gantry tilt.
    mirrored : bool
        Whether axes (w, h, d) may be left-handed, as never in DICOM.
    """
    matrix = draw(directions(mirrored=mirrored)) * draw(st.tuples(*[_draw_lengths()] * 3))
    if sheared:
        matrix[:, 2] += matrix[:, 1] * draw(st.sampled_from(_TILTS))
    affine = np.eye(4)
    # columns were drawn for (w, h, d), and an affine has them for (d, h, w); no direction is turned
    affine[:3, :3] = matrix[:, ::-1]
    affine[:3, 3] = draw(st.tuples(*[st.floats(-500, 500)] * 3))
    return affine


@st.composite
def volumes(draw: DrawFn, *, color: bool = True, most: int = 6) -> Volume:
    """
    Draw a small volume: any dtype, orientation and number of channels, with or without padding and windows.

    Parameters
    ----------
    color : bool
        Whether color images are drawn too.
    most : int
        Largest D, H and W.
    """
    is_color = color and draw(st.booleans())
    size = draw(st.tuples(*[st.integers(1, most)] * 3))
    shape = (3 if is_color else draw(st.integers(1, 3)), *size)
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    dtype = np.dtype("u1" if is_color else draw(st.sampled_from(_DTYPES)))
    in_patient = draw(st.booleans())
    spacing = draw(st.tuples(*[_draw_lengths()] * 3))
    return Volume(
        array=_draw_values(rng, shape, dtype),
        affine=draw(affines()) if in_patient else geometry.image_affine(spacing),
        modality=draw(st.sampled_from(["", "MR", "DX"])),
        photometric="RGB" if is_color else "MONOCHROME2",
        inverted=not is_color and draw(st.booleans()),
        space="patient" if in_patient else "image",
        voi=() if is_color else _draw_windows(draw, size[0]),
        padding=rng.random(shape) < 0.2 if draw(st.booleans()) else None,
    )


def _draw_values(rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
    if dtype.kind == "f":
        return rng.normal(0, 1000, shape).astype(dtype)
    ends = np.iinfo(dtype)
    return rng.integers(ends.min, ends.max, shape, dtype=dtype, endpoint=True)


def _draw_windows(draw: DrawFn, depth: int) -> tuple[tuple[Window, ...], ...]:
    count = draw(st.sampled_from([0, 1, depth]))
    width = draw(st.integers(1, 4000))
    return tuple((Window(float(n), float(width)),) for n in range(count))


@st.composite
def studies(draw: DrawFn, *, sound: bool = False) -> Study:
    """
    Draw a study to write with :func:`medimg.testing.studies.write_dicom`.

    Any orientation, tilt, size, number format, rescale, transfer syntax, order of files and numbers, time
    points or echoes, missing and duplicate slices, missing UIDs.

    Parameters
    ----------
    sound : bool
        Whether to exclude missing and duplicate slices, tilt and missing identifiers.
    """
    slices = draw(st.integers(1, 9))
    rows, columns = draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    matrix = draw(directions(mirrored=False))
    orientation = tuple(float(v) for v in np.round(matrix[:, :2].T.ravel(), 8))
    allocated = draw(st.sampled_from([8, 16, 16, 16]))
    stored = draw(st.integers(allocated // 2 + 1, allocated))
    several = draw(st.sampled_from(["", "", "times", "echoes"]))
    spacing = draw(st.tuples(*[_draw_lengths()] * 3))
    damage = {} if sound else _draw_defects(draw, slices, spacing[0], is_series=several == "times")
    shuffled = draw(st.booleans())
    slope, intercept = draw(st.sampled_from([(1, 0), (1, -1024), (2, -4096), (0.25, 10), (-1, 5)]))
    return Study(
        slices=slices,
        rows=rows,
        columns=columns,
        times=draw(st.integers(2, 4)) if several == "times" else 1,
        echoes=draw(st.integers(2, 3)) if several == "echoes" else 1,
        spacing=spacing,
        orientation=orientation,  # type: ignore[arg-type]  # six of them
        origin=draw(st.tuples(*[_draw_lengths(-300, 300)] * 3)),
        modality="MR" if several else draw(st.sampled_from(["CT", "MR"])),
        bits_allocated=allocated,
        bits_stored=stored,
        signed=draw(st.booleans()),
        dirty=draw(st.booleans()),
        slope=slope,
        intercept=intercept,
        syntax=draw(st.sampled_from(["implicit", "little", "big", "deflated", "rle"])),
        told_by=draw(st.sampled_from(["temporal", "acquisition", "trigger", "time", "number"])),
        shuffled=shuffled,
        seed=draw(st.integers(0, 2**16)),
        **damage,
    )


def _draw_defects(draw: DrawFn, slices: int, apart: float, *, is_series: bool) -> dict[str, Any]:
    """Draw defects of a study, slices `apart` mm, that still leave its content determined."""
    found: dict[str, Any] = {}
    if slices >= 6 and draw(st.booleans()):
        first = draw(st.integers(1, slices - 4))
        found["missing"] = tuple(range(first, first + draw(st.integers(1, 2))))
    present = [n for n in range(slices) if n not in found.get("missing", ())]
    if draw(st.booleans()):
        found["copied"] = tuple(sorted(draw(st.sets(st.sampled_from(present), max_size=2))))
    # a shear of less than 0.05 mm is none, and no gantry tilts by more than 30°
    if slices > 1 and apart >= _LEAST_SHEARED and draw(st.booleans()):
        found["shear"] = (
            apart * draw(st.sampled_from([-0.5, 0.3])),
            apart * draw(st.sampled_from([0.0, 0.2])),
        )
    if not is_series:
        found["numbered"] = draw(st.booleans())
        found["series_uid"] = draw(st.booleans())
        found["instance_uids"] = draw(st.booleans())
    return found
