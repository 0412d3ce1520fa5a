"""Fine-tuning of a model for each fold, which predicts the patients that it was not trained on."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

import numpy as np
import torch

from medimg._validation import (
    check_choice,
    check_fields,
    check_number,
    check_path,
    check_text,
    check_texts,
    check_whole_number,
    did_you_mean,
    printable,
)
from medimg.core.content_hash import content_hash, json_text
from medimg.core.logger import get_logger
from medimg.data.augmentation.random_scan import describe_augmentation
from medimg.data.processes import Processes, is_main_process
from medimg.data.splits.kfold import split_by_fold
from medimg.data.splits.split import split
from medimg.errors import CheckpointError, LeakageError, TrainingError, also
from medimg.evaluation.evaluate import list_training_overlap
from medimg.metrics.validation_scores import mean_auroc
from medimg.models.checkpoint import read_digest
from medimg.models.digest import model_digest
from medimg.models.ensemble import load
from medimg.models.safetensors_file import read_header, read_tensors, write
from medimg.training import resume as resume_file
from medimg.training.adaptation.choose_adaptation import resolve_auto
from medimg.training.calibrate import calibrate
from medimg.training.class_weights import check_labels
from medimg.training.fine_tune import FineTuneArguments, fine_tune
from medimg.training.history import COLUMNS, FitResult, order_row
from medimg.training.optimization.custom import identify_parts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import nn

    from medimg.data.dataset import ImageDataset
    from medimg.models.classifier import TransferClassifier

__all__ = ["FoldTraining", "TrainedFold", "check_arguments", "load_fold_model"]

#: Name of the result of a fold in its folder.
FILE: Final = "result.safetensors"

_KEY: Final = "medimg-fold"
_SCHEMA: Final = 2
#: Version 1 had neither the fold nor the SHA-256 of its model.
_FIELDS: Final = (
    "identity",
    "fold",
    "held_out",
    "model_sha256",
    "history",
    "best_epoch",
    "monitor",
    "seconds",
    "candidates",
    "notes",
)
_TOLERANCE: Final = 1e-6
_DIGITS: Final = 32
_OWN: Final = ("output", "resume", "overwrite", "seed", "cache", "workers", "progress")


def check_arguments(given: object, *, caller: str = "cross_validate") -> dict[str, Any]:
    """Return the arguments of fine_tune that every fold gets; TrainingError if one is not for all folds."""
    if given is True:
        return {}
    if not isinstance(given, Mapping):
        raise also(TrainingError, TypeError)(
            "fine_tune must be True, False, or the arguments of medimg.fine_tune by name, such as "
            f'{{"epochs": 5}}; found a {type(given).__name__}'
        )
    known = FineTuneArguments.__annotations__
    for name in given:
        if name in _OWN:
            raise TrainingError(
                f"fine_tune has {name!r}, which {caller} gives each training: leave it out, or pass what "
                f"{caller} itself takes"
            )
        if name not in known:
            raise also(TrainingError, TypeError)(
                f"fine_tune has {name!r}, which is no argument of medimg.fine_tune for all folds"
                f"{did_you_mean(name, known)}"
            )
    callbacks = given.get("callbacks", ())
    if not isinstance(callbacks, list | tuple) or not all(hasattr(one, "state_dict") for one in callbacks):
        raise also(TrainingError, TypeError)(
            "callbacks must be a list of callbacks of Lightning, such as [Timer()]; found "
            + (
                f"a {type(callbacks).__name__}"
                if not isinstance(callbacks, list | tuple)
                else "other objects"
            )
        )
    logger = given.get("logger")
    several = logger if isinstance(logger, list | tuple) else [logger]
    if not all(one is None or isinstance(one, str) for one in several):
        raise TrainingError(
            "logger is an object, which would end with the first fold; expected a name, such as "
            '"tensorboard", of which each fold gets one of its own'
        )
    return dict(given)


class _FoldData(NamedTuple):
    """Subsets of one fold; no patient is in two of them."""

    train: ImageDataset
    val: ImageDataset | None
    test: ImageDataset
    #: Indices of the items of `test` in the whole dataset.
    held_out: NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class TrainedFold:
    """Probabilities (m, K) of the held-out items, their indices (m,), and how they came about."""

    held_out: NDArray[np.int64]
    probabilities: NDArray[np.float64]
    fit: FitResult
    notes: tuple[str, ...]
    model: TransferClassifier | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class FoldTraining:
    """Trains one model for each fold; the arguments are those of :func:`medimg.cross_validate`."""

    arguments: Mapping[str, Any]
    val_fraction: float
    calibrates: bool
    output: Path | None
    resumes: bool
    overwrites: bool
    keeps_models: bool
    #: Arguments of fine_tune, calibrate and predict_proba.
    loading: Mapping[str, Any]
    cache: Any
    seed: int

    @classmethod
    def make(
        cls,
        arguments: object,
        *,
        balance: object,
        val_fraction: object,
        calibrate: object,
        output: object,
        resume: object,
        overwrite: object,
        keep_models: object,
        **rest: Any,
    ) -> FoldTraining:
        """Check the arguments; TrainingError if one is invalid."""
        flags = {"calibrate": calibrate, "resume": resume, "overwrite": overwrite, "keep_models": keep_models}
        for name, value in flags.items():
            check_choice(name, value, (True, False))
        folder = None if output is None else check_path("output", output)
        if resume and folder is None:
            raise TrainingError("resume=True needs output=, the folder of the interrupted cross-validation")
        # a process that the main one starts finds the results of this run
        if folder is not None and is_main_process():
            _check_output(folder, resumes=bool(resume), overwrites=bool(overwrite))
        return cls(
            arguments={"balance": balance, **check_arguments(arguments)},
            val_fraction=check_number("val_fraction", val_fraction, least=0, below=1),
            calibrates=bool(calibrate),
            output=folder,
            resumes=bool(resume),
            overwrites=bool(overwrite),
            keeps_models=bool(keep_models),
            **rest,
        )

    def run(
        self, model: TransferClassifier, dataset: ImageDataset, fold: NDArray[np.int64]
    ) -> list[TrainedFold]:
        """Train and predict fold by fold; a finished one is read from its file if the training is resumed."""
        folds = self._divide(dataset, fold)
        list_training_overlap(model, dataset, "raise")
        identity = {} if self.output is None else self._identify(model, dataset, folds)
        folders = [
            None if self.output is None else self.output / f"fold_{n}" for n in range(1, len(folds) + 1)
        ]
        restored = [self._restore(*one, identity) for one in zip(folders, folds, strict=True)]
        self._check_others(folders)
        callbacks = [(one, copy.deepcopy(one.state_dict())) for one in self.arguments.get("callbacks", ())]
        trained = []
        for number, (data, folder, before) in enumerate(zip(folds, folders, restored, strict=True), 1):
            for callback, state in callbacks:
                callback.load_state_dict(copy.deepcopy(state))
            title = f"fold {number}/{len(folds)}"
            trained.append(before or self._train(title, model, data, folder, identity, first=number == 1))
        return trained

    def describe(self) -> dict[str, Any]:
        """Return the settings as JSON values; what is no value is described by its type."""
        return {
            "val_fraction": self.val_fraction,
            "calibrate": self.calibrates and bool(self.val_fraction),
            "seed": self.seed,
            **{name: _to_json(value) for name, value in sorted(self.arguments.items())},
        }

    def _divide(self, dataset: ImageDataset, fold: NDArray[np.int64]) -> list[_FoldData]:
        """Return the subsets of all folds, before anything is trained."""
        divided = []
        for number, (inside, held_out) in enumerate(split_by_fold(fold), 1):
            rest, val = dataset.subset(inside), None
            try:
                if self.val_fraction:
                    shares = (1 - self.val_fraction, self.val_fraction)
                    # identifiers were compared for the whole dataset
                    rest, val = split(rest, fractions=shares, seed=self.seed, check=None)
                check_labels(rest.labels, rest.classes, rest.task)
            except (LeakageError, TrainingError) as error:
                raise type(error)(
                    f"fold {number} can't be trained: {error}; or use fewer folds, or val_fraction=0 for a "
                    "training without validation"
                ) from None
            divided.append(_FoldData(rest, val, dataset.subset(held_out), held_out))
        return divided

    def _train(
        self,
        title: str,
        model: TransferClassifier,
        data: _FoldData,
        folder: Path | None,
        identity: Mapping[str, Any],
        *,
        first: bool,
    ) -> TrainedFold:
        started = time.perf_counter()
        parts = {"training": data.train, "validation": data.val, "held out": data.test}
        sizes = [
            f"{len(d):,} ({len(set(d.patients)):,} patients) {n}" for n, d in parts.items() if d is not None
        ]
        get_logger().info("%s: %s", title, ", ".join(sizes))
        own, processes = copy.deepcopy(model), Processes.of(self.arguments)
        fit = fine_tune(
            own,
            data.train,
            data.val,
            **{**self.loading, **self.arguments, **(self._replace_results() if first else {})},
            cache=self.cache,
            seed=self.seed,
            output=folder,
            resume=self.resumes,
            overwrite=self.overwrites,
        )
        if self.calibrates and data.val is not None:
            calibrate(own, data.val, coverage=None, **self.loading)
            if fit.checkpoint is not None and processes.is_main:
                own.save(fit.checkpoint)
        notes = list_training_overlap(own, data.test, "raise")
        probabilities = processes.share(own.predict_proba(data.test, **self.loading))
        found = TrainedFold(
            held_out=data.held_out,
            probabilities=probabilities,
            fit=fit if fit.checkpoint is None else replace(fit, model_sha256=model_digest(own)),
            notes=notes,
            model=own if self.keeps_models else None,
        )
        if folder is not None and processes.is_main:
            _save(found, folder, identity)
        processes.share(None)  # its files are written
        area = mean_auroc(np.asarray(data.test.labels), probabilities, data.test.task)
        score = "AUROC undefined" if area is None else f"AUROC {area:.3f}"
        get_logger().info(
            "%s ended: %s of its held-out items, %.0f s", title, score, time.perf_counter() - started
        )
        return found

    def _restore(
        self, folder: Path | None, data: _FoldData, identity: Mapping[str, Any]
    ) -> TrainedFold | None:
        """Return the result of a fold that ended before; None if it did not, or starts again."""
        if folder is None or not self.resumes or not (folder / FILE).is_file():
            return None
        found = _load(folder, identity, data)
        get_logger().info("%s ended before; its result is used", folder.name.replace("_", " "))
        if not self.keeps_models:
            return found
        return replace(found, model=load_fold_model(found.fit))

    def _check_others(self, folders: Sequence[Path | None]) -> None:
        """Raise TrainingError if a cross-validation that goes on had more folds."""
        if self.output is None or not self.resumes:
            return
        for one in sorted(self.output.glob("fold_*")):
            if one not in folders and ((one / FILE).is_file() or resume_file.list_results(one)):
                raise TrainingError(
                    f"{one} belongs to another cross-validation, which differs in folds: pass the same "
                    "arguments as then, or overwrite=True instead of resume to start again"
                )

    def _replace_results(self) -> dict[str, Any]:
        """Return callbacks of which one removes the results of an earlier run once fold 1 trains."""
        if self.output is None or not self.overwrites:
            return {}
        # Lightning takes seconds to import
        from pytorch_lightning.callbacks import LambdaCallback

        output = self.output

        def remove(*_: object) -> None:
            for folder in output.glob("fold_*") if is_main_process() else ():
                _remove_results(folder, all_files=folder.name != "fold_1")

        return {"callbacks": [*self.arguments.get("callbacks", ()), LambdaCallback(on_fit_start=remove)]}

    def _identify(
        self, model: TransferClassifier, dataset: ImageDataset, folds: Sequence[_FoldData]
    ) -> dict[str, Any]:
        """Return what the results depend on, as JSON values by name."""
        settings = self.describe()
        adapt = self.arguments.get("adapt")
        settings.pop("target", None)
        adapt = resolve_auto(adapt, self.arguments.get("target")) or adapt
        several: Any = adapt if isinstance(adapt, list | tuple) else [] if adapt is None else [adapt]
        settings["adapt"] = [[one.settings(), resume_file.data_digest(one.target)] for one in several]
        modalities = dataset.modalities
        settings |= identify_parts(self.arguments)
        settings["augment"] = describe_augmentation(self.arguments.get("augment", "auto"), modalities)
        members = [
            sorted(map(str, set(part.series_uids))) for one in folds for part in one[:3] if part is not None
        ]
        return {
            **settings,
            "model": model_digest(model)[:_DIGITS],
            "frozen": [name for name, one in model.named_parameters() if not one.requires_grad],
            "data": resume_file.data_digest(dataset),
            "folds": content_hash(json_text([[one.held_out.tolist() for one in folds], members]))[:_DIGITS],
            "batch_size": self.arguments.get("batch_size", self.loading["batch_size"]),
        }


def _check_output(folder: Path, *, resumes: bool, overwrites: bool) -> None:
    """Raise TrainingError if folds would replace results of an earlier cross-validation."""
    name = "cross-validation"
    resume_file.check_output(folder, resumes, overwrite=overwrites, name=name)
    for one in () if overwrites else sorted(folder.glob("fold_*")):
        ended = (one / FILE).is_file()
        if ended and not resumes:
            found = [FILE, *resume_file.list_results(one)]
            raise resume_file.refuse_results(one, found, name)
        if not ended:
            resume_file.check_output(one, resumes, overwrite=False, name=name)


def _remove_results(folder: Path, *, all_files: bool) -> None:
    """Remove the result of a fold, or also its models, history and state, and the folders that are left."""
    names = (FILE, *resume_file.RESULTS, resume_file.FILE) if all_files else (FILE,)
    for path in list(folder.rglob("*")):
        if path.name in names:
            path.unlink(missing_ok=True)
    for one in sorted([folder, *folder.rglob("*")], reverse=True) if all_files else ():
        if one.is_dir() and not any(one.iterdir()):
            one.rmdir()


def _to_json(value: Any) -> Any:
    """Return a setting as JSON values; what is none is described by its type."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(name): _to_json(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_to_json(one) for one in value]
    return type(value).__name__


