"""Ensembles: means of members by hand, checks, files, calibration and maps."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

import medimg
from medimg import Ensemble, ImageDataset, Preprocess, TransferClassifier
from medimg.cli.main import main
from medimg.core import geometry
from medimg.errors import CheckpointError, LeakageError, TrainingError, WeightsUnavailableError
from medimg.models.digest import model_digest
from medimg.models.training_distribution import ImageFacts, TrainingDistribution
from medimg.models.training_images import JointTrainingImages, TrainingImages
from tests.models.fakes import changed, images, state
from tests.models.images import pixels
from tests.models.small_network import small_classifier, small_network

__all__ = ["small_network"]

#: Heads are random.
pytestmark = pytest.mark.filterwarnings(
    "ignore:on the validation data the scores:medimg.errors.MedimgWarning"
)

SMALL = Preprocess(size=32)


def member(seed: int = 0, **fields: Any) -> TransferClassifier:
    model = small_classifier(preprocess=SMALL, **fields)
    generator = torch.Generator().manual_seed(seed)
    for module in (model.head, model.attention):
        for values in () if module is None else module.parameters():
            torch.nn.init.normal_(values, std=0.7, generator=generator)
    return model.eval()


def ensemble(count: int = 3, **fields: Any) -> Ensemble:
    return Ensemble([member(n, **fields) for n in range(count)])


def make_data(patients: int = 12, offset: int = 0) -> ImageDataset:
    return ImageDataset.from_arrays(
        [pixels(p % 2, 100 * offset + p) for p in range(patients)],
        [p % 2 for p in range(patients)],
        patients=[f"{offset}-{p}" for p in range(patients)],
        classes=["a", "b"],
        preprocess=SMALL,
    )


def volume(slices: int = 5, seed: int = 0) -> medimg.Volume:
    values = np.random.default_rng(seed).normal(size=(1, slices, 48, 48)).astype(np.float32)
    return medimg.Volume(values, geometry.image_affine((2.0, 0.5, 0.5)))


@pytest.fixture(scope="module")
def data() -> ImageDataset:
    return make_data()


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_probabilities_are_the_mean_of_the_members(task: Any, data: ImageDataset) -> None:
    model = ensemble(task=task)
    some: Any = images(6, preprocess=SMALL)
    some.task = task
    if task == "multilabel":
        some.labels = np.eye(2, dtype=np.int64)[some.labels]
    each = [one.predict_proba(some) for one in model.members]
    np.testing.assert_allclose(model.predict_proba(some), np.mean(each, axis=0), atol=1e-12)
    assert not np.allclose(each[0], each[1], atol=1e-3)
    x = torch.stack([some[n][0] for n in range(6)])
    logits = model(x)
    assert logits.shape == (6, 2)
    found = logits.softmax(dim=1) if task == "multiclass" else logits.sigmoid()
    np.testing.assert_allclose(found.numpy(), np.mean(each, axis=0), atol=1e-6)
    assert model.embed(x).shape == (6, 48)


@pytest.mark.parametrize("pool", ["none", "mean", "max", "attention"])
@pytest.mark.parametrize("unit", ["series", "image"])
def test_tables_are_the_mean_of_those_of_the_members(pool: Any, unit: Any) -> None:
    model = ensemble(pool=pool)
    sources = [volume(5), volume(2, seed=1)]
    found = model.predict(sources, unit=unit, batch_size=2)
    each = [one.predict(sources, unit=unit, batch_size=2) for one in model.members]
    assert list(found.columns) == list(each[0].columns)
    names = ["p_a", "p_b"] + (["weight"] if unit == "image" else [])
    expected = np.mean([one[names].to_numpy() for one in each], axis=0)
    np.testing.assert_allclose(found[names].to_numpy(), expected, atol=1e-6)
    assert found.attrs["model"] not in {one.attrs["model"] for one in each}


def own_network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )


def own_member(seed: int) -> TransferClassifier:
    torch.manual_seed(seed)
    return TransferClassifier(own_network(), classes=["a", "b"], preprocess=SMALL).eval()


def test_members_that_were_networks_of_ones_own(tmp_path: Path) -> None:
    members = [own_member(0), member(1), own_member(2)]
    file = Ensemble(members).save(tmp_path / "own.safetensors")
    shown = torch.rand(2, 3, 32, 32)
    given = own_network()
    before = state(given)
    loaded = medimg.load(file, backbone=given)
    assert torch.equal(loaded(shown), Ensemble(members)(shown))
    assert not changed(before, state(given))
    with pytest.raises(CheckpointError, match="backbone=network"):
        medimg.load(file)


def test_a_network_that_no_member_needs_is_refused(tmp_path: Path) -> None:
    file = ensemble().save(tmp_path / "named.safetensors")
    with pytest.raises(CheckpointError, match="omit it"):
        medimg.load(file, backbone=own_network())


def test_folds_of_a_network_of_ones_own(tmp_path: Path) -> None:
    found = medimg.cross_validate(
        own_member(0),
        make_data(),
        fine_tune={"epochs": 1, "augment": None},
        folds=2,
        output=tmp_path,
        n_resamples=50,
        progress=False,
    )
    with pytest.raises(CheckpointError, match="backbone=network"):
        found.ensemble()
    model = found.ensemble(backbone=own_network())
    assert len(model.members) == 2
    assert changed(state(model.members[0]), state(model.members[1]))


def test_the_members_may_have_different_backbones_and_precision(data: ImageDataset) -> None:
    other = TransferClassifier("squeezenet1_1", classes=("a", "b"), weights=None, preprocess=SMALL)
    model = Ensemble([member(), other.eval(), member(2).to(torch.float64)])
    assert model.backbone_name == "2 small, 1 squeezenet1_1"
    each = [one.predict_proba(data) for one in model.members]
    np.testing.assert_allclose(model.predict_proba(data), np.mean(each, axis=0), atol=1e-7)
    assert medimg.embed(model, data, progress=False).array.shape == (12, 16 + 512 + 16)


def test_calibrated_members_count_with_their_calibration(data: ImageDataset) -> None:
    model = ensemble()
    val = make_data(24, offset=1)
    for one in model.members:
        medimg.calibrate(one, val, coverage=None, method="temperature")
    each = [one.predict_proba(data) for one in model.members]
    np.testing.assert_allclose(model.predict_proba(data), np.mean(each, axis=0), atol=1e-12)
    torch.nn.init.ones_(model.members[1].head.weight)
    with pytest.raises(TrainingError, match="changed after calibration"):
        model.predict_proba(data)


def test_calibration_of_the_mean(data: ImageDataset, tmp_path: Path) -> None:
    model = ensemble()
    val, train = make_data(40, offset=1), make_data(30, offset=2)
    before = model.predict_proba(data)
    found = medimg.calibrate(
        model, val, train=train, method="temperature", operating_point="youden", progress=False
    )
    (temperature,) = found.temperature
    scaled = torch.from_numpy(np.log(before) / temperature).softmax(dim=1).numpy()
    np.testing.assert_allclose(model.predict_proba(data), scaled, atol=1e-9)
    table = model.predict([volume()], unit="image")
    assert {"set", "ood"} <= set(table.columns)
    loaded = medimg.load(model.save(tmp_path / "ensemble.safetensors"))
    assert isinstance(loaded, Ensemble)
    assert loaded.calibration == model.calibration
    assert np.array_equal(loaded.predict_proba(data), model.predict_proba(data))
    # BLAS rounds by where arrays are in memory
    again = loaded.predict([volume()], unit="image")["ood"]
    np.testing.assert_allclose(again.to_numpy(), table["ood"].to_numpy(), rtol=1e-12)
    assert loaded.images_seen is not None
    assert loaded.images_seen.series["val"] == (model.images_seen or TrainingImages()).series["val"]
    assert model_digest(loaded) == model_digest(model)
    report = medimg.evaluate(loaded, data, n_resamples=20, progress=False)
    assert report.provenance["model"]["backbone"] == "3 small"
    assert report.to_html(tmp_path / "report.html", card=True).exists()


def test_calibration_holds_with_that_of_the_members(data: ImageDataset, tmp_path: Path) -> None:
    model, val = ensemble(2), make_data(24, offset=1)
    medimg.calibrate(model, val, progress=False)
    loaded = medimg.load(model.save(tmp_path / "ensemble.safetensors"))
    first = model.members[0]
    medimg.calibrate(first, make_data(24, offset=2), method="platt", progress=False)
    with pytest.raises(TrainingError, match="calibrations of the ensemble's members were changed after"):
        model.predict_proba(data)
    with pytest.raises(TrainingError, match="calibrations of the ensemble's members"):
        medimg.explain(model, volume(), progress=False)
    assert isinstance(loaded, Ensemble)
    before = loaded.predict_proba(data)
    loaded.members[0].calibration = first.calibration
    with pytest.raises(TrainingError, match="calibrations of the ensemble's members"):
        loaded.predict_proba(data)
    # of a file that was written before
    loaded.calibration = replace(loaded.calibration, members_sha256="")  # type: ignore[type-var]  # calibrated
    assert not np.array_equal(loaded.predict_proba(data), before)
    medimg.calibrate(model, val, progress=False)
    # what leaves its probabilities as they are
    first.calibration = replace(first.calibration, coverage=None, quantiles=())  # type: ignore[type-var]  # calibrated
    again = medimg.load(model.save(tmp_path / "ensemble.safetensors"))
    assert np.array_equal(again.predict_proba(data), model.predict_proba(data))


def test_class_weights_are_undone_unless_a_member_is_calibrated() -> None:
    model = ensemble(2)
    assert model.training_summary == {"members": 2}
    for one, weights in zip(model.members, ([1.0, 4.0], [1.0, 1.0]), strict=True):
        one.training_summary = {"balance": "loss", "class_weights": weights}
    assert Ensemble(model.members).training_summary == {
        "members": 2,
        "balance": "loss",
        "class_weights": pytest.approx([1.0, 2.0]),
    }
    medimg.calibrate(model.members[0], make_data(24), coverage=None)
    assert Ensemble(model.members).training_summary == {"members": 2}


def test_the_map_is_the_mean_of_those_of_the_members() -> None:
    model, source = ensemble(), volume()
    found = medimg.explain(model, source, progress=False)
    table = model.predict(source)
    assert found.target == table["predicted"][0]
    assert found.probability == pytest.approx(table[f"p_{found.target}"][0])
    each = [medimg.explain(one, source, found.target, progress=False) for one in model.members]
    mean = np.mean([one.heat for one in each], axis=0)
    np.testing.assert_allclose(found.heat, mean / mean.max(), atol=1e-5)
    assert found.heat.max() == pytest.approx(1.0)
    assert found.layer == each[0].layer
    mixed = Ensemble(
        [member(), TransferClassifier("squeezenet1_1", classes=("a", "b"), weights=None, preprocess=SMALL)]
    )
    assert len(medimg.explain(mixed, source, 1, progress=False).layer.split(", ")) == 2
    before = state(model)
    report = medimg.evaluate(model, make_data(), saliency=True, n_resamples=10, progress=False)
    assert report.example_images
    assert not changed(before, state(model))


def test_functions_that_take_a_model_take_an_ensemble(data: ImageDataset) -> None:
    model = ensemble()
    found = medimg.compare_models(model, model.members[0], data, n_resamples=20, progress=False)
    assert (
        found.differences["auroc"].first
        == medimg.evaluate(model, data, n_resamples=20, progress=False).metrics["auroc"].value
    )
    shift = medimg.domain_shift(data, make_data(offset=3), model=model, folds=2, progress=False)
    assert shift.distances is not None
    assert copy.deepcopy(model).predict_proba(data).tolist() == model.predict_proba(data).tolist()


@pytest.mark.parametrize(
    "function",
    [
        medimg.fine_tune,
        medimg.fit_head,
        medimg.lr_find,
        medimg.cross_validate,
    ],
)
def test_it_is_not_trained(function: Any, data: ImageDataset) -> None:
    with pytest.raises(TrainingError, match="an Ensemble can't be trained"):
        function(ensemble(2), data)


def test_saved_and_loaded(tmp_path: Path, data: ImageDataset) -> None:
    model = ensemble(pool="none")
    path = model.save(tmp_path / "model.safetensors")
    for loaded in (medimg.load(path), Ensemble.load(path)):
        assert isinstance(loaded, Ensemble)
        assert repr(loaded) == repr(model)
        assert np.array_equal(loaded.predict_proba(data), model.predict_proba(data))
    single = model.members[0].save(tmp_path / "single.safetensors")
    assert not isinstance(medimg.load(single), Ensemble)
    with pytest.raises(CheckpointError, match="not an ensemble written by"):
        Ensemble.load(single)
    with pytest.raises(CheckpointError, match="is an ensemble"):
        TransferClassifier.load(path)
    with pytest.raises(CheckpointError, match="can't be opened"):
        medimg.load(tmp_path / "missing.safetensors")


def _rewrite(path: Path, change: Any) -> Path:
    """Change the header of a file, with the right hash."""
    from medimg.models.safetensors_file import header_sha256

    with safe_open(path, framework="pt") as opened:
        key, text = next(iter(opened.metadata().items()))
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  # no dict
    header = json.loads(text)
    change(header, tensors)
    header["header_sha256"] = header_sha256(header)
    save_file(tensors, path, metadata={key: json.dumps(header)})
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda header, _: header.pop("schema"), "has no schema"),
        (lambda header, _: header.update(schema=99), "newer medimg: the schema of its ensemble is 99"),
        (lambda header, _: header["members"][1].update(schema=99), "newer medimg"),
        (lambda header, _: header["members"][1].pop("classes"), "classes"),
        (lambda header, _: header["members"][1].update(classes=["a", "c"]), "member 1, .* is not the one"),
        (
            lambda header, _: header["members"][1].update(pool="x"),
            "member 1, counted from 0, of .* pool must",
        ),
        (lambda header, _: header.update(members={}), "members must be a list"),
        (lambda header, _: header["members"].pop(), "is not the one that was saved|don't fit"),
        (lambda header, _: header.update(calibration={}), "calibration"),
        (lambda header, _: header.update(model_sha256="0" * 64), "is not the one that was saved"),
        (lambda _, tensors: tensors.pop("1.head.weight"), "tensors .* are not those"),
    ],
)
def test_changed_files_are_refused(tmp_path: Path, change: Any, message: str) -> None:
    path = _rewrite(ensemble().save(tmp_path / "model.safetensors"), change)
    with pytest.raises(CheckpointError, match=message):
        medimg.load(path)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (member, "expected a list of TransferClassifiers"),
        (lambda: [], "at least two different models; found 0 of 0"),
        (lambda: [member()], "at least two different models; found 1 of 1"),
        (lambda: [member()] * 2, "at least two different models; found 1 of 2"),
        (lambda: [member(), "model.safetensors"], "found a str among them: read files with"),
        (lambda: [member(), ensemble()], "found an Ensemble among them: pass its members"),
        (lambda: [member(), member(classes=("b", "a"))], r"model 1.*classes=\['b', 'a'\]"),
        (lambda: [member(), member(task="multilabel")], "task='multilabel'"),
        (lambda: [member(), member(pool="mean")], "pool='mean'"),
        (
            lambda: [member(), small_classifier(preprocess=Preprocess(size=32, window="percentile"))],
            "preprocessing of model 1.*differs from that of model 0 in window",
        ),
    ],
)
def test_members_that_differ_are_refused(members: Any, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        Ensemble(members())


def test_images_and_ranges_of_any_member_are_known(data: ImageDataset) -> None:
    parts = [make_data(4, offset=n) for n in range(3)]
    joined = JointTrainingImages.of([TrainingImages().with_data(one, "train") for one in parts[:2]] + [None])
    assert [joined.shared(one).patients["train"] for one in parts] == [4, 4, 0]
    more = joined.with_data(parts[2], "val")
    assert [more.shared(one).patients["val"] for one in parts] == [0, 0, 4]
    facts = [ImageFacts("CT", spacing=(0.6, 0.6)), ImageFacts("MR", spacing=(0.9, 0.9))]
    union = TrainingDistribution.union([TrainingDistribution.of([one]) for one in facts])
    assert (union.modalities, union.spacing, union.series) == (("CT", "MR"), (0.6, 0.9), 2)


def test_it_is_no_file_of_weights(tmp_path: Path) -> None:
    # of equal backbones, and of different ones
    for seed, model in enumerate((ensemble(2), ensemble(2))):
        with torch.no_grad():
            next(model.members[0].backbone.parameters()).add_(seed)
        file = model.save(tmp_path / "ensemble.safetensors")
        for backbone, weights in (("small", file), (file, "DEFAULT")):
            with pytest.raises(WeightsUnavailableError, match=r"is an ensemble, .* save a member"):
                TransferClassifier(backbone, classes=("a", "b"), weights=weights, preprocess=SMALL)
        one = model.members[0].save(tmp_path / "one.safetensors")
        assert TransferClassifier("small", classes=("a", "b"), weights=one, preprocess=SMALL).weights_chain


def test_later_trainings_of_members_are_known(tmp_path: Path, data: ImageDataset) -> None:
    model, val = ensemble(2), make_data(24, offset=1)
    medimg.calibrate(model, make_data(24, offset=2), progress=False)
    before: Any = model.training_ranges
    assert before is None
    medimg.fine_tune(model.members[0], data, head_epochs=1, epochs=0, progress=False)
    model.members[0].training_ranges = TrainingDistribution.of([ImageFacts("CT")])
    model.members[1].training_ranges = TrainingDistribution.of([ImageFacts("MR")])
    for one in model.members:
        one.training_summary = {"class_weights": [1.0, 4.0]}
    assert model.training_ranges is not None
    assert model.training_ranges.modalities == ("CT", "MR")
    assert model.training_summary["class_weights"] == pytest.approx([1.0, 4.0])
    with pytest.raises(LeakageError, match="was trained on 12 series"):
        medimg.evaluate(model, data, progress=False)
    assert model.images_seen.shared(make_data(24, offset=2)).patients["val"] == 24
    with pytest.raises(LeakageError, match="was trained on"):
        medimg.calibrate(model, data, progress=False)
    medimg.calibrate(model, val, progress=False)
    loaded = medimg.load(model.save(tmp_path / "ensemble.safetensors"))
    assert loaded.images_seen is not None
    assert loaded.images_seen.series == model.images_seen.series


def test_folds_become_one(tmp_path: Path, data: ImageDataset) -> None:
    options: dict[str, Any] = {"folds": 2, "n_resamples": 10, "progress": False, "output": tmp_path}
    tuning: Any = {"head_epochs": 0, "epochs": 1, "batch_size": 8}
    found = medimg.cross_validate(member(), data, fine_tune=tuning, keep_models=True, **options)
    model = found.ensemble()
    assert model.members == found.models
    again = medimg.cross_validate(member(), data, fine_tune=tuning, resume=True, **options).ensemble()
    new = make_data(offset=5)
    assert np.array_equal(again.predict_proba(new), model.predict_proba(new))
    assert medimg.evaluate(again, new, n_resamples=10, progress=False).n_patients == 12
    with pytest.raises(LeakageError, match="was trained on"):
        medimg.evaluate(model, data, progress=False)
    probes = medimg.cross_validate(member(), data, folds=2, n_resamples=10, progress=False)
    with pytest.raises(TrainingError, match="keep_models=True or output="):
        probes.ensemble()


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, image = ensemble(2).save(tmp_path / "model.safetensors"), tmp_path / "image.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40), dtype=np.uint8)).save(image)
    assert main(["predict", str(path), str(image), "--tta", "hflip,rotate180"]) == 0
    row = capsys.readouterr().out.splitlines()[1]
    expected = medimg.load(path).predict(image, tta=["hflip", "rotate180"])
    assert f"{expected['p_a'][0]}" in row
    assert main(["info", str(path)]) == 0
    assert "2 small" in capsys.readouterr().out
    assert main(["explain", str(path), str(image), "--out", str(tmp_path / "map")]) == 0
