"""Training of several models with methods of adaptation, of which one is kept."""

from __future__ import annotations

import copy
import shutil
import warnings
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from medimg._validation import check_path
from medimg.adapt.auto import Auto
from medimg.adapt.target_scores import mutual_information
from medimg.core.logger import get_logger
from medimg.data.processes import Processes
from medimg.errors import MedimgWarning, TrainingError
from medimg.metrics.validation_scores import mean_auroc
from medimg.models.digest import model_digest
from medimg.models.training_images import record_training_images
from medimg.training import resume as resume_file

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from medimg.adapt.base import Adaptation
    from medimg.data.protocols import LabeledDataset
    from medimg.models.classifier import TransferClassifier
    from medimg.training.history import FitResult

__all__ = ["choose", "resolve_auto", "train_candidates"]

_BEST: Final = "best.safetensors"
#: Files of a candidate that are also those of the choice.
_FILES: Final = ("last.safetensors", "history.csv")
#: Patients of the target, or images, that a choice needs at least.
_FEWEST: Final = 10
_RESAMPLES: Final = 200
#: Attributes of a model that training changes.
_ATTRIBUTES: Final = (
    "training_summary",
    "training_ranges",
    "images_seen",
    "calibration",
    "weights_name",
    "weights_sha256",
)


def resolve_auto(adapt: object, target: Any) -> Auto | None:
    """Return the choice that ``adapt="auto"`` or an :class:`Auto` asks for; None for other values."""
    if isinstance(adapt, str) and adapt == "auto":
        if target is None:
            raise TrainingError(
                'adapt="auto" needs the images of the target domain: pass target=, a dataset, which may be '
                "without labels"
            )
        return Auto(target)
    if target is not None:
        raise TrainingError(
            'target= is used by adapt="auto" only; found adapt='
            f"{type(adapt).__name__}: give the target to the method, as in medimg.adapt.MMD(target)"
        )
    return adapt if isinstance(adapt, Auto) else None


@dataclass(frozen=True, slots=True)
class _Trained:
    """One candidate after training: its result, scores and weights."""

    name: str
    result: FitResult
    val_auroc: float | None
    information: float
    #: (n, K) probabilities of the images of the target.
    predicted: NDArray[np.float64]
    state: Mapping[str, Any]
    summary: dict[str, Any] | None


def choose(rows: Sequence[Mapping[str, Any]], margin: float) -> int:
    """
    Return the number of the candidate that is kept; the first one is that without adaptation.

    Examples
    --------
    >>> rows = [
    ...     {"val_auroc": 0.95, "information": 0.2},
    ...     {"val_auroc": 0.94, "information": 0.4},
    ...     {"val_auroc": 0.70, "information": 0.9},
    ... ]
    >>> choose(rows, margin=0.02)
    1
    """
    least = rows[0]["val_auroc"]
    kept = [n for n, row in enumerate(rows) if not n or least is None or row["val_auroc"] >= least - margin]
    return max(kept, key=lambda n: (rows[n]["information"], -n))


