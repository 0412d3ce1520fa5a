"""Figures and axes that a notebook shows without pyplot."""

import io
import sys

import numpy as np
import pytest
from PIL import Image

from medimg._plot_style import make_axes, make_figure


def decode(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("L"))


def test_a_figure_and_its_axes_show_themselves_without_pyplot() -> None:
    before = "matplotlib.pyplot" in sys.modules
    figure, (axes,) = make_axes((3, 2))
    axes.plot([0, 1], [0, 1])
    shown = figure._repr_png_()  # type: ignore[attr-defined]  # a subclass, made on use
    assert axes._repr_png_() == shown  # type: ignore[attr-defined]  # as above
    assert decode(shown).std() > 5
    assert ("matplotlib.pyplot" in sys.modules) == before


@pytest.mark.parametrize("shape", [(1, 1), (2, 3)])
def test_all_axes_of_a_figure_show_themselves(shape: tuple[int, int]) -> None:
    figure = make_figure((4, 3))
    for axes in figure.subplots(*shape, squeeze=False).flat:
        assert axes._repr_png_()[:4] == b"\x89PNG"
    assert figure.add_subplot(projection="polar").name == "polar"
