"""Search of settings: what it tries and returns, what it refuses, and how it goes on."""

from __future__ import annotations

import logging
import math
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import medimg
from medimg import ImageDataset
from medimg.errors import LeakageError, MissingDependencyError, TrainingError
from medimg.evaluation import tune as tuning
from medimg.models.training_images import record_training_images
from tests.evaluation.test_fold_training import make_data, model_of
from tests.models.conftest import one_thread
from tests.models.fakes import changed, state
from tests.models.small_network import small_network

__all__ = ["one_thread", "small_network"]

FAST: dict[str, Any] = {"head_epochs": 1, "epochs": 0, "batch_size": 8, "augment": None}
SPACE: dict[str, Any] = {"lr": (1e-3, 1e-1, "log"), "balance": ["loss", None]}


@pytest.fixture(scope="module")
def data() -> ImageDataset:
    return make_data()


def search(data: ImageDataset, **settings: Any) -> medimg.TuneResult:
    given = {"space": SPACE, "fine_tune": FAST, "trials": 2, "folds": 2, "progress": False, **settings}
    return medimg.tune(model_of(), data, **given)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"space": {}}, "space must be a mapping.*found an empty one"),
        ({"space": [1]}, "found a list"),
        ({"space": {"lrs": [1]}}, "no argument of medimg.fine_tune to tune.*'lr'"),
        ({"space": {"lr": (1, 0)}}, "bounds must rise"),
        ({"space": {"lr": (0, 1, "log")}}, "from above 0"),
        ({"space": {"lr": (1, 2, "exp")}}, "expected a list of choices"),
        ({"space": {"lr": []}}, "found an empty list"),
        ({"space": {"lr": (1e-4, math.inf)}}, "found bounds that are infinite"),
        ({"space": {"lr": (1, 1e400, "log")}}, "found bounds that are infinite"),
        ({"space": {"lr": (-1e308, 1e308)}}, "too far apart"),
        ({"space": {"batch_size": (1, 10**400)}}, "too far apart"),
        ({"space": {"batch_size": (0.5, 10**400)}}, "too far apart"),
        ({"fine_tune": {"output": "folder"}}, "fine_tune has 'output', which tune gives each training"),
        ({"space": {"lr": 1e-3}}, "found 0.001"),
        ({"fine_tune": {"lr": 1e-3}}, "'lr' is in space and in fine_tune"),
        ({"fine_tune": {"epoch": 1}}, "no argument of medimg.fine_tune.*'epochs'"),
        ({"fine_tune": {"seed": 1}}, "fine_tune has 'seed'"),
        ({"fine_tune": {"logger": "tensorboard"}}, "whose objects hold a state"),
        ({"fine_tune": {"devices": 2}}, "would train in 2 processes, and tune decides in one"),
        ({"trials": 0}, "trials"),
        ({"folds": 1}, "folds"),
        ({"prune": 3}, "prune must be"),
        ({"timeout": -1}, "timeout"),
    ],
)
def test_unsound_requests(data: ImageDataset, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        search(data, **settings)


def test_patients_that_the_model_knows_are_refused(data: ImageDataset) -> None:
    model = model_of()
    record_training_images(model, train=data)
    with pytest.raises(LeakageError):
        medimg.tune(model, data, space=SPACE, fine_tune=FAST, folds=2)


def test_without_optuna(data: ImageDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'medimg\[tune\]'"):
        search(data)


def needs_optuna() -> Any:
    return pytest.importorskip("optuna", reason="medimg.tune needs Optuna, the extra 'tune'")


def test_several_processes_in_the_space_are_refused(data: ImageDataset) -> None:
    needs_optuna()
    with pytest.raises(TrainingError, match=r"no trial of 1 has a score: .*train in 2 processes"):
        search(data, space={"devices": [[0, 1]]}, trials=1)


def test_the_score_is_that_of_folds_by_hand(data: ImageDataset, caplog: pytest.LogCaptureFixture) -> None:
    needs_optuna()
    with caplog.at_level(logging.INFO, "medimg"):
        result = search(data, seed=3)
    searched = len(caplog.records)
    assert [row["status"] for row in result.trials] == ["complete", "complete"]
    best = max(result.trials, key=lambda row: row["score"])
    assert result.best == {**FAST, "lr": best["lr"], "balance": best["balance"]}
    assert (result.best_score, result.monitor) == (best["score"], "val_auroc")
    scores = []
    for train, test in medimg.kfold(data, 2, seed=3):
        fit = medimg.fine_tune(model_of(), train, test, seed=3, progress=False, **result.best)
        scores.append(fit.best["val_auroc"])
    assert best["folds"] == scores
    assert best["score"] == pytest.approx(np.mean(scores))
    table = result.to_pandas()
    assert list(table["score"]) == sorted(table["score"], reverse=True)
    assert "TuneResult: val_auroc" in result._repr_html_()
    lines = [record.getMessage() for record in caplog.records]
    assert sum(line.startswith(("trial 1/2: val_auroc", "trial 2/2: val_auroc")) for line in lines) == 2
    assert not any("epoch 1/" in line for line in lines[:searched])
    assert "SENTINEL" not in "".join(lines) + result._repr_html_()


def test_the_model_stays_as_it_is(data: ImageDataset) -> None:
    needs_optuna()
    model = model_of()
    before = state(model)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    medimg.tune(model, data, space=SPACE, fine_tune=FAST, trials=1, folds=2, progress=False)
    assert torch.equal(torch.rand(1), expected)
    assert not changed(before, state(model))
    assert model.images_seen is None
    assert model.training_summary is None


def without_seconds(result: medimg.TuneResult) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name != "seconds"} for row in result.trials]