def _save(found: TrainedFold, folder: Path, identity: Mapping[str, Any]) -> None:
    """Write the result of a fold; what resuming its training needs is then of no use."""
    header = {
        "schema": _SCHEMA,
        "identity": dict(identity),
        "fold": folder.name,
        "held_out": _digest_items(found.held_out),
        "model_sha256": found.fit.model_sha256,
        "history": list(found.fit.history),
        "best_epoch": found.fit.best_epoch,
        "monitor": found.fit.monitor,
        "seconds": found.fit.seconds,
        "candidates": list(found.fit.candidates),
        "notes": list(found.notes),
    }
    write(folder / FILE, _KEY, header, {"probabilities": torch.from_numpy(found.probabilities)})
    (folder / resume_file.FILE).unlink(missing_ok=True)


def _digest_items(held_out: NDArray[np.int64]) -> str:
    """Return a hash of the indices (m,) of items; what the items are is part of the identity."""
    return content_hash(json_text(held_out.tolist()))[:_DIGITS]


def _load(folder: Path, identity: Mapping[str, Any], data: _FoldData) -> TrainedFold:
    """Read the result of a fold; TrainingError if it is that of another cross-validation or fold."""
    path = folder / FILE
    header = read_header(path, _KEY, "the result of a fold that cross_validate(output=...) wrote")
    again = f"delete the folder {folder.name}, so that this fold is trained again"
    if header.get("schema") != _SCHEMA:
        raise CheckpointError(
            f"{path} was written by another version of medimg (schema {printable(header.get('schema'))}, "
            f"expected {_SCHEMA}), and does not state its fold and model: {again}"
        )
    try:
        check_fields("the header", header, _FIELDS, others=True, error=CheckpointError)
        before = check_fields("identity", header["identity"], (), others=True, error=CheckpointError)
        differing = [name for name in identity if _to_json(identity[name]) != before.get(name)]
        if differing:
            raise TrainingError(
                f"{path} belongs to another cross-validation, which differs in {', '.join(differing)}: pass "
                "the same arguments as then, or overwrite=True instead of resume to start again"
            )
        if (header["fold"], header["held_out"]) != (folder.name, _digest_items(data.held_out)):
            raise TrainingError(
                f"{path} is the result of another fold, {printable(header['fold'])}, with other held-out "
                f"items: {again}"
            )
        fit = _parse_fit(header, folder / "best.safetensors")
        notes = header["notes"]
        found = TrainedFold(
            held_out=data.held_out,
            probabilities=_check_probabilities(read_tensors(path, header), data.test),
            fit=fit,
            notes=check_texts("notes", notes, error=CheckpointError) if notes != [] else (),
        )
    except CheckpointError as error:
        raise CheckpointError(f"{path} has no sound result of a fold: {error}; {again}") from error
    # one that is gone is missed when it is needed
    if fit.checkpoint is not None and fit.checkpoint.exists():
        _check_model(fit, read_digest(fit.checkpoint))
    return found


