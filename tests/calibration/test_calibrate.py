from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import medimg
from medimg import Preprocess, TransferClassifier
from medimg.calibration.result import Calibration
from medimg.core import geometry
from medimg.errors import CheckpointError, LeakageError, MedimgWarning, PreprocessError, TrainingError
from medimg.models.digest import model_digest, parameters_digest
from medimg.models.prediction.prediction_table import plain_text
from tests.models.fakes import Images, changed, images, state
from tests.models.images import picture_data
from tests.models.small_network import small_classifier

RECIPE = Preprocess(size=64, window="percentile")

#: Random networks are no better than chance.
pytestmark = pytest.mark.filterwarnings("ignore:on the validation data the scores")


def sharpened(pool: str = "none", **fields: Any) -> TransferClassifier:
    """A model whose logits are far apart."""
    model = small_classifier(pool=pool, **fields)
    with torch.no_grad():
        model.head.weight.mul_(40)
    return model


def volume(slices: int, seed: int = 0) -> medimg.Volume:
    values = np.random.default_rng(seed).normal(size=(1, slices, 48, 48)).astype(np.float32)
    return medimg.Volume(values, geometry.image_affine((2.0, 0.5, 0.5)))


def several(n: int, **fields: Any) -> Images:
    labels: NDArray[np.generic] = np.random.default_rng(7).integers(0, 2, (n, 3)).astype(np.float32)
    return Images(labels, task="multilabel", classes=("a", "b", "c"), **fields)


def test_what_is_found_and_applied() -> None:
    model, val = sharpened(), images(30, prefix="val", seed=1)
    before, raw = state(model), model.predict_proba(val)
    found = medimg.calibrate(model, val, operating_point="youden", method="temperature")
    assert model.calibration is found
    assert not changed(before, state(model))
    assert found.loss[1] <= found.loss[0]
    assert (found.unit, found.items, found.patients) == ("image", 30, 30)
    proba = model.predict_proba(val)
    logits = np.log(raw[:, 1]) - np.log(raw[:, 0])
    expected = 1 / (1 + np.exp(-logits / found.temperature[0]))
    np.testing.assert_allclose(proba[:, 1], expected, rtol=1e-4)
    nll = [-np.log(p[np.arange(30), val.labels]).mean() for p in (raw, proba)]
    np.testing.assert_allclose(nll, found.loss, rtol=1e-4)
    (point,) = found.points
    assert (point.label, point.positives, point.negatives) == ("b", 15, 15)
    called = proba[:, 1] >= point.threshold
    assert called[val.labels == 1].mean() == pytest.approx(point.sensitivity)
    # back to what it was
    model.calibration = None
    assert np.array_equal(model.predict_proba(val), raw)


def test_reliability_curve() -> None:
    found = medimg.calibrate(sharpened(), images(30, prefix="val"))
    table = found.reliability()
    assert table.groupby("probabilities")["n"].sum().to_dict() == {"raw": 30, "calibrated": 30}
    assert table[["predicted", "observed"]].to_numpy().min() >= 0
    assert found.to_pandas().empty
    for _, part in table.groupby("probabilities"):
        assert (part["predicted"].diff().dropna() > 0).all()
        assert (part["observed"] * part["n"]).sum() == pytest.approx(15)


@pytest.mark.parametrize("unit", ["image", "series"])
@pytest.mark.parametrize("pool", ["none", "mean", "max", "attention"])
def test_units_and_pooling(pool: str, unit: Literal["image", "series"]) -> None:
    """What was calibrated is what is applied, to data sets and to raw sources."""
    lengths = (2, 1, 4, 3) * 5 if unit == "series" else ()
    val = Images(np.arange(20) % 2, unit=unit, lengths=lengths, seed=2)
    model = sharpened(pool)
    found = medimg.calibrate(model, val, operating_point={"cost": 3}, coverage=0.8)
    proba = model.predict_proba(val)
    (point,) = found.points
    called = proba[:, 1] >= point.threshold
    assert called[val.labels == 1].mean() == pytest.approx(point.sensitivity)
    scores = np.sort(1 - proba[np.arange(20), val.labels])
    assert found.quantiles[0] == pytest.approx(scores[int(np.ceil(21 * 0.8)) - 1], rel=1e-4)
    model.preprocess = RECIPE
    table = model.predict([volume(3), volume(2, seed=1)], unit=unit)
    assert table["predicted"].tolist() == ["ab"[int(p >= point.threshold)] for p in table["p_b"]]
    for row in table.to_dict("records"):
        kept = {name for name in "ab" if 1 - row[f"p_{name}"] <= found.quantiles[0]}
        assert set(row["set"].split(";")) == kept | {max("ab", key=lambda n: float(row[f"p_{n}"]))}