def train_candidates(
    fine_tune: Callable[..., FitResult],
    auto: Auto,
    model: TransferClassifier,
    data: tuple[LabeledDataset, LabeledDataset | None],
    arguments: Mapping[str, Any],
    *,
    check: Callable[[Sequence[Adaptation]], None],
    check_resume: Callable[[Mapping[str, Adaptation | None], Path], None],
) -> FitResult:
    """
    Train with each candidate, and give the model the weights of the choice.

    `check` raises TrainingError if methods have no effect with the other settings, `check_resume` if a resume
    file in the folder of a method belongs to another training.
    """
    train, val = data
    if val is None:
        raise TrainingError(
            'adapt="auto" needs validation data of the source: pass val=, or choose a method of medimg.adapt'
        )
    equal = np.full((len(val), len(val.classes)), 1.0 / len(val.classes))
    if mean_auroc(np.asarray(val.labels), equal, model.task) is None:
        raise TrainingError(
            'adapt="auto" compares methods by the AUROC on the validation data, which is undefined, because '
            "no class has both positive and negative examples: use another split, or choose a method of "
            "medimg.adapt"
        )
    _check_arguments(arguments)
    methods = auto.list_methods(model, train)
    for one in methods.values():
        if one is not None:
            one.check(model.classes, train)
            one.check_model(model)
            check([one])
    output = None if arguments["output"] is None else check_path("output", arguments["output"])
    processes = Processes.of(arguments)
    if output is not None and processes.is_main:
        _check_output(output, list(methods), arguments["resume"], overwrite=arguments["overwrite"])
    if output is not None and arguments["resume"]:
        check_resume(methods, output)
    start = _Start.capture(model, arguments["callbacks"])
    trained: list[_Trained] = []
    try:
        for name, method in methods.items():
            get_logger().info('adapt="auto": training %d of %d, %s', len(trained) + 1, len(methods), name)
            start.restore(model)
            result = fine_tune(
                model,
                train,
                **{**arguments, "adapt": method, "output": None if output is None else output / name},
            )
            # what the main process computes decides, for all of them
            scores = processes.share(_score(model, auto.target, val, arguments))
            state = copy.deepcopy(model.state_dict())
            trained.append(_Trained(name, result, *scores, state, model.training_summary))
    except BaseException:
        start.restore(model)
        raise
    rows = [{"name": t.name, "val_auroc": t.val_auroc, "information": t.information} for t in trained]
    chosen = _confirm(trained, choose(rows, auto.margin), auto.target, model.task)
    best = trained[chosen]
    get_logger().info('adapt="auto": %s is kept', best.name)
    model.load_state_dict(best.state)
    choice = {"chosen": best.name, "margin": auto.margin, "candidates": rows}
    model.training_summary = {**(best.summary or {}), "auto": choice}
    record_training_images(model, train=train, val=val, target=auto.target)
    for row in rows:
        row["chosen"] = row["name"] == best.name
    if output is not None and processes.is_main:
        _write_choice(model, output, best.name)
    checkpoint = processes.share(None if output is None else output / _BEST)
    seconds = sum(t.result.seconds for t in trained)
    return replace(
        best.result,
        seconds=seconds,
        checkpoint=checkpoint,
        candidates=tuple(rows),
        model_sha256=None if checkpoint is None else model_digest(model),
    )


def _check_arguments(arguments: Mapping[str, Any]) -> None:
    """Raise TrainingError if an argument can't be shared by several trainings."""
    for name, default in (("patience", None), ("monitor", "auto")):
        if arguments[name] != default:
            raise TrainingError(
                f'adapt="auto" chooses between methods by the validation data, and trains each for all '
                f"epochs; found {name}={arguments[name]!r}: leave it at {default!r}"
            )
    logger = arguments["logger"]
    several = logger if isinstance(logger, list | tuple) else [logger]
    if not all(one is None or isinstance(one, str) for one in several):
        raise TrainingError(
            'adapt="auto" trains several models, and an object as logger ends with the first; expected a '
            'name, such as "tensorboard"'
        )
    if not isinstance(arguments["resume"], bool | None):
        raise TrainingError(
            'adapt="auto" resumes the trainings in the folders of output=; found a path as resume: pass '
            "resume=True"
        )


def _check_output(output: Path, names: Sequence[str], resume: bool | None, *, overwrite: bool) -> None:
    """Raise TrainingError if a choice would replace the results of another training."""
    folders = [output / name for name in names]
    found, begun = resume_file.list_results(output), any(map(resume_file.list_results, folders))
    if resume and not overwrite and (resume_file.FILE in found or (found and not begun)):
        way = 'it is none with adapt="auto", and can\'t be continued as one; pass'
        raise resume_file.refuse_results(output, found, "training", way=way)
    # the choice is written again once its trainings have gone on
    for folder in folders if resume else (output, *folders):
        resume_file.check_output(folder, resume, overwrite=overwrite)