def _parse_fit(header: Mapping[str, Any], checkpoint: Path) -> FitResult:
    """Return the training that a header describes; CheckpointError if a field is not what was written."""
    rows, monitor = _list_objects(header, "history", COLUMNS), header["monitor"]
    epochs = [check_whole_number("epoch", row["epoch"], least=1, error=CheckpointError) for row in rows]
    best, sha256 = (
        header["best_epoch"],
        check_text("model_sha256", header["model_sha256"], error=CheckpointError),
    )
    if type(best) is not int or best not in epochs:
        raise CheckpointError(f"best_epoch must be one of its {len(epochs)} epochs; found {printable(best)}")
    if not isinstance(monitor, str | None):
        raise CheckpointError(f"monitor must be text or null; found a {type(monitor).__name__}")
    for row in rows:
        for name, value in row.items():
            kind = str if name in ("phase", "monitor") else int | float
            if value is not None and (isinstance(value, bool) or not isinstance(value, kind)):
                raise CheckpointError(
                    f"{printable(name)} of an epoch must be a number, or text; found a {type(value).__name__}"
                )
    return FitResult(
        history=tuple(order_row(row) for row in rows),
        best_epoch=best,
        monitor=monitor,
        seconds=check_number("seconds", header["seconds"], least=0, error=CheckpointError),
        checkpoint=checkpoint,
        candidates=_list_objects(header, "candidates", ("name", "val_auroc", "information", "chosen")),
        model_sha256=sha256,
    )