def test_series_without_pooling_is_the_mean_of_calibrated_slices() -> None:
    model = sharpened()
    medimg.calibrate(model, images(20, prefix="val"), coverage=None)
    assert model.calibration is not None
    model.preprocess = RECIPE
    slices = model.predict(volume(5), unit="image")
    series = model.predict(volume(5), unit="series")
    assert series["p_a"][0] == pytest.approx(slices["p_a"].mean(), rel=1e-5)


def test_other_units_are_not_decided_as_calibrated() -> None:
    model = sharpened()
    medimg.calibrate(model, images(30, prefix="val"), operating_point={"sensitivity": 1.0})
    model.preprocess = RECIPE
    sources = [volume(4), volume(1)]
    with pytest.warns(MedimgWarning, match=r"1 of 2 images have no prediction set .* unit='image'"):
        table = model.predict(sources)
    assert table["set"].isna().tolist() == [True, False]
    assert table["predicted"][0] == plain_text(model, table[["p_a", "p_b"]].to_numpy())[0]
    alone = model.predict(sources[1], unit="image")
    assert table["set"][1] == alone["set"][0]


def test_more_classes_are_flagged_against_the_rest() -> None:
    model = sharpened(classes=("a", "b", "c"))
    val = images(30, classes=("a", "b", "c"), prefix="val")
    found = medimg.calibrate(model, val, operating_point={"sensitivity": 0.9})
    assert found.to_pandas()["label"].tolist() == ["a", "b", "c"]
    assert (found.to_pandas()["sensitivity"] >= 0.9).all()
    model.preprocess = RECIPE
    table = model.predict(volume(6), unit="image")
    assert list(table.columns)[4:7] == ["predicted", "flagged", "set"]
    for row in table.to_dict("records"):
        assert row["predicted"] == max("abc", key=lambda n: float(row[f"p_{n}"]))
        assert row["flagged"] == ";".join(p.label for p in found.points if row[f"p_{p.label}"] >= p.threshold)


def test_labels_have_temperatures_thresholds_and_sets_of_their_own() -> None:
    model = sharpened(task="multilabel", classes=("a", "b", "c"))
    found = medimg.calibrate(
        model, several(60, prefix="val"), operating_point="youden", coverage=0.8, method="temperature"
    )
    assert len(found.temperature) == len(found.points) == len(found.quantiles) == 3
    assert len(set(found.temperature)) > 1
    model.preprocess = RECIPE
    table = model.predict(volume(6), unit="image")
    for row in table.to_dict("records"):
        called = [p.label for p in found.points if row[f"p_{p.label}"] >= p.threshold]
        kept = [n for n, q in zip("abc", found.quantiles, strict=True) if 1 - row[f"p_{n}"] <= q]
        assert row["predicted"] == ";".join(called)
        assert row["set"] == ";".join(kept)


def test_unusual_images() -> None:
    model, train, val = small_classifier(), images(40), images(40, prefix="val", seed=1)
    found = medimg.calibrate(model, val, train=train)
    assert found.outliers is not None
    assert len(found.outliers.means) == 2
    model.preprocess = RECIPE
    table = model.predict([volume(3), volume(2)], unit="image")
    assert table["ood"].between(0, 1).all()
    with pytest.warns(MedimgWarning, match="no prediction set"):
        series = model.predict(volume(3))
    # without pooling the slices of a series are looked at one by one
    assert series["ood"][0] == pytest.approx(table["ood"][:3].mean(), abs=1e-3)


@pytest.mark.parametrize("pool", ["mean", "attention"])
def test_unusual_series(pool: str) -> None:
    train, val = (
        Images(np.arange(12) % 2, unit="series", lengths=(3, 2) * 6, seed=n, prefix="ab"[n]) for n in (0, 1)
    )
    model = small_classifier(pool=pool)
    medimg.calibrate(model, val, train=train, coverage=None)
    model.preprocess = RECIPE
    assert model.predict(volume(4))["ood"].between(0, 1).all()
    # slices of one are not what series were compared with
    assert model.predict(volume(4), unit="image")["ood"].isna().all()


def test_training_data_may_not_be_the_validation_data() -> None:
    with pytest.raises(LeakageError, match="patients of the validation data"):
        medimg.calibrate(small_classifier(), images(20), train=images(20, seed=1))