@dataclass(frozen=True, slots=True)
class _Start:
    """What every candidate starts from."""

    state: Mapping[str, Any]
    attributes: Mapping[str, Any]
    callbacks: tuple[tuple[Any, dict[str, Any]], ...]

    @classmethod
    def capture(cls, model: TransferClassifier, callbacks: Sequence[Any]) -> _Start:
        """Copy weights, records of earlier trainings and the state of callbacks."""
        return cls(
            copy.deepcopy(model.state_dict()),
            {name: getattr(model, name) for name in _ATTRIBUTES},
            tuple((one, copy.deepcopy(one.state_dict())) for one in callbacks),
        )

    def restore(self, model: TransferClassifier) -> None:
        """Give model and callbacks the state of the start."""
        model.load_state_dict(self.state)
        for name, value in self.attributes.items():
            setattr(model, name, value)
        for callback, values in self.callbacks:
            callback.load_state_dict(copy.deepcopy(values))


def _score(
    model: TransferClassifier, target: Any, val: LabeledDataset, arguments: Mapping[str, Any]
) -> tuple[float | None, float, NDArray[np.float64]]:
    """Return AUROC on the validation data, and mutual information and probabilities of the target."""
    options = {key: arguments[key] for key in ("batch_size", "workers", "progress")}
    predicted = model.predict_proba(target, **options)
    area = mean_auroc(val.labels, model.predict_proba(val, **options), model.task)
    return area, _measure_information(predicted, model.task), predicted


def _measure_information(probabilities: NDArray[np.float64], task: str) -> float:
    """Return the mutual information; of several labels, its mean."""
    if task != "multilabel":
        return mutual_information(probabilities)
    return float(np.mean([mutual_information(np.stack([p, 1 - p], axis=1)) for p in probabilities.T]))


def _confirm(trained: Sequence[_Trained], chosen: int, target: Any, task: str) -> int:
    """Return the choice; 0, with a warning, if the target is too small to tell it from no adaptation."""
    if not chosen:
        return 0
    best, plain = trained[chosen], trained[0]
    patients = list(getattr(target, "patients", None) or ())
    known = len(patients) == len(best.predicted) and all(patients)
    whose = np.unique(patients, return_inverse=True)[1] if known else np.arange(len(best.predicted))
    count, unit = int(whose.max()) + 1, "patients" if known else "images"
    low, high = _resample_gain(best.predicted, plain.predicted, whose, task)
    if count >= _FEWEST and low > 0:
        return chosen
    why = (
        f"the 95 % interval of the difference over the {count} {unit} of the target, {low:+.3f} to "
        f"{high:+.3f}, includes 0"
        if count >= _FEWEST
        else f"the target has {count} {unit}, fewer than {_FEWEST}"
    )
    warnings.warn(
        f'adapt="auto" keeps the training without adaptation: {best.name} has a higher mutual information '
        f"on the target ({best.information:.3f}, without adaptation {plain.information:.3f}), but {why}. "
        "Pass more images of the target, or choose a method of medimg.adapt by labels of some",
        MedimgWarning,
        stacklevel=6,
    )
    return 0


def _resample_gain(
    own: NDArray[np.float64], plain: NDArray[np.float64], whose: NDArray[np.int64], task: str
) -> tuple[float, float]:
    """Return the 95 % interval of the gain of mutual information, resampling patients (n,) together."""
    rng = np.random.default_rng(0)
    count = int(whose.max()) + 1
    several = [[p] if task != "multilabel" else [np.stack([q, 1 - q], 1) for q in p.T] for p in (own, plain)]
    gains = []
    for _ in range(_RESAMPLES):
        weights = np.bincount(rng.integers(0, count, count), minlength=count)[whose]
        rows = np.repeat(np.arange(len(whose)), weights)
        one, other = (np.mean([mutual_information(p[rows]) for p in parts]) for parts in several)
        gains.append(one - other)
    low, high = np.percentile(gains, (2.5, 97.5))
    return float(low), float(high)


def _write_choice(model: TransferClassifier, output: Path, name: str) -> None:
    """Write the files of the chosen model next to the folders of the candidates."""
    for file in _FILES:
        shutil.copyfile(output / name / file, output / file)
    model.save(output / _BEST)
