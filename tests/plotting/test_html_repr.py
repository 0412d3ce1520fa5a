"""HTML of objects in a notebook: small, escaped, without identifiers."""

from __future__ import annotations

import re
from typing import Any, cast

import numpy as np

from medimg.io.series import Series
from medimg.io.series_index import SeriesIndex
from medimg.plotting.html_repr import facts_html, join_names, rows_html
from medimg.preprocessing.preprocess import Preprocess
from medimg.training.history import FitResult

HOSTILE = "<script>alert(1)</script>"


def fail(*_: object) -> None:
    raise AssertionError


def series(n: int) -> Series:
    return Series(
        uid=f"1.2.secret.{n}", modality=HOSTILE, description="secret", shape=(1, 4, 512, 512),
        affine=np.diag([2.5, 0.70312, 0.7, 1.0]), space="patient", format="DICOM",
        files=(f"/secret/{n}.dcm",), reader=cast("Any", fail), patient_id="secret", study_uid="secret",
    )  # fmt: skip


def test_text_is_escaped_and_short() -> None:
    for html in (
        facts_html(HOSTILE, {HOSTILE: HOSTILE * 50}),
        rows_html("", [HOSTILE], [[HOSTILE]], notes=["<"]),
    ):
        assert "<script" not in html
        assert len(html) < 2000
    assert not {"\x1b", "\u202e"} & set(facts_html("a\x1b", {"b\u202e": "\x1b\u202e"}))
    assert facts_html("a", {"b": None, "c": "", "d": 0}).count("<tr") == 1
    assert join_names(["a"] * 21) == ", ".join(["a"] * 20) + " and 1 more"


def test_series_show_no_identifiers_and_at_most_a_screen() -> None:
    index = SeriesIndex(tuple(series(n) for n in range(25)))
    for html in (index._repr_html_(), index[3]._repr_html_()):
        assert "secret" not in html
        assert "<script" not in html
        assert "4×512×512" in html
        assert "2.5×0.703×0.7" in html
    assert index._repr_html_().count("<tr") == 21
    assert "and 5 more" in index._repr_html_()
    assert "0 series" in SeriesIndex(())._repr_html_()


def test_a_recipe_shows_its_fields() -> None:
    html = Preprocess(window="lung", size=(32, 64))._repr_html_()
    assert "lung" in html
    assert "(32, 64)" in html


def test_a_long_history_is_cut() -> None:
    rows = tuple(
        {"epoch": n, "phase": "full", "train_loss": 0.5, "val_auroc": None, "monitor": None, "seconds": 1.0}
        for n in range(1, 51)
    )
    html = FitResult(rows, best_epoch=3, monitor="val_loss", seconds=50.0)._repr_html_()
    assert html.count("<tr") == 22
    assert ">3</td>" in html
    assert ">30</td>" not in html
    assert ">50</td>" in html
    assert "val_auroc" not in html, "a column without a value"
    assert "and 29 more epochs" in html
    (bold,) = re.findall(r'<tr style="font-weight:bold">(.*?)</tr>', html)
    assert ">3</td>" in bold, "the best epoch"