def test_what_does_not_fit() -> None:
    model = small_classifier()
    with pytest.raises(TrainingError, match="classes="):
        medimg.calibrate(model, images(20, classes=("a", "c")))
    with pytest.raises(PreprocessError, match="differ in preprocessing"):
        medimg.calibrate(model, images(20, preprocess=Preprocess(size=32)))
    with pytest.raises(TrainingError, match="ImageDataset"):
        medimg.calibrate(model, [1, 2])  # type: ignore[arg-type]
    with pytest.raises(TrainingError, match="method must be"):
        medimg.calibrate(model, images(20), method="histogram")  # type: ignore[arg-type]
    with (
        pytest.warns(MedimgWarning, match="the same class"),
        pytest.raises(TrainingError, match="class 'b' has no positives"),
    ):
        medimg.calibrate(model, Images(np.zeros(12, np.int64)), operating_point="youden")
    with pytest.raises(TrainingError, match="for three classes or more"):
        medimg.calibrate(model, images(20), method="vector")
    three = small_classifier(classes=("a", "b", "c"))
    with pytest.raises(TrainingError, match="1 of 3 classes have no example"):
        medimg.calibrate(three, Images(np.arange(20) % 2, classes=("a", "b", "c")), method="platt")
    assert model.calibration is None
    assert medimg.calibrate(model, images(20), method=None).temperature == (1.0,)


def test_a_model_that_was_changed_since_is_refused() -> None:
    model, val = small_classifier(), images(20)
    medimg.calibrate(model, val)
    with torch.no_grad():
        model.head.weight[0, 0] += 1
    for use in (lambda: model.predict_proba(val), lambda: model.predict([])):
        with pytest.raises(TrainingError, match="changed after calibration"):
            use()
    model.calibration = None
    model.predict_proba(val)


def test_changes_behind_torchs_back_are_seen() -> None:
    model = small_classifier()
    before = parameters_digest(model)
    assert parameters_digest(model) == before
    model.head.weight.data[0, 0] += 1
    after = parameters_digest(model)
    assert after != before
    model.head.weight.data[0, 0] -= 1
    model.double()
    assert parameters_digest(model) not in (before, after)


def test_digest_of_a_model(tmp_path: Path) -> None:
    model = small_classifier()
    plain = model_digest(model)
    assert model_digest(medimg.load(model.save(tmp_path / "m.safetensors"))) == plain
    model.training_summary = {"seed": 1}
    assert model_digest(model) == plain
    medimg.calibrate(model, images(20), train=images(20, prefix="other"))
    calibrated = model_digest(model)
    assert calibrated != plain
    assert model_digest(medimg.load(model.save(tmp_path / "m.safetensors"))) == calibrated
    others = [
        small_classifier(classes=("a", "c")),
        small_classifier(pool="mean"),
        small_classifier(preprocess=RECIPE),
    ]
    assert len({plain, calibrated, *map(model_digest, others)}) == 5


def test_provenance_of_predictions() -> None:
    model = small_classifier(preprocess=RECIPE)
    table = model.predict(volume(2), provenance=True)
    assert list(table.columns)[-2:] == ["model", "recipe"]
    assert table["model"].tolist() == [model_digest(model)[:12]]
    expected = {"model": model_digest(model)[:12], "recipe": RECIPE.fingerprint, "medimg": medimg.__version__}
    assert table.attrs == model.predict(volume(2)).attrs == expected
    assert "model" not in model.predict(volume(2))


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
@pytest.mark.parametrize("point", [None, "youden", {"sensitivity": 0.9}])
def test_through_a_file(tmp_path: Path, task: str, point: Any) -> None:
    several_labels = task == "multilabel"
    model = sharpened(task=task, classes=("a", "b", "c")[: 2 + several_labels])
    val = several(60, prefix="val") if several_labels else images(60, prefix="val")
    train = several(30) if several_labels else images(30)
    found = medimg.calibrate(model, val, train=train, operating_point=point)
    again = medimg.load(model.save(tmp_path / "m.safetensors"))
    assert again.calibration == found
    assert np.array_equal(again.predict_proba(val), model.predict_proba(val))
    text = json.dumps(found.to_dict())
    assert "val1" not in text
    values = json.loads(text)
    n = len(found.temperature)
    for name, bad, message in (
        ("temperature", [0.0] * n, r"temperature\[0\] must be a number, above 0; found 0.0"),
        ("temperature", [1.0] * 7, f"temperature must be a list of {n}; found 7"),
        ("quantiles", [2.0] * n, r"quantiles\[0\] must be a number, 0 or more and at most 1; found 2.0"),
        ("coverage", 7, "coverage must be a number, above 0 and below 1"),
        ("coverage", None, f"quantiles must be a list of 0; found {n}"),
        ("unit", "patient", 'unit must be "image" or "series"; found \'patient\''),
        ("operating_point", "best", "operating_point must be None"),
        ("operating_point", None if found.points else "youden", "points must be those of"),
        ("points", [{"label": "a"}], r"points\[0\] must have the fields label, threshold"),
        ("points", [vars_of("z") | {"threshold": 0.5}], r"points must be those of .*found \['z'\]"),
        ("points", [vars_of("z") | {"threshold": -1}], r"points\[0\].threshold must be a number, 0 or more"),
        ("bins", [1], r"bins\[0\] must be a list of 4; found a int"),
        ("items", None, "items must be a whole number, 1 or more; found None"),
        ("parameters_sha256", 5, "parameters_sha256 must be text; found 5"),
    ):
        with pytest.raises(CheckpointError, match=f"^calibration.{message}"):
            Calibration.from_dict(values | {name: bad}, None, model.classes, task)
    kept = {name: value for name, value in values.items() if name not in ("bins", "loss")}
    with pytest.raises(CheckpointError, match="found missing loss, bins"):
        Calibration.from_dict(kept, None, model.classes, task)


