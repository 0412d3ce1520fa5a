from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medimg.core.window import PRESETS, LookupTable, VoiFunction, Window
from medimg.errors import PreprocessError


def by_the_standard(x: float, c: float, w: float, function: str) -> float:
    """PS3.3 C.11.2.1.2.1, C.11.2.1.3.1 and C.11.2.1.3.2 with the output range 0 to 1, branch by branch."""
    if function == "SIGMOID":
        return 1 / (1 + float(np.exp(np.clip(-4 * (x - c) / w, -700, 700))))
    if function == "LINEAR_EXACT":
        if x <= c - w / 2:
            return 0.0
        return 1.0 if x > c + w / 2 else (x - c) / w + 0.5
    if x <= c - 0.5 - (w - 1) / 2:
        return 0.0
    if x > c - 0.5 + (w - 1) / 2:
        return 1.0
    return (x - (c - 0.5)) / (w - 1) + 0.5


@given(
    x=st.floats(-4000, 4000),
    center=st.floats(-2000, 2000),
    width=st.one_of(st.just(1.0), st.floats(1.5, 4000)),
    function=st.sampled_from(["LINEAR", "LINEAR_EXACT", "SIGMOID"]),
)
def test_functions_follow_the_standard(x: float, center: float, width: float, function: VoiFunction) -> None:
    shown = Window(center, width, function).apply([x])[0]
    assert shown == pytest.approx(by_the_standard(x, center, width, function), abs=1e-9)


def test_linear_and_linear_exact_differ_by_what_is_known() -> None:
    x = np.arange(0, 64)
    linear, exact = (Window(32, 8, f).apply(x) * 255 for f in ("LINEAR", "LINEAR_EXACT"))
    assert np.abs(linear - exact).max() == pytest.approx(32, abs=5)


@pytest.mark.parametrize("name", list(PRESETS))
def test_presets_span_their_width(name: str) -> None:
    window = Window.preset(name)
    center, width = PRESETS[name]
    assert window.apply([center - width]) == 0
    assert window.apply([center + width]) == 1
    assert window.explanation == name


@pytest.mark.parametrize(
    ("center", "width", "function"),
    [(0, 0.5, "LINEAR"), (0, 0, "LINEAR_EXACT"), (float("nan"), 10, "LINEAR"), (0, 10, "CUBIC")],
)
def test_unsound_windows_are_refused(center: float, width: float, function: VoiFunction) -> None:
    with pytest.raises(PreprocessError):
        Window(center, width, function)


def test_unknown_preset_names_the_known() -> None:
    with pytest.raises(PreprocessError, match="soft_tissue"):
        Window.preset("lungs")


def test_unequal_windows_are_unequal() -> None:
    window = Window(40, 400)
    assert window == Window(40.0, 400.0, "LINEAR", "named")
    for other in (Window(41, 400), Window(40, 401), Window(40, 400, "SIGMOID")):
        assert window != other


def test_tables_clamp_and_do_not_wrap() -> None:
    table = LookupTable(first=-2, entries=np.array([0, 16, 62, 255], np.uint16), bits=8)
    assert (table.apply([-100, -2, -1, 0, 1, 9]) * 255).round().tolist() == [0, 0, 16, 62, 255, 255]


def test_a_table_with_too_few_declared_bits_keeps_its_range() -> None:
    table = LookupTable(first=0, entries=np.array([0, 1023], np.uint16), bits=8)
    assert table.apply([0, 1]).tolist() == [0.0, 1.0]


def test_tables_compare_by_every_field() -> None:
    table = LookupTable(0, np.array([0, 1], np.uint16), 8, "a")
    assert table == LookupTable(0, np.array([0, 1], np.uint16), 8, "a")
    assert hash(table) == hash(LookupTable(0, np.array([0, 1], np.uint16), 8, "a"))
    others = (
        LookupTable(1, np.array([0, 1], np.uint16), 8, "a"),
        LookupTable(0, np.array([0, 2], np.uint16), 8, "a"),
        LookupTable(0, np.array([0, 1], np.uint16), 9, "a"),
        LookupTable(0, np.array([0, 1], np.uint16), 8, "b"),
    )
    assert all(table != other for other in others)