def _list_objects(header: Mapping[str, Any], name: str, fields: Sequence[str]) -> tuple[dict[str, Any], ...]:
    """Return objects of a header, each of which has the fields in this order."""
    several = header[name]
    if not isinstance(several, list):
        raise CheckpointError(f"{name} must be a list; found a {type(several).__name__}")
    checked = [check_fields(name, one, fields, others=True, error=CheckpointError) for one in several]
    return tuple({**{key: one[key] for key in fields}, **one} for one in checked)


def _check_probabilities(tensors: Mapping[str, torch.Tensor], test: ImageDataset) -> NDArray[np.float64]:
    """Return probabilities (m, K) of the held-out items; CheckpointError if they can't be theirs."""
    found, wanted = tensors.get("probabilities"), (len(test), len(test.classes))
    if found is None or tuple(found.shape) != wanted or not found.is_floating_point():
        what = "none" if found is None else f"{tuple(found.shape)} {found.dtype}"
        raise CheckpointError(f"expected probabilities {wanted} of the held-out items; found {what}")
    values = found.double().numpy()
    sums = values.sum(axis=1) if test.task == "multiclass" else 1.0
    # not a number is outside, too
    if not np.all((values >= 0) & (values <= 1 + _TOLERANCE)) or np.any(np.abs(sums - 1) > _TOLERANCE):
        raise CheckpointError("expected probabilities between 0 and 1, of several classes with a sum of 1")
    return values


def load_fold_model(fit: FitResult, *, backbone: nn.Module | None = None) -> TransferClassifier:
    """Read the model of a fold; CheckpointError if its file is gone, or has another model by now."""
    model = load(cast("Path", fit.checkpoint), backbone=copy.deepcopy(backbone))
    _check_model(fit, model_digest(model))
    return model


def _check_model(fit: FitResult, found: str | None) -> None:
    if fit.model_sha256 not in (None, found):
        raise CheckpointError(
            f"{fit.checkpoint} has another model than this cross-validation trained for the fold (its "
            "SHA-256 differs): the file was replaced, such as by a later run with overwrite=True; use the "
            "result of that run, or train the fold again in another folder. keep_models=True keeps models "
            "in memory"
        )