def vars_of(label: str) -> dict[str, Any]:
    return {"label": label, "sensitivity": 1.0, "specificity": 1.0, "positives": 1, "negatives": 1}


def test_nothing_of_a_patient(tmp_path: Path) -> None:
    """Neither in the file nor in what is shown; embeddings are taken from a cache when there is one."""
    data = picture_data(tmp_path / "SENTINEL", patients=24, each=1)
    model = small_classifier(preprocess=data.preprocess)
    train, val = medimg.split(data, fractions=(0.5, 0.5))
    medimg.fit_head(model, train, C=1.0)
    found = medimg.calibrate(model, val, train=train, operating_point="youden", cache=tmp_path / "kept")
    again = medimg.calibrate(model, val, train=train, operating_point="youden", cache=tmp_path / "kept")
    assert again == found
    content = model.save(tmp_path / "m.safetensors").read_bytes().lower()
    assert b"sentinel" not in content
    for text in (repr(found), repr(found.outliers), repr(model.training_ranges)):
        assert "sentinel" not in text.lower()
    assert all(uid.encode().lower() not in content for uid in data.series_uids)


def test_evaluation_sees_calibrated_probabilities(tmp_path: Path) -> None:
    data = picture_data(tmp_path, patients=16, each=1)
    model = sharpened(preprocess=data.preprocess)
    raw = medimg.evaluate(model, data, n_resamples=20)
    medimg.calibrate(model, data, method="temperature")
    calibrated = medimg.evaluate(model, data, n_resamples=20)
    # a temperature changes no order
    assert calibrated.metrics["auroc"].value == pytest.approx(raw.metrics["auroc"].value)
    assert calibrated.metrics["brier"].value < raw.metrics["brier"].value


def test_one_class_is_said_and_changes_nothing() -> None:
    model = sharpened()
    data = images(8, prefix="test", seed=3)
    before = model.predict_proba(data)
    with pytest.warns(MedimgWarning, match="the same class.* stay as they are"):
        found = medimg.calibrate(model, Images(np.ones(20, np.int64)), coverage=None)
    assert (found.method, found.temperature, found.selection) == ("none", (1.0,), ())
    assert np.array_equal(model.predict_proba(data), before)
    labels = np.stack([np.arange(20) % 2, np.ones(20)], axis=1).astype(np.float32)
    several_labels = sharpened(task="multilabel")
    val = Images(labels, task="multilabel")
    raw = several_labels.predict_proba(val)
    with pytest.warns(MedimgWarning, match="1 of 2 labels are in all items"):
        medimg.calibrate(several_labels, val, coverage=None)
    assert np.array_equal(several_labels.predict_proba(val)[:, 1], raw[:, 1])


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
@pytest.mark.parametrize("recorded", [True, False])
def test_class_weights_of_the_training_are_undone(task: str, recorded: bool) -> None:
    """Where they are known: in the model's summary, or by the training data."""
    rng = np.random.default_rng(0)
    rare = (rng.random(200) < 0.1).astype(np.int64)
    fields: dict[str, Any] = {} if task == "multiclass" else {"task": "multilabel", "classes": ("a",)}
    labels = rare if task == "multiclass" else rare[:, None].astype(np.float32)
    train, val = Images(labels, prefix="t", seed=1, **fields), Images(labels, prefix="v", seed=2, **fields)
    model = small_classifier(**fields)
    medimg.fit_head(model, train, C=1.0)
    assert model.training_summary is not None
    weights = model.training_summary["class_weights"]
    odds = (1 - rare.mean()) / rare.mean()
    expected = [1 / odds, 1.0] if task == "multiclass" else [odds]
    np.testing.assert_allclose(
        np.array(weights) / max(1.0, weights[-1] if task == "multiclass" else 1), expected
    )
    if not recorded:
        del model.training_summary["class_weights"]
    raw = model.predict_proba(val)[:, -1].mean()
    found = medimg.calibrate(model, val, train=train, method="temperature", coverage=None)
    np.testing.assert_allclose(found.offset, -np.log(weights))
    assert abs(model.predict_proba(val)[:, -1].mean() - rare.mean()) < abs(raw - rare.mean())
    model.training_summary = {"balance": None, "class_weights": None}
    assert not medimg.calibrate(model, val, coverage=None).offset


