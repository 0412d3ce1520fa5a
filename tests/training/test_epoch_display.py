"""What a training shows of its epochs: lines, a bar, a table that grows."""

from __future__ import annotations

import logging
import re
import sys
from types import ModuleType
from typing import Any

import pytest

from medimg.training import epoch_display
from medimg.training.epoch_display import EpochDisplay
from medimg.training.fine_tune import fine_tune
from tests.models.fakes import images
from tests.models.small_network import small_classifier


def row(epoch: int, phase: str = "full", **scores: Any) -> dict[str, Any]:
    fixed = {"val_auroc": None, "adapt_loss": None, "monitor": None, "lr": 1e-3, "seconds": 2.04}
    return {"epoch": epoch, "phase": phase, "train_loss": 0.5, **fixed, **scores}


class Notebook:
    """IPython, as far as it is used: each display, and its updates."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.shown: list[str] = []
        self.displays = 0
        module = ModuleType("IPython.display")
        module.display = self.display  # type: ignore[attr-defined]  # a stand-in
        monkeypatch.setitem(sys.modules, "IPython", ModuleType("IPython"))
        monkeypatch.setitem(sys.modules, "IPython.display", module)
        monkeypatch.setattr(epoch_display, "is_notebook", lambda: True)

    def display(self, thing: Any, *, display_id: bool) -> Notebook:
        assert display_id
        self.displays += 1
        self.update(thing)
        return self

    def update(self, thing: Any) -> None:
        self.shown.append(thing._repr_html_() + repr(thing))


def test_a_line_for_each_epoch(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "medimg")
    display, rows = EpochDisplay("auto", 3), []
    for number in (1, 2):
        display.start_epoch("full", number, 2)
        display.step()
        rows.append(row(number, val_auroc=0.75))
        display.end_epoch(rows, 1)
    assert caplog.messages == [
        "full phase, epoch 1/3: train_loss 0.5000, val_auroc 0.750, lr 0.001, 2.0 s, best so far",
        "full phase, epoch 2/3: train_loss 0.5000, val_auroc 0.750, lr 0.001, 2.0 s",
    ]


def test_a_table_grows_in_a_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = Notebook(monkeypatch)
    display, rows = EpochDisplay("auto", 2), []
    display.start_epoch("head", 1, 4)
    assert re.search(r'<progress value="0" max="4"></progress> head phase, epoch 1/2', notebook.shown[-1])
    for number in (1, 2):
        display.start_epoch("head", number, 4)
        for _ in range(4):
            display.step()
        rows.append(row(number, "head", adapt_loss=0.25))
        display.end_epoch(rows, 1)
    assert notebook.displays == 1
    assert "<progress" not in notebook.shown[-1]
    assert re.findall(r"<th[^>]*>(\w+)</th>", notebook.shown[-1]) == [
        "epoch", "phase", "train_loss", "adapt_loss", "lr", "seconds",
    ]  # fmt: skip
    assert notebook.shown[-1].count("<tr") == 3
    assert notebook.shown[-1].count("font-weight:bold") == 1


def test_no_table_if_it_is_not_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = Notebook(monkeypatch)
    display = EpochDisplay(False, 1)
    display.start_epoch("head", 1, 4)
    display.step()
    display.end_epoch([row(1)], 1)
    assert notebook.shown == []


def test_a_bar_of_the_user_s_replaces_the_own_one(capsys: pytest.CaptureFixture[str]) -> None:
    display = EpochDisplay(True, 1, own_bar=False)
    display.start_epoch("head", 1, 4)
    display.step()
    display.close()
    assert capsys.readouterr().err == ""


def test_a_training_says_what_it_does(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.INFO, "medimg")
    data = images(6)
    result = fine_tune(small_classifier(), data, data_of_others(), head_epochs=1, epochs=1, batch_size=3)
    start, head, first, full, second, end = caplog.messages
    assert re.fullmatch(r"fine-tuning \S+ on 6 images \(6 for validation\), \w+, precision \S+: .*", start)
    assert head == "head phase: 1 epoch on embeddings; embedding 12 items"
    assert first.startswith("head phase, epoch 1/2: train_loss ")
    assert full == "full phase: 1 epoch on images"
    assert second.startswith("full phase, epoch 2/2: train_loss ")
    assert end.startswith(f"training ended after 2 epochs, 0 s; best epoch {result.best_epoch}"[:31])
    captured = capfd.readouterr()
    assert captured.out == captured.err == "", "no bars without a terminal"


def data_of_others() -> Any:
    return images(6, prefix="val", seed=1)
