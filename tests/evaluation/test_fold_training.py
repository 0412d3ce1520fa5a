"""Cross-validation of fine-tuned models: what it is by hand, leaks, resuming, and its report."""

from __future__ import annotations

import inspect
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_lightning import Callback
from sklearn.metrics import roc_auc_score

import medimg
from medimg import ImageDataset, Preprocess, TransferClassifier
from medimg.errors import CheckpointError, DatasetError, LeakageError, TrainingError
from medimg.evaluation import _fold_training
from medimg.models import safetensors_file
from medimg.models.digest import model_digest
from medimg.training.fine_tune import FineTuneArguments
from tests.models.conftest import one_thread
from tests.models.fakes import changed, images, state
from tests.models.images import pixels
from tests.models.small_network import make_network, small_classifier, small_network

__all__ = ["one_thread", "small_network"]

#: So few images can't be calibrated well.
pytestmark = pytest.mark.filterwarnings(
    "ignore:on the validation data the scores:medimg.errors.MedimgWarning"
)

SMALL = Preprocess(size=32)
FEW: dict[str, Any] = {"n_resamples": 20, "progress": False, "folds": 2}
SHORT: FineTuneArguments = {"head_epochs": 0, "epochs": 1, "lr": 0.01, "batch_size": 8}


def make_data(changed_patients: Any = (), patients: int = 12) -> ImageDataset:
    """Two images of each patient; those of some have other pixels."""
    shown = [
        pixels(p % 2, 1000 * (p in changed_patients) + 2 * p + n) for p in range(patients) for n in (0, 1)
    ]
    labels = [p % 2 for p in range(patients) for _ in (0, 1)]
    whose = [f"SENTINEL-{p}" for p in range(patients) for _ in (0, 1)]
    domains = ["north" if p < patients / 2 else "south" for p in range(patients) for _ in (0, 1)]
    return ImageDataset.from_arrays(
        shown, labels, patients=whose, domains=domains, classes=["a", "b"], preprocess=SMALL
    )


def model_of(**fields: Any) -> TransferClassifier:
    return small_classifier(preprocess=SMALL, **fields)


@pytest.fixture(scope="module")
def data() -> ImageDataset:
    return make_data()


def test_it_is_what_folds_by_hand_find(data: ImageDataset, tmp_path: Path, caplog: Any) -> None:
    model = model_of()
    before = state(model)
    with caplog.at_level(logging.INFO, "medimg"):
        found = medimg.cross_validate(
            model, data, fine_tune=SHORT, seed=3, output=tmp_path, keep_models=True, subgroups="site", **FEW
        )
    assert not changed(before, model.state_dict())
    assert model.images_seen is None
    expected = np.zeros((len(data), 2))
    for number, (rest, test) in enumerate(medimg.kfold(data, 2, seed=3), 1):
        train, val = medimg.split(rest, fractions=(0.85, 0.15), seed=3)
        own = model_of()
        fit = medimg.fine_tune(own, train, val, seed=3, progress=False, **SHORT)
        medimg.calibrate(own, val, coverage=None, progress=False)
        held_out = np.flatnonzero(found.folds == number - 1)
        assert tuple(data.sources[n] for n in held_out) == test.sources
        expected[held_out] = own.predict_proba(test)
        assert found.fits[number - 1].best_epoch == fit.best_epoch
        assert not changed(state(own), found.models[number - 1].state_dict())
        written = medimg.load(tmp_path / f"fold_{number}" / "best.safetensors")
        assert np.array_equal(written.predict_proba(test), expected[held_out])
        assert not (tmp_path / f"fold_{number}" / "resume.safetensors").exists()
    assert np.array_equal(found.probabilities, expected)
    assert found.metrics["auroc"].value == pytest.approx(roc_auc_score(data.labels, expected[:, 1]))
    assert (found.method, found.unit, found.n_patients, len(found.fold_metrics)) == (
        "fine_tune",
        "image",
        12,
        2,
    )
    _check_report(found, tmp_path)
    lines = [record.getMessage() for record in caplog.records]
    assert sum(line.startswith(("fold 1/2: ", "fold 2/2: ")) and "held out" in line for line in lines) == 2
    assert sum("/2 ended: AUROC" in line for line in lines) == 2
    assert "SENTINEL" not in "".join(lines)