@pytest.mark.parametrize("method", ["auto", "temperature", "platt", "vector", "isotonic", None])
@pytest.mark.parametrize("case", ["two", "three", "labels"])
def test_every_method_through_a_file(tmp_path: Path, method: Any, case: str) -> None:
    if method == "vector" and case != "three":
        return
    rng = np.random.default_rng(1)
    classes = ("a", "b") if case == "two" else ("a", "b", "c")
    task = "multilabel" if case == "labels" else "multiclass"
    labels = (
        rng.integers(0, 2, (90, 3)).astype(np.float32)
        if case == "labels"
        else rng.integers(0, len(classes), 90)
    )
    val = Images(labels, task=task, classes=classes)
    model = sharpened(task=task, classes=classes)
    found = medimg.calibrate(model, val, method=method)
    assert found.method == (method or "none") if method != "auto" else found.method != "none"
    again = medimg.load(model.save(tmp_path / "m.safetensors"))
    assert again.calibration == found
    assert model_digest(again) == model_digest(model)
    proba = model.predict_proba(val)
    assert np.array_equal(again.predict_proba(val), proba)
    if method not in (None, "auto"):
        assert found.loss[1] <= found.loss[0] + (0.05 if method == "isotonic" else 1e-3)
    if method == "auto":
        assert [name for name, _ in found.selection][:2] == ["temperature", "platt"]
        assert found.method in dict(found.selection)
    if task == "multiclass":
        np.testing.assert_allclose(proba.sum(axis=1), 1)
    values = json.loads(json.dumps(found.to_dict()))
    for name, bad in (
        ("method", "best"),
        ("bias", [1.0] * 9),
        ("curves", [[[1.0, 0.0], [0.0, 1.0]]]),
        ("selection", [1]),
    ):
        with pytest.raises(CheckpointError, match=f"^calibration.{name}"):
            Calibration.from_dict(values | {name: bad}, None, classes, task)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_scores_no_better_than_chance_are_said(classes: int, task: str) -> None:
    fields: dict[str, Any] = {"task": task, "classes": tuple("abc"[:classes])}
    model = sharpened(**fields)
    labels = np.arange(24) % classes
    val = Images(labels if task == "multiclass" else np.eye(classes, dtype=np.float32)[labels], **fields)
    with torch.no_grad():
        model.head.weight.zero_()
        assert model.head.bias is not None
        model.head.bias.copy_(torch.tensor([4.0, -4.0, 0.0][:classes]))
    with pytest.warns(MedimgWarning, match="no better than chance.*temperature at its bound"):
        medimg.calibrate(model, val, method="temperature", coverage=None)


@pytest.mark.parametrize("weights", ["0.5", [1.0], [1.0, 0.0], [1.0, float("inf")], [1.0, None], {"a": 1.0}])
def test_invalid_class_weights_are_not_taken_for_none(weights: Any) -> None:
    model, val = sharpened(), images(20, prefix="val", seed=1)
    model.training_summary = {"balance": "loss", "class_weights": weights}
    with pytest.raises(TrainingError, match="class_weights"):
        medimg.calibrate(model, val)
    model.training_summary = {"balance": "twice"}
    with pytest.raises(TrainingError, match=r'training_summary\["balance"\]'):
        medimg.calibrate(model, val)
