from __future__ import annotations

from itertools import permutations, product
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medimg.core import geometry
from medimg.core.stacking import analyze_positions
from medimg.errors import GeometryError

CODES = ["".join(letters) for order in permutations(("LR", "PA", "SI")) for letters in product(*order)]
AXIAL = (1, 0, 0, 0, 1, 0)


def axial(step: float = 2.5) -> geometry.Affine:
    return geometry.affine_from_slices([-10, -20, 5], [0, 0, step], AXIAL, [0.8, 0.6])


def test_there_are_48_orientations() -> None:
    assert len(set(CODES)) == 48


@pytest.mark.parametrize("code", CODES)
def test_reorienting_keeps_every_voxel_in_its_place(code: str) -> None:
    array = np.arange(3 * 4 * 5).reshape(3, 4, 5)
    affine = axial()
    view, turned, _, _ = geometry.reorient(array, affine, code)
    assert geometry.orientation_code(turned) == code
    place = {
        tuple(np.round(geometry.index_to_lps(affine, index), 6)): array[index]
        for index in np.ndindex(array.shape)
    }
    for index in np.ndindex(view.shape):
        assert place[tuple(np.round(geometry.index_to_lps(turned, index), 6))] == view[index]


@pytest.mark.parametrize("code", CODES)
def test_codes_agree_with_nibabel(code: str) -> None:
    _, affine, _, _ = geometry.reorient(np.zeros((3, 4, 5)), axial(), code)
    opposite = str.maketrans("LRPASI", "RLAPSI")
    expected = "".join(nib.aff2axcodes(geometry.ras_from_lps(affine)))
    # nibabel goes by (i, j, k) = (w, h, d), and its letters, like these, say where an axis leads
    assert geometry.orientation_code(affine)[::-1] == expected
    assert code.translate(opposite) != code


def test_lps_and_ras_are_inverse() -> None:
    affine = axial()
    assert np.array_equal(geometry.lps_from_ras(geometry.ras_from_lps(affine)), affine)
    assert geometry.ras_from_lps(affine)[0, 3] == 10


@pytest.mark.parametrize(
    ("orientation", "shown"),
    [
        ((1, 0, 0, 0, 1, 0), "SPL"),
        ((-1, 0, 0, 0, -1, 0), "SPL"),
        ((1, 0, 0, 0, 0, -1), "PIL"),
        ((0, 1, 0, 0, 0, -1), "RIP"),
    ],
)
def test_slices_are_shown_as_radiologists_do(orientation: tuple[float, ...], shown: str) -> None:
    normal = geometry.slice_normal(orientation)
    affine = geometry.affine_from_slices([0, 0, 0], normal, orientation, [1, 1])
    assert geometry.display_code(affine) == shown


@pytest.mark.parametrize("code", ["", "LP", "LPX", "LRS", "SPLL"])
def test_unsound_codes_are_refused(code: str) -> None:
    with pytest.raises(GeometryError):
        geometry.reorient(np.zeros((1, 1, 1)), axial(), code)


@pytest.mark.parametrize(
    "orientation", [(1, 0, 0, 1, 0, 0), (0, 0, 0, 0, 0, 0), (2, 0, 0, 0, 1, 0), (float("nan"), 0, 0, 0, 1, 0)]
)
def test_unsound_orientations_are_refused(orientation: tuple[float, ...]) -> None:
    with pytest.raises(GeometryError):
        geometry.slice_normal(orientation)


@given(
    order=st.permutations(range(9)),
    gap=st.floats(0.3, 10),
    tilt=st.floats(-0.5, 0.5),
    start=st.floats(-500, 500),
)
def test_any_order_of_files_gives_the_same_stack(
    order: list[int], gap: float, tilt: float, start: float
) -> None:
    z = start + gap * np.arange(9)
    positions = np.stack([np.full(9, 3.0), tilt * (z - start), z], axis=1)
    stack = analyze_positions(positions[order], AXIAL)
    assert [order[i] for i in stack.order] == list(range(9))
    assert np.allclose(stack.step, [0, tilt * gap, gap], atol=1e-9)
    assert not stack.missing
    assert not stack.irregular
    assert not stack.duplicates
    assert (stack.tilt > 0) == (abs(np.degrees(np.arctan(tilt))) > 0.1 and abs(tilt) * gap * 8 > 0.05)


def stack_of(z: list[float]) -> geometry.Affine:
    return np.stack([np.zeros(len(z)), np.zeros(len(z)), z], axis=1)


def test_ten_micrometers_of_jitter_are_regular() -> None:
    z = 2.0 * np.arange(20) + np.where(np.arange(20) % 2, 0.005, -0.005)
    stack = analyze_positions(stack_of(list(z)), AXIAL)
    assert not stack.is_jittered
    assert not stack.missing
    assert not stack.irregular


def test_five_percent_of_jitter_is_seen() -> None:
    z = [0.0, 2.0, 4.1, 6.1, 8.1]
    assert analyze_positions(stack_of(z), AXIAL).is_jittered


def test_a_gap_is_counted_in_whole_slices_and_does_not_stretch_the_step() -> None:
    z = [2.0 * n for n in range(20) if n not in (7, 8)]
    stack = analyze_positions(stack_of(z), AXIAL)
    assert stack.missing == ((6, 2),)
    assert np.allclose(stack.step, [0, 0, 2])


def test_an_uneven_distance_is_irregular_and_not_missing() -> None:
    stack = analyze_positions(stack_of([0, 2, 4, 7, 9, 11]), AXIAL)
    assert stack.irregular == (2,)
    assert stack.missing == ()
    assert np.allclose(stack.step, [0, 0, 2])


def test_duplicates_are_left_out_with_what_they_repeat() -> None:
    stack = analyze_positions(stack_of([0, 2, 2, 4]), AXIAL)
    assert stack.order == (0, 1, 3)
    assert stack.duplicates == ((2, 1),)


def test_descending_positions_are_sorted_along_the_normal() -> None:
    assert analyze_positions(stack_of([4, 2, 0]), AXIAL).order == (2, 1, 0)
    flipped = (1, 0, 0, 0, -1, 0)
    assert analyze_positions(stack_of([0, 2, 4]), flipped).order == (2, 1, 0)


def test_uneven_subsets_keep_their_ends_in_place() -> None:
    affine = geometry.subset_affine(axial(), [1, 2, 9])
    for d, original in ((0, 1), (2, 9)):
        assert np.allclose(
            geometry.index_to_lps(affine, (d, 0, 0)), geometry.index_to_lps(axial(), (original, 0, 0))
        )


@pytest.mark.parametrize("slices", [[1.5], ["a"], 2, slice(0, 2), None, [], [2, 1], [-1], [9]])
def test_slices_are_whole_ascending_numbers(slices: Any) -> None:
    with pytest.raises(GeometryError, match="expected"):
        geometry.ascending_slices(slices, 5)
    assert geometry.ascending_slices(list(np.array([0, 3])), 5) == [0, 3]