def _check_report(found: medimg.CrossValidation, folder: Path) -> None:
    report = found.report
    assert report is not None
    assert {name: one.value for name, one in report.metrics.items()} == pytest.approx(
        {name: one.value for name, one in found.metrics.items()}, nan_ok=True
    )
    assert report.metrics["auroc"].low == found.metrics["auroc"].low
    assert any("Out-of-fold predictions of 2 models" in note for note in report.notes)
    assert report.subgroups is not None
    assert set(report.subgroups["group"]) == {"north", "south"}
    assert report.provenance["training"]["epochs"] == 1
    page = report.to_html(folder / "report.html", card=True).read_text()
    assert "calibrated on its validation patients" in page
    assert "SENTINEL" not in page + (folder / "report.md").read_text() + repr(found)


def test_a_model_depends_on_no_image_of_its_fold(data: ImageDataset) -> None:
    options: dict[str, Any] = {"fine_tune": {**SHORT, "augment": "CR"}, "keep_models": True, **FEW}
    before = medimg.cross_validate(model_of(), data, **options)
    whose = {data.patients[n] for n in np.flatnonzero(before.folds == 0)}
    other = make_data({int(name.removeprefix("SENTINEL-")) for name in whose})
    after = medimg.cross_validate(model_of(), other, **options)
    assert np.array_equal(before.folds, after.folds)
    assert not changed(state(before.models[0]), after.models[0].state_dict())
    assert before.models[0].calibration == after.models[0].calibration or (
        before.models[0].calibration is not None
        and after.models[0].calibration is not None
        and before.models[0].calibration.to_dict() == after.models[0].calibration.to_dict()
    )
    assert changed(state(before.models[1]), after.models[1].state_dict())
    held_out = before.folds == 0
    assert not np.array_equal(before.probabilities[held_out], after.probabilities[held_out])


