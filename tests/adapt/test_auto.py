"""The choice between methods of adaptation, and what it is made by."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from medimg import FitResult, adapt, fine_tune, load
from medimg.adapt.base import Adaptation
from medimg.errors import MedimgWarning, TrainingError
from medimg.training.adaptation.choose_adaptation import _confirm, _Trained, choose
from tests.models.fakes import Images, changed, images, state
from tests.models.small_network import small_classifier

FAST: dict[str, Any] = {
    "head_epochs": 0,
    "epochs": 1,
    "batch_size": 4,
    "augment": None,
    "progress": False,
    "devices": 1,
}


#: Few images of a target seldom tell a method from none.
UNSURE = pytest.mark.filterwarnings('ignore:adapt="auto" keeps the training:medimg.errors.MedimgWarning')


def target() -> Any:
    return images(6, prefix="t", seed=3)


def run(model: Any, **arguments: Any) -> FitResult:
    return fine_tune(model, images(8), images(4, prefix="v", seed=1), **{**FAST, **arguments})


def test_information_is_that_of_numpy_and_falls_if_one_class_is_predicted() -> None:
    rows = np.random.default_rng(0).dirichlet([1.0, 1.0, 1.0], 50)
    mean = rows.mean(axis=0)
    expected = -(mean * np.log2(mean)).sum() + (rows * np.log2(rows)).sum(axis=1).mean()
    assert adapt.mutual_information(rows) == pytest.approx(expected)
    assert adapt.mutual_information(np.tile([0.99, 0.01], (5, 1))) == pytest.approx(0.0)


@pytest.mark.parametrize("wrong", [np.ones(3), np.ones((0, 2)), np.array([[np.nan, 1.0]]), [[-0.5, 1.5]]])
def test_information_refuses_what_are_no_probabilities(wrong: Any) -> None:
    with pytest.raises(TrainingError):
        adapt.mutual_information(wrong)


def test_risk_is_near_the_loss_of_the_target_if_the_domains_overlap() -> None:
    rng = np.random.default_rng(0)
    train, val = rng.normal(0.0, 1.0, (4000, 1)), rng.normal(0.0, 1.0, (4000, 1))
    other = rng.normal(0.5, 1.0, (4000, 1))
    risk = adapt.deep_embedded_risk((val[:, 0] > 0).astype(float), val, train, other)
    assert risk == pytest.approx((other > 0).mean(), abs=0.03)
    same = adapt.deep_embedded_risk((val[:, 0] > 0).astype(float), val, train, train)
    assert same == pytest.approx(0.5, abs=0.03)


def test_risk_refuses_other_shapes() -> None:
    with pytest.raises(TrainingError):
        adapt.deep_embedded_risk(np.ones(3), np.ones((2, 1)), np.ones((2, 1)), np.ones((2, 1)))


@pytest.mark.parametrize(
    ("scores", "margin", "expected"),
    [
        ([(0.9, 0.5), (0.9, 0.4)], 0.02, 0),
        ([(0.9, 0.5), (0.89, 0.6)], 0.02, 1),
        ([(0.9, 0.5), (0.87, 0.6)], 0.02, 0),
        ([(0.9, 0.5), (0.87, 0.6)], 0.05, 1),
        ([(0.9, 0.5), (0.95, 0.5)], 0.02, 0),
        ([(None, 0.1), (None, 0.3), (None, 0.2)], 0.0, 1),
    ],
)
def test_the_choice(scores: list[Any], margin: float, expected: int) -> None:
    rows = [{"val_auroc": auroc, "information": information} for auroc, information in scores]
    assert choose(rows, margin) == expected


@UNSURE
def test_the_model_kept_is_the_one_that_its_method_trains_alone(tmp_path: Path) -> None:
    away = target()
    model = small_classifier()
    result = run(model, adapt="auto", target=away, output=tmp_path)
    names = [row["name"] for row in result.candidates]
    assert names[:4] == ["source_only", "coral", "mmd", "dann"]
    (chosen,) = (row["name"] for row in result.candidates if row["chosen"])
    methods = adapt.Auto(away).list_methods(small_classifier(), images(8))
    alone = small_classifier()
    fine_tune(alone, images(8), **FAST, adapt=methods[chosen])
    assert not changed(state(alone), state(model))
    assert result.checkpoint == tmp_path / "best.safetensors"
    kept = load(result.checkpoint)
    assert not changed(state(kept), state(model))
    assert kept.training_summary is not None
    assert kept.training_summary["auto"]["chosen"] == chosen
    assert (tmp_path / "history.csv").read_text() == (tmp_path / chosen / "history.csv").read_text()
    assert model.images_seen is not None
    again = small_classifier()
    resumed = run(again, adapt="auto", target=away, output=tmp_path, resume=True)
    assert not changed(state(again), state(model))
    assert resumed.candidates == result.candidates


def trained_as(name: str, predicted: Any) -> _Trained:
    information = adapt.mutual_information(predicted)
    return _Trained(name, None, 0.9, information, predicted, {}, None)  # type: ignore[arg-type]  # not used


def predictions(certainty: float, count: int = 40, noise: float = 0.0) -> Any:
    rng = np.random.default_rng(int(100 * certainty))
    first = np.where(np.arange(count) % 2, certainty, 1 - certainty)
    first = np.clip(first + noise * rng.normal(size=count), 0.01, 0.99)
    return np.stack([first, 1 - first], axis=1)


def test_a_method_that_the_target_tells_from_none_is_kept() -> None:
    trained = [trained_as("source_only", predictions(0.6)), trained_as("mmd", predictions(0.95))]
    assert _confirm(trained, 1, images(40), "multiclass") == 1
    assert _confirm(trained, 1, [None] * 40, "multiclass") == 1
    assert _confirm(trained, 1, images(40), "multilabel") == 1
    assert _confirm(trained, 0, images(40), "multiclass") == 0


@pytest.mark.parametrize(
    ("count", "rows", "patients", "message"),
    [
        (40, (0.70, 0.71), 40, r"over the 40 patients of the target, -0\.\d+ to \+0\.\d+, includes 0"),
        (40, (0.60, 0.95), 4, "the target has 4 patients, fewer than 10"),
        (6, (0.60, 0.95), 0, "the target has 6 images, fewer than 10"),
    ],
)
def test_a_method_within_noise_is_not_kept(count: int, rows: Any, patients: int, message: str) -> None:
    away: Any = [None] * count
    if patients:
        away = type("Shared", (), {"patients": [f"p{n % patients}" for n in range(count)]})()
    trained = [trained_as(name, predictions(one, count, 0.2)) for name, one in zip("ab", rows, strict=True)]
    with pytest.warns(MedimgWarning, match=rf"keeps the training without adaptation: b has .*{message}"):
        assert _confirm(trained, 1, away, "multiclass") == 0


@dataclass(frozen=True, repr=False, eq=False)
class Sharpened(Adaptation):
    """Makes all predictions certain after training."""

    moves_backbone: ClassVar[bool] = False

    def finish(self, model: torch.nn.Module, device: torch.device, batch_size: int, workers: int) -> None:
        for parameter in model.head.parameters():  # type: ignore[union-attr]  # a classifier
            parameter.data.mul_(50.0)


def test_the_warning_says_what_is_kept_instead() -> None:
    model, plain = small_classifier(), small_classifier()
    with pytest.warns(MedimgWarning, match=r"sharpened has a higher .* 6 patients, fewer than 10"):
        result = run(model, adapt=adapt.Auto(target(), candidates=[Sharpened()], margin=1.0))
    assert [row["chosen"] for row in result.candidates] == [True, False]
    assert result.candidates[1]["information"] > result.candidates[0]["information"]
    fine_tune(plain, images(8), **FAST)
    assert not changed(state(plain), state(model))


def test_an_undefined_score_of_the_source_is_seen_before_training(tmp_path: Path) -> None:
    val = Images(np.zeros(4, int), prefix="v", seed=1)
    with pytest.raises(TrainingError, match="AUROC on the validation data, which is undefined"):
        fine_tune(
            small_classifier(), images(8), val, **FAST, adapt="auto", target=target(), output=tmp_path / "out"
        )
    assert not (tmp_path / "out").exists()


@UNSURE
def test_resume_files_of_all_candidates_are_checked_before_one_trains(tmp_path: Path) -> None:
    away = target()
    auto = adapt.Auto(away, candidates=[adapt.MMD(away)])
    run(small_classifier(), adapt=auto, output=tmp_path)
    for path in (tmp_path / "source_only").iterdir():
        path.unlink()
    other = adapt.Auto(away, candidates=[adapt.MMD(away, weight=3.0)])
    for settings in ({"adapt": auto, "lr": 0.02}, {"adapt": other}, {"adapt": auto, "augment": "CT"}):
        with pytest.raises(TrainingError, match=r"mmd.resume\.safetensors belongs to another training"):
            run(small_classifier(), output=tmp_path, resume=True, **settings)
        assert not list((tmp_path / "source_only").iterdir())
    assert len(run(small_classifier(), adapt=auto, output=tmp_path, resume=True).candidates) == 2


@UNSURE
def test_results_of_other_trainings_stay(tmp_path: Path) -> None:
    def read() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def fails(message: str, folder: str, **settings: Any) -> None:
        before = read()
        with pytest.raises(TrainingError, match=message):
            run(small_classifier(), output=tmp_path / folder, **settings)
        assert read() == before

    away = target()
    auto: Any = {"adapt": adapt.Auto(away, candidates=[adapt.MMD(away)])}
    run(small_classifier(), output=tmp_path / "plain")
    run(small_classifier(), output=tmp_path / "plain/nested/mmd", adapt=adapt.MMD(away))
    fails("plain has the results .*resume=True to continue", "plain", **auto)
    fails('it is none with adapt="auto"', "plain", **auto, resume=True)
    fails("mmd has the results .*resume=True to continue", "plain/nested", **auto)
    fails("pass one of them", "plain", **auto, resume=True, overwrite=True)
    run(small_classifier(), output=tmp_path / "auto", **auto)
    fails("auto has the results .*resume=True to continue", "auto", **auto)
    fails(r"auto has the results .*no resume\.safetensors", "auto", resume=True)
    assert len(run(small_classifier(), output=tmp_path / "auto", **auto, resume=True).candidates) == 2
    assert len(run(small_classifier(), output=tmp_path / "auto", **auto, overwrite=True).candidates) == 2


@dataclass(frozen=True, repr=False, eq=False)
class Erased(Adaptation):
    """Sets the head to 0 after training, with which all images get the same prediction."""

    moves_backbone: ClassVar[bool] = False

    def finish(self, model: torch.nn.Module, device: torch.device, batch_size: int, workers: int) -> None:
        for parameter in model.head.parameters():  # type: ignore[union-attr]  # a classifier
            parameter.data.zero_()


def test_a_method_that_harms_is_not_kept() -> None:
    model = small_classifier()
    result = run(model, adapt=adapt.Auto(target(), candidates=[Erased()], margin=1.0))
    assert [(row["name"], row["chosen"]) for row in result.candidates] == [
        ("source_only", True),
        ("erased", False),
    ]
    assert result.candidates[1]["information"] == 0.0
    plain = small_classifier()
    fine_tune(plain, images(8), **FAST)
    assert not changed(state(plain), state(model))


def test_domains_and_batch_normalization_add_candidates() -> None:
    away, train = target(), images(8)
    train.domains = tuple("xy" * 4)  # type: ignore[attr-defined]  # of data with a column
    plain, normalized = torch.nn.Linear(2, 2), torch.nn.BatchNorm2d(2)
    assert list(adapt.Auto(away).list_methods(plain, images(8))) == ["source_only", "coral", "mmd", "dann"]
    found = adapt.Auto(away).list_methods(normalized, train)
    assert list(found)[4:] == ["multisource", "adabn"]
    several = adapt.Auto(away, candidates=[adapt.MMD(away), adapt.MMD(away, weight=3.0)])
    assert list(several.list_methods(plain, train)) == ["source_only", "mmd", "mmd_2"]


@pytest.mark.parametrize(
    "arguments",
    [
        {"adapt": "auto"},
        {"adapt": "best", "target": None},
        {"target": target()},
        {"adapt": "auto", "target": target(), "patience": 2},
        {"adapt": "auto", "target": target(), "monitor": "val_loss"},
        {"adapt": "auto", "target": target(), "resume": "folder"},
        {"adapt": "auto", "target": target(), "logger": object()},
        {"adapt": [adapt.Auto(target())]},
        {"adapt": "auto", "target": target(), "loss": torch.nn.CrossEntropyLoss(), "balance": None},
        {"adapt": "auto", "target": target(), "callbacks": [3]},
        {"adapt": "auto", "target": target(), "callbacks": None},
        {"adapt": "auto", "target": target(), "trainer_kwargs": 3},
        {"adapt": "auto", "target": target(), "epochs": 0, "head_epochs": 1},
    ],
)
def test_arguments_that_have_no_meaning_are_refused(arguments: Any, tmp_path: Path) -> None:
    model = small_classifier()
    before = state(model)
    with pytest.raises(TrainingError):
        run(model, **{"output": tmp_path / "run", **arguments})
    assert not changed(before, state(model))
    assert not (tmp_path / "run").exists()


def test_auto_needs_validation_data() -> None:
    with pytest.raises(TrainingError, match="val="):
        fine_tune(small_classifier(), images(8), **FAST, adapt="auto", target=target())


@pytest.mark.parametrize("fields", [{"candidates": []}, {"candidates": ["mmd"]}, {"margin": -0.1}])
def test_settings_of_the_choice_are_checked(fields: Any) -> None:
    with pytest.raises(TrainingError):
        adapt.Auto(target(), **fields)


def test_a_training_that_fails_leaves_the_model_as_it_was() -> None:
    class Broken(adapt.MMD):
        def make_term(self, features: int, classes: int, domains: int) -> Any:
            raise TrainingError("broken")

    away = target()
    model = small_classifier()
    before = state(model)
    with pytest.raises(TrainingError, match="broken"):
        run(model, adapt=adapt.Auto(away, candidates=[Broken(away)]))
    assert not changed(before, state(model))
    assert model.training_summary is None


def test_settings_are_json_without_images() -> None:
    away = target()
    found = adapt.Auto(away, candidates=[adapt.MMD(away)]).settings()
    assert json.loads(json.dumps(found)) == found
    assert found["candidates"][0]["name"] == "MMD"
    assert adapt.Auto(away).settings()["candidates"] is None
    assert repr(adapt.Auto(away)) == "Auto(target_items=6, candidates=None, margin=0.02)"