def test_an_interrupted_search_goes_on(
    data: ImageDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs_optuna()
    whole = search(data, trials=3, storage=tmp_path / "whole.db")
    train = medimg.fine_tune
    calls: list[int] = []

    def cut(*args: Any, **settings: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:  # the second fold of the second trial
            raise KeyboardInterrupt
        return train(*args, **settings)

    monkeypatch.setattr(tuning, "fine_tune", cut)
    with pytest.raises(KeyboardInterrupt):
        search(data, trials=3, storage=tmp_path / "cut.db")
    again = search(data, trials=3, storage=tmp_path / "cut.db")
    assert len(calls) == 4 + 2 * 2
    assert without_seconds(again) == without_seconds(whole)
    assert again.best == whole.best
    # nothing is left to do
    assert without_seconds(search(data, trials=3, storage=tmp_path / "cut.db")) == without_seconds(whole)
    assert len(calls) == 8
    for other in ({"space": {"lr": (1e-3, 1.0)}}, {"seed": 9}, {"fine_tune": {**FAST, "batch_size": 4}}):
        with pytest.raises(TrainingError, match="belongs to another search"):
            search(data, trials=3, storage=tmp_path / "cut.db", **other)


def test_files_that_are_no_storage(data: ImageDataset, tmp_path: Path) -> None:
    needs_optuna()
    (tmp_path / "notes.db").write_text("no database" * 100)
    for path in (tmp_path / "notes.db", tmp_path / "missing" / "tune.db"):
        with pytest.raises(TrainingError, match="can't be opened as an SQLite file"):
            search(data, storage=path)


def test_failures_are_rows(data: ImageDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    needs_optuna()
    with pytest.raises(TrainingError, match=r"no trial of 2 has a score: .*mixup"):
        search(data, space={"mixup": [0.2]}, fine_tune={**FAST, "batch_size": 1})
    drawn = iter([0.0, 0.2])
    result = search(
        data, space={"mixup": lambda trial: next(drawn)}, fine_tune={**FAST, "batch_size": 1, "epochs": 0}
    )
    assert [row["status"] for row in result.trials] == ["complete", "failed"]
    assert "mixup" in result.trials[1]["reason"]
    assert result.trials[1]["score"] is None
    assert result.best["mixup"] == 0.0


def test_every_form_of_values(data: ImageDataset) -> None:
    """Choices may be any objects, bounds whole numbers, and a function may draw what it likes."""
    needs_optuna()

    def smooth(trial: Any) -> float:
        return float(trial.suggest_float("smoothing", 0.0, 0.1))

    result = search(
        data,
        space={"optimizer": [torch.optim.SGD, None], "batch_size": (4, 8), "label_smoothing": smooth},
        fine_tune={"head_epochs": 1, "epochs": 0, "monitor": "val_loss"},
        trials=3,
    )
    assert result.monitor == "val_loss"
    assert result.best_score < 0
    assert result.best["optimizer"] in (torch.optim.SGD, None)
    assert all(isinstance(row["batch_size"], int) and 4 <= row["batch_size"] <= 8 for row in result.trials)
    assert all(0 <= row["label_smoothing"] <= 0.1 for row in result.trials)


def test_functions_that_return_objects(data: ImageDataset, tmp_path: Path) -> None:
    needs_optuna()
    choices = [partial(torch.optim.SGD, momentum=0.5), torch.optim.AdamW]

    def optimizer(trial: Any) -> Any:
        return choices[trial.suggest_categorical("which", [0, 1])]

    for _ in range(2):
        found = search(data, space={"optimizer": optimizer}, trials=2, storage=tmp_path / "tune.db")
        assert found.best["optimizer"] in choices
        best = max(found.trials, key=lambda row: row["score"])
        assert best["optimizer"] == type(found.best["optimizer"]).__name__


def test_a_function_that_fails_is_named(data: ImageDataset) -> None:
    needs_optuna()
    with pytest.raises(TrainingError, match="function of 'lr' in space fails on a trial: ZeroDivisionError"):
        search(data, space={"lr": lambda trial: 1 / 0})


@pytest.mark.skipif(sys.platform == "win32", reason="names that Windows lacks")
def test_storage_has_the_name_that_is_given(
    data: ImageDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs_optuna()
    monkeypatch.chdir(tmp_path)
    for name in ("a?b.db", "a#{b}%20 é.db"):
        found = search(data, trials=1, storage=name)
        assert without_seconds(search(data, trials=1, storage=name)) == without_seconds(found)
    assert {file.name for file in tmp_path.iterdir()} == {"a?b.db", "a#{b}%20 é.db"}


def test_trials_below_the_median_stop_early(data: ImageDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    needs_optuna()
    calls: list[float] = []

    class Fit:
        monitor = "val_auroc"

        def __init__(self, score: float) -> None:
            self.best = {"val_auroc": score}

    def fake(*_: Any, lr: float, **__: Any) -> Any:
        calls.append(lr)
        return Fit(1.0 - lr)

    monkeypatch.setattr(tuning, "fine_tune", fake)
    result = search(data, space={"lr": (0.0, 1.0)}, trials=20)
    stopped = [row for row in result.trials if row["status"] == "stopped"]
    assert stopped
    assert all(len(row["folds"]) == 1 for row in stopped)
    assert len(calls) == 40 - len(stopped)
    # the estimator proposes better values than chance
    assert result.best_score > 0.9
    late = [row["lr"] for row in result.trials[10:]]
    assert np.mean(late) < 0.4
    calls.clear()
    assert len(search(data, space={"lr": (0.0, 1.0)}, trials=8, prune=False).trials) == 8
    assert len(calls) == 16


def test_a_timeout_ends_between_trials(data: ImageDataset) -> None:
    needs_optuna()
    result = search(data, trials=50, timeout=1e-6)
    assert len(result.trials) == 1