def test_subsets_of_a_fold_share_no_patient(data: ImageDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def record(model: Any, train: Any, val: Any, **_: Any) -> Any:
        seen.append((set(train.patients), set() if val is None else set(val.patients)))
        raise KeyboardInterrupt

    monkeypatch.setattr(_fold_training, "fine_tune", record)
    for fraction in (0.15, 0.3, 0.5, 0):
        with pytest.raises(KeyboardInterrupt):
            medimg.cross_validate(model_of(), data, fine_tune=True, val_fraction=fraction, **FEW)
        train, val = seen[-1]
        assert not train & val
        assert bool(val) == bool(fraction)
        (outside, held_out), _ = medimg.kfold(data, 2)
        assert train | val == set(outside.patients)
        assert not (train | val) & set(held_out.patients)


def test_without_validation(data: ImageDataset) -> None:
    found = medimg.cross_validate(model_of(), data, fine_tune=SHORT, val_fraction=0, **FEW)
    assert [fit.monitor for fit in found.fits] == [None, None]
    assert found.models == ()
    assert found.report is not None
    assert found.report.provenance["calibration"] is None


def test_finished_folds_are_not_trained_again(
    data: ImageDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"fine_tune": SHORT, "output": tmp_path / "cv", "calibrate": False, **FEW}
    whole = medimg.cross_validate(model_of(), data, **{**options, "output": tmp_path / "whole"})
    trained, before = [], medimg.fine_tune

    def train(*arguments: Any, **more: Any) -> Any:
        trained.append(more["output"].name)
        if len(trained) in {2, 4}:
            raise KeyboardInterrupt
        return before(*arguments, **more)

    monkeypatch.setattr(_fold_training, "fine_tune", train)
    with pytest.raises(KeyboardInterrupt):
        medimg.cross_validate(model_of(), data, **options)
    found = medimg.cross_validate(model_of(), data, resume=True, keep_models=True, **options)
    assert trained == ["fold_1", "fold_2", "fold_2"]
    assert np.array_equal(found.probabilities, whole.probabilities)
    kept = [{k: v for k, v in row.items() if k != "seconds"} for row in found.fits[0].history]
    assert kept == [{k: v for k, v in row.items() if k != "seconds"} for row in whole.fits[0].history]
    assert not changed(
        state(found.models[0]), medimg.load(tmp_path / "whole/fold_1/best.safetensors").state_dict()
    )
    others: list[tuple[str, dict[str, Any]]] = [
        ("folds", {"folds": 3}),
        ("lr", {"fine_tune": {**SHORT, "lr": 0.02}}),
        ("val_fraction", {"val_fraction": 0.4}),
        ("seed", {"seed": 1}),
        ("calibrate", {"calibrate": True}),
    ]
    for name, changes in others:
        with pytest.raises(TrainingError, match=rf"differs in .*\b{name}\b"):
            medimg.cross_validate(model_of(), data, **{**options, "resume": True, **changes})
    with pytest.raises(TrainingError, match=r"differs in .*\bdata\b"):
        medimg.cross_validate(model_of(), make_data({0}), resume=True, **options)
    with pytest.raises(TrainingError, match=r"differs in .*\bmodel\b"):
        medimg.cross_validate(_other_model(), data, resume=True, **options)
    path = tmp_path / "cv/fold_1/result.safetensors"
    assert b"SENTINEL" not in path.read_bytes()
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(CheckpointError):
        medimg.cross_validate(model_of(), data, resume=True, **options)


def test_an_earlier_cross_validation_stays_unless_it_is_to_be_replaced(
    data: ImageDataset, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"fine_tune": SHORT, "output": tmp_path, "calibrate": False, **FEW}
    medimg.cross_validate(model_of(), data, **options)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def fails(message: str, **changes: Any) -> None:
        with pytest.raises(TrainingError, match=message):
            medimg.cross_validate(model_of(), data, **{**options, **changes})
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before

    fails(
        r"fold_1 has the results of an earlier cross-validation \(result.*pass resume=True .* overwrite=True"
    )
    fails("pass one of them", resume=True, overwrite=True)
    # what only fine_tune finds
    fails("lr must be", overwrite=True, fine_tune={**SHORT, "lr": -1})
    fails("the augmentation fails", overwrite=True, fine_tune={**SHORT, "augment": lambda images: images[9]})
    (tmp_path / "fold_1/result.safetensors").unlink()
    before.pop(tmp_path / "fold_1/result.safetensors")
    fails("fold_1 has the results .* it has no resume.safetensors to continue", resume=True)
    cut = {**SHORT, "augment": lambda images: images * torch.nan}
    with pytest.raises(TrainingError, match="the loss became nan"):
        medimg.cross_validate(model_of(), data, **{**options, "fine_tune": cut}, overwrite=True)
    assert not (tmp_path / "fold_2/result.safetensors").exists()
    assert (tmp_path / "fold_1/best.safetensors").read_bytes() == before[tmp_path / "fold_1/best.safetensors"]
    medimg.cross_validate(model_of(), data, **options, overwrite=True)
    assert (tmp_path / "fold_1/result.safetensors").exists()
    assert (tmp_path / "fold_2/result.safetensors").exists()


def test_a_result_of_another_run_is_found_before_any_fold_trains(data: ImageDataset, tmp_path: Path) -> None:
    options: dict[str, Any] = {"fine_tune": SHORT, "output": tmp_path, "calibrate": False, **FEW}
    medimg.cross_validate(model_of(), data, **options)
    for path in (tmp_path / "fold_1").iterdir():
        path.unlink()
    with pytest.raises(TrainingError, match=r"fold_2.* differs in lr"):
        medimg.cross_validate(
            model_of(), data, **{**options, "fine_tune": {**SHORT, "lr": 0.02}}, resume=True
        )
    assert not list((tmp_path / "fold_1").iterdir())


@pytest.fixture(scope="module")
def finished(data: ImageDataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output folder of a cross-validation that has ended; it is copied, not changed."""
    medimg.register_backbone("small", make_network, size=64)
    folder = tmp_path_factory.mktemp("finished") / "cv"
    medimg.cross_validate(model_of(), data, output=folder, **ENDED)
    return folder


ENDED: dict[str, Any] = {"fine_tune": SHORT, "calibrate": False, **FEW}


@pytest.fixture
def output(finished: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished, tmp_path / "cv")


def _resume(data: ImageDataset, output: Path, **changes: Any) -> medimg.CrossValidation:
    return medimg.cross_validate(model_of(), data, output=output, resume=True, **ENDED, **changes)


def test_an_ensemble_is_of_the_models_of_its_result(data: ImageDataset, output: Path) -> None:
    first = _resume(data, output)
    expected = first.ensemble().predict_proba(data)
    shorter: dict[str, Any] = {**ENDED, "fine_tune": {**SHORT, "lr": 0.1}}
    second = medimg.cross_validate(model_of(), data, output=output, overwrite=True, **shorter)
    with pytest.raises(CheckpointError, match=r"fold_1/best.* another model than this cross-validation"):
        first.ensemble()
    assert not np.array_equal(second.ensemble().predict_proba(data), expected)
    for fit, member in zip(second.fits, second.ensemble().members, strict=True):
        assert fit.model_sha256 == model_digest(member)


def test_files_of_a_fold_are_its_own(data: ImageDataset, output: Path, tmp_path: Path) -> None:
    first, second = output / "fold_1", output / "fold_2"
    result, model = (second / name for name in ("result.safetensors", "best.safetensors"))
    found, before = _resume(data, output), {path: path.read_bytes() for path in (result, model)}
    result.write_bytes((first / result.name).read_bytes())
    with pytest.raises(TrainingError, match="the result of another fold, fold_1"):
        _resume(data, output)
    result.write_bytes(before[result])
    other = model_of(classes=("x", "y")).save(tmp_path / "other.safetensors")
    for source in (first / model.name, other):
        model.write_bytes(source.read_bytes())
        for keeps in (True, False):
            with pytest.raises(CheckpointError, match="another model than this cross-validation trained"):
                _resume(data, output, keep_models=keeps)
        with pytest.raises(CheckpointError, match="another model than this cross-validation trained"):
            found.ensemble()
    model.unlink()
    again = _resume(data, output)
    assert np.array_equal(again.probabilities, found.probabilities)
    with pytest.raises(CheckpointError, match=r"fold_2/best\.safetensors can't be opened: No such file"):
        again.ensemble()


WRONG: dict[str, tuple[str, Any]] = {
    "an older schema": ("another version of medimg", {"schema": 1}),
    "no history": ("missing history", {"history": None}),
    "no object": ("history must be an object", {"history": [3]}),
    "no list": ("history must be a list", {"history": 3}),
    "no epoch": ("best_epoch must be one of its 0 epochs", {"history": []}),
    "no row": ("missing epoch", {"history": [{}]}),
    "another epoch": ("best_epoch must be one of its 1 epochs; found 9", {"best_epoch": 9}),
    "no monitor": ("monitor must be text or null", {"monitor": 3}),
    "a duration": ("seconds must be a number", {"seconds": "x"}),
    "no digest": ("model_sha256 must be text", {"model_sha256": 3}),
    "candidates": ("candidates must be an object", {"candidates": ["x"]}),
    "notes": ("notes must be a list of texts", {"notes": 3}),
    "identity": ("identity must be an object", {"identity": [1]}),
    "no probabilities": ("found none", {}),
    "few items": (r"probabilities \(12, 2\) .* found \(3, 2\)", torch.full((3, 2), 0.5)),
    "classes": (r"probabilities \(12, 2\) .* found \(12, 7\)", torch.full((12, 7), 1 / 7)),
    "whole numbers": (r"found \(12, 2\) torch.int64", torch.ones((12, 2), dtype=torch.int64)),
    "not a number": ("between 0 and 1", torch.full((12, 2), torch.nan)),
    "too large": ("between 0 and 1", torch.full((12, 2), 5.0)),
    "no sum": ("with a sum of 1", torch.full((12, 2), 0.1)),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_result_with_a_valid_hash_and_other_content(what: str, data: ImageDataset, output: Path) -> None:
    message, change = WRONG[what]
    path, key = output / "fold_2/result.safetensors", _fold_training._KEY
    header = safetensors_file.read_header(path, key, "a result")
    tensors = safetensors_file.read_tensors(path, header)
    if isinstance(change, torch.Tensor):
        tensors = {"probabilities": change}
    elif not change:
        tensors = {"others": torch.zeros(1)}
    else:
        header = {name: value for name, value in {**header, **change}.items() if value is not None}
        header |= {"monitor": header.get("monitor")}
    safetensors_file.write(path, key, header, tensors)
    with pytest.raises(CheckpointError, match=message):
        _resume(data, output)


def test_folds_of_an_earlier_run_do_not_stay(
    data: ImageDataset, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(output / "fold_2", output / "fold_3")
    with pytest.raises(TrainingError, match=r"fold_3 belongs to another cross-validation.* differs in folds"):
        _resume(data, output)
    (output / "fold_3/notes.txt").write_text("mine")
    before = medimg.fine_tune

    def stop(*arguments: Any, **more: Any) -> Any:
        if more["output"].name == "fold_2":
            raise KeyboardInterrupt
        return before(*arguments, **more)

    options: dict[str, Any] = {**ENDED, "output": output, "fine_tune": {**SHORT, "lr": 0.02}}
    monkeypatch.setattr(_fold_training, "fine_tune", stop)
    with pytest.raises(KeyboardInterrupt):
        medimg.cross_validate(model_of(), data, overwrite=True, **options)
    monkeypatch.setattr(_fold_training, "fine_tune", before)
    assert not (output / "fold_2").exists()
    assert [path.name for path in (output / "fold_3").iterdir()] == ["notes.txt"]
    assert len(medimg.cross_validate(model_of(), data, resume=True, **options).ensemble().members) == 2


@pytest.mark.filterwarnings('ignore:adapt="auto" keeps the training:medimg.errors.MedimgWarning')
def test_candidates_of_a_finished_fold_are_kept(data: ImageDataset, tmp_path: Path) -> None:
    target = make_data(set(range(12)))
    auto = medimg.adapt.Auto(target, candidates=[medimg.adapt.CORAL(target)])
    options: dict[str, Any] = {**ENDED, "fine_tune": {**SHORT, "adapt": auto}, "val_fraction": 0.4}
    first = medimg.cross_validate(model_of(), data, output=tmp_path, **options)
    again = medimg.cross_validate(model_of(), data, output=tmp_path, resume=True, **options)
    assert [fit.candidates for fit in again.fits] == [fit.candidates for fit in first.fits]
    assert [list(row) for row in again.fits[0].candidates] == [list(row) for row in first.fits[0].candidates]
    assert [list(row) for row in again.fits[0].history] == [list(row) for row in first.fits[0].history]
    assert [len(fit.candidates) for fit in first.fits] == [2, 2]
    assert len(again.ensemble().members) == 2


def _other_model() -> TransferClassifier:
    model = model_of()
    with torch.no_grad():
        model.head.weight.add_(0.1)
    return model


class Counter(Callback):
    def __init__(self) -> None:
        self.steps = 0
        self.most: list[int] = []

    def on_train_batch_end(self, *_: Any) -> None:
        self.steps += 1

    def on_train_end(self, *_: Any) -> None:
        self.most.append(self.steps)

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.steps = state_dict["steps"]


def test_callbacks_start_each_fold_alike(data: ImageDataset) -> None:
    counter = Counter()
    medimg.cross_validate(
        model_of(), data, fine_tune={**SHORT, "callbacks": [counter]}, val_fraction=0, **FEW
    )
    assert len(counter.most) == 2
    assert max(counter.most) <= 2 * min(counter.most)


def test_the_arguments_are_those_of_fine_tune() -> None:
    parameters = inspect.signature(medimg.fine_tune).parameters
    own = {"model", "train", "val", *_fold_training._OWN}
    assert set(FineTuneArguments.__annotations__) == set(parameters) - own
    typed = {name: one.__forward_arg__ for name, one in FineTuneArguments.__annotations__.items()}
    # objects are for one training
    assert typed.pop("logger") == "str | Sequence[str] | None"
    assert typed == {name: parameters[name].annotation for name in typed}


UNSOUND: list[tuple[type[Exception], str, dict[str, Any]]] = [
    (TrainingError, "fine_tune must be True, False, or the arguments", {"fine_tune": 3}),
    (TrainingError, r"fine_tune has 'epoch', .*did you mean 'epochs'", {"fine_tune": {"epoch": 3}}),
    (TrainingError, "fine_tune has 'seed', which cross_validate gives", {"fine_tune": {"seed": 3}}),
    (TrainingError, "fine_tune has 'val', which is no argument", {"fine_tune": {"val": None}}),
    (TrainingError, "lr must be", {"fine_tune": {"lr": -1}}),
    (TrainingError, "epochs and epochs are both 0", {"fine_tune": {"epochs": 0, "head_epochs": 0}}),
    (TrainingError, "callbacks must be a list", {"fine_tune": {"callbacks": None}}),
    (TrainingError, "callbacks must be a list", {"fine_tune": {"callbacks": [3]}}),
    (TrainingError, "logger is an object", {"fine_tune": {"logger": object()}}),
    (TrainingError, "C= has no effect with fine_tune", {"C": 0.1}),
    (TrainingError, "C= has no effect with fine_tune", {"C": np.array([0.1, 1])}),
    (TrainingError, "method= has no effect with fine_tune", {"method": "knn"}),
    (TrainingError, "inner_folds= has no effect with fine_tune", {"inner_folds": 5}),
    (TrainingError, "output= has no effect without fine_tune", {"fine_tune": False, "output": "x"}),
    (TrainingError, "subgroups= has no effect without", {"fine_tune": False, "subgroups": "site"}),
    (TrainingError, "resume=True needs output=", {"resume": True}),
    (TrainingError, "resume must be", {"resume": "cv", "output": "x"}),
    (TrainingError, "val_fraction must be", {"val_fraction": 1}),
    (TrainingError, "calibrate must be", {"calibrate": "platt"}),
    (TrainingError, "balance must be", {"balance": "weights"}),
    (DatasetError, "no subgroup 'sit'", {"subgroups": "sit"}),
    (DatasetError, "folds", {"folds": 1}),
    (LeakageError, "fold 1 can't be trained: class 'a' has 1 patient", {"folds": 6, "few": 4}),
]


@pytest.mark.parametrize(("error", "message", "options"), UNSOUND)
def test_unsound_requests(
    data: ImageDataset, error: type[Exception], message: str, options: dict[str, Any]
) -> None:
    options = {"fine_tune": True, **FEW, **options}
    if options.pop("few", 0):
        data, options["folds"] = make_data(patients=4), 2
    with pytest.raises(error, match=message):
        medimg.cross_validate(model_of(), data, **options)


def test_what_a_model_was_trained_on_is_refused(data: ImageDataset) -> None:
    model = model_of()
    medimg.fine_tune(model, data[:8], progress=False, **SHORT)
    with pytest.raises(LeakageError, match="was trained on"):
        medimg.cross_validate(model, data, fine_tune=SHORT, **FEW)
    with pytest.raises(DatasetError, match="expected an ImageDataset"):
        medimg.cross_validate(model_of(), images(8, preprocess=SMALL), fine_tune=SHORT, **FEW)  # type: ignore[arg-type]  # a plain dict
