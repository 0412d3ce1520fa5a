"""Settings of fine-tuning, chosen by folds of patients within the training data."""

from __future__ import annotations

import copy
import logging
import math
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np

from medimg._public import set_module
from medimg._validation import (
    check_choice,
    check_number,
    check_path,
    check_whole_number,
    did_you_mean,
)
from medimg.core.content_hash import content_hash, describe_callable, json_text
from medimg.core.logger import get_logger
from medimg.core.progress import check_progress
from medimg.data.augmentation.random_scan import describe_augmentation
from medimg.data.processes import Processes
from medimg.data.splits.kfold import kfold
from medimg.errors import MissingDependencyError, TrainingError, also
from medimg.evaluation._fold_training import check_arguments
from medimg.evaluation.evaluate import list_training_overlap
from medimg.models.digest import model_digest
from medimg.plotting.html_repr import rows_html
from medimg.training import resume as resume_file
from medimg.training.fine_tune import FineTuneArguments, fine_tune
from medimg.training.optimization.custom import identify_parts

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import pandas as pd

    from medimg.core.progress import Progress
    from medimg.data.dataset import ImageDataset
    from medimg.models.classifier import TransferClassifier

__all__ = ["Range", "TuneResult", "tune"]

#: Values of a setting: a list to choose from, (low, high), (low, high, "log"), or a function of a trial.
Range: TypeAlias = "Sequence[Any] | Callable[[Any], Any]"

#: What is tried by default.
SPACE: Final[dict[str, Any]] = {
    "lr": (1e-4, 1e-2, "log"),
    "backbone_lr_scale": (0.01, 1.0, "log"),
    "layer_decay": (0.5, 1.0),
    "weight_decay": (1e-4, 0.1, "log"),
    "label_smoothing": (0.0, 0.2),
}
_STUDY: Final = "medimg"
_IDENTITY: Final = "medimg"
_DIGITS: Final = 32
#: What differs between two searches, as users call it.
_ARGUMENTS: Final = {
    "model": "the parameters of the model",
    "frozen": "the frozen parameters",
    "data": "the data",
    "fixed": "the settings in fine_tune=",
    "own": "the functions in fine_tune=",
    "augment": "the augmentation",
}
#: Trials that are drawn at random first, and never stopped early.
_RANDOM: Final = 5
_OBJECTS: Final = ("callbacks", "logger", "adapt")
#: Types of settings that storage keeps as they are.
_PLAIN: Final = (bool, int, float, str, type(None))
#: Optuna computes with whole numbers as floats.
_MOST_WHOLE: Final = 2**53


@set_module("medimg")
@dataclass(frozen=True, slots=True)
class TuneResult:
    """
    Result of :func:`medimg.tune`: a row per trial, and the best settings.

    Parameters
    ----------
    trials : tuple of dict
        One row per trial: ``trial`` (from 1), ``status`` ("complete", "stopped" early, "failed"), ``score``
        (mean over the folds; None if it failed), ``folds`` (score of each fold), ``seconds``, ``reason`` of a
        failure, and the settings that were tried by name.
    best : dict
        Arguments of :func:`medimg.fine_tune` of the trial with the highest score, with those that were fixed.
    best_score : float
        Its score. As the highest of many it is optimistic: evaluate on other patients.
    monitor : str
        Score that was maximized; the loss has a minus sign.
    """

    trials: tuple[dict[str, Any], ...] = field(repr=False)
    best: dict[str, Any]
    best_score: float
    monitor: str

    def to_pandas(self) -> pd.DataFrame:
        """Return the trials as a table, the best first."""
        import pandas as pd

        table = pd.DataFrame(list(self.trials))
        return table.sort_values("score", ascending=False, na_position="last", ignore_index=True)

    def _repr_html_(self) -> str:
        ended = [one for one in self.trials if one["status"] == "complete"]
        ended = sorted(ended, key=lambda one: -one["score"])[:10]
        hidden = ("status", "folds", "reason", "seconds")
        columns = [name for name in self.trials[0] if name not in hidden]
        rows = [[_show(one.get(name)) for name in columns] for one in ended]
        title = f"TuneResult: {self.monitor} {self.best_score:.3f}, {len(self.trials)} trials"
        return rows_html(title, columns, rows, emphasized=[0])


def _show(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


@set_module("medimg")
def tune(
    model: TransferClassifier,
    dataset: ImageDataset,
    *,
    space: Mapping[str, Range] | None = None,
    fine_tune: FineTuneArguments | Mapping[str, Any] | None = None,
    trials: int = 20,
    folds: int = 3,
    prune: bool = True,
    timeout: float | None = None,
    storage: str | os.PathLike[str] | None = None,
    cache: str | os.PathLike[str] | None = None,
    seed: int = 0,
    workers: int | None = None,
    progress: Progress = "auto",
) -> TuneResult:
    """
    Search the settings of :func:`medimg.fine_tune` with Optuna, by folds of patients within a dataset.

    In each trial copies of the model are fine-tuned, one for each fold, and scored on the patients of that
    fold in their best epoch; the trial's score is the mean. Settings are proposed by the Tree-structured
    Parzen Estimator. Pass training data only: test patients must take no part.

    Parameters
    ----------
    model : TransferClassifier
        Model that each training starts from; it stays as it is.
    dataset : ImageDataset
        Training data with patients.
    space : mapping, optional
        Values to try by the name of an argument of ``fine_tune``: a list of choices; ``(low, high)`` or
        ``(low, high, "log")`` for numbers, whole ones if both bounds are; or a function of an Optuna trial.
        By default `lr`, `backbone_lr_scale`, `layer_decay`, `weight_decay` and `label_smoothing`.
    fine_tune : mapping, optional
        Arguments of ``fine_tune`` that all trials share, such as ``{"epochs": 5, "monitor": "val_f1"}``.
    trials : int
        Number of trials in all, those in `storage` included.
    folds : int
        Number of folds.
    prune : bool
        Whether to stop a trial after a fold in which its mean is below the median of earlier trials.
    timeout : float, optional
        Seconds after which no further trial begins; one is always tried.
    storage : path-like, optional
        SQLite file of the trials, with which an interrupted search goes on; a trial that was interrupted
        begins again.
    cache : path-like, optional
        Folder for cached embeddings of a frozen backbone; see :func:`medimg.embed`.
    seed : int
        Seed for folds, proposals and trainings.
    workers : int, optional
        Number of processes that read the images; by default they are read in this process.
    progress : "auto" or bool
        True: also show the progress and the log lines of each training. By default there is one log line per
        trial.

    Returns
    -------
    TuneResult
        Table of the trials, and the best settings: ``medimg.fine_tune(model, train, val, **result.best)``.

    Raises
    ------
    TrainingError
        If an argument is invalid, `storage` belongs to another search, or all trials fail.
    LeakageError
        If there are no clean folds, or the model was trained on patients of the dataset.
    MissingDependencyError
        If Optuna is not installed.

    Examples
    --------
    >>> result = medimg.tune(model, train, trials=30, storage="tune.db")  # doctest: +SKIP
    >>> medimg.fine_tune(model, train, val, **result.best)  # doctest: +SKIP
    """
    search = _Search.make(
        model, dataset, space=space, fixed=fine_tune, folds=folds, prune=prune, seed=seed, cache=cache
    )
    search.loading.update(workers=workers, progress=check_progress(progress))
    count = check_whole_number("trials", trials, least=1)
    limit = None if timeout is None else check_number("timeout", timeout, above=0)
    path = None if storage is None else check_path("storage", storage)
    optuna = _import_optuna()
    with _quiet(optuna):
        study = search.open_study(optuna, path)
        search.run(optuna, study, trials=count, timeout=limit)
        return search.summarize(optuna, study)


def _import_optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise MissingDependencyError(
            "medimg.tune needs Optuna, which is not installed; install it with: pip install 'medimg[tune]'"
        ) from None
    return optuna


@contextmanager
def _quiet(optuna: Any) -> Iterator[None]:
    """Let medimg write the log lines, not Optuna."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


@contextmanager
def _warnings_only() -> Iterator[None]:
    """Leave out the log lines of each epoch, of which there would be hundreds."""
    logger = get_logger()
    before = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(before)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class _Search:
    """What is searched, on which folds; checked."""

    model: TransferClassifier
    data: list[tuple[ImageDataset, ImageDataset]]
    space: Mapping[str, Any]
    fixed: Mapping[str, Any]
    prunes: bool
    seed: int
    cache: Any
    identity: Mapping[str, str]
    loading: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def make(
        cls,
        model: TransferClassifier,
        dataset: ImageDataset,
        *,
        space: object,
        fixed: object,
        folds: object,
        prune: object,
        seed: int,
        cache: Any,
    ) -> _Search:
        """Check the arguments, and divide the dataset."""
        given = check_arguments({} if fixed is None else fixed, caller="tune")
        for name in _OBJECTS:
            if given.get(name):
                raise TrainingError(
                    f"fine_tune has {name!r}, whose objects hold a state, and each fold needs its own: tune "
                    "without it"
                )
        _check_processes(given)
        # a loss of the user's own smooths no labels
        taken = {*given, *(("label_smoothing",) if given.get("loss") else ())}
        tried = _check_space({n: r for n, r in SPACE.items() if n not in taken} if space is None else space)
        both = [name for name in tried if name in given]
        if both:
            raise TrainingError(f"{both[0]!r} is in space and in fine_tune: expected it in one of them")
        check_choice("prune", prune, (True, False))
        count = check_whole_number("folds", folds, least=2)
        data = kfold(dataset, count, seed=seed)
        list_training_overlap(model, dataset, "raise")
        facts = {
            "space": {name: _describe_range(value) for name, value in tried.items()},
            "fixed": {
                name: repr(v) for name, v in sorted(given.items()) if not callable(v) and name != "metrics"
            },
            "own": identify_parts(given),
            "augment": describe_augmentation(given.get("augment", "auto"), dataset.modalities),
            "model": model_digest(model),
            "frozen": [name for name, one in model.named_parameters() if not one.requires_grad],
            "data": resume_file.data_digest(dataset),
            "folds": count,
            "prune": prune,
            "seed": seed,
        }
        return cls(
            model=model,
            data=data,
            space=tried,
            fixed=given,
            prunes=bool(prune),
            seed=seed,
            cache=cache,
            identity={name: content_hash(json_text(value))[:_DIGITS] for name, value in facts.items()},
        )

    def open_study(self, optuna: Any, path: Any) -> Any:
        """Create the study, or open that of a file; TrainingError if it belongs to another search."""
        storage = None if path is None else _make_url(path)
        pruner = (
            optuna.pruners.MedianPruner(n_startup_trials=_RANDOM)
            if self.prunes
            else optuna.pruners.NopPruner()
        )
        try:
            study = optuna.create_study(
                storage=storage,
                study_name=_STUDY,
                direction="maximize",
                pruner=pruner,
                load_if_exists=True,
            )
            before = study.user_attrs.get(_IDENTITY)
        except Exception as error:  # of SQLAlchemy: no folder, no permission, another file
            raise TrainingError(
                f"storage={str(path)!r} can't be opened as an SQLite file of trials "
                f"({type(error).__name__}): pass the path of a new file, or of one that tune wrote"
            ) from error
        if before is None and not study.trials:
            study.set_user_attr(_IDENTITY, self.identity)
        elif before != self.identity:
            raise TrainingError(self._describe_difference(path, before))
        running = optuna.trial.TrialState.RUNNING
        for trial in study.get_trials(deepcopy=False, states=(running,)):
            # it was interrupted; the next one is drawn as it was
            study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        return study

    def _describe_difference(self, path: Any, before: object) -> str:
        """Say which of the arguments are not those of the search in a file."""
        parts = [n for n, v in self.identity.items() if isinstance(before, dict) and before.get(n) != v]
        named = [_ARGUMENTS.get(name, name) for name in parts] or ["the arguments"]
        hint = (
            "; a new head is random: call torch.manual_seed before you build the model, or load it"
            if parts == ["model"]
            else ""
        )
        return (
            f"{path} belongs to another search, of which {' and '.join(named)} differ: pass the same as "
            f"then, or another file{hint}"
        )

    def run(self, optuna: Any, study: Any, *, trials: int, timeout: float | None) -> None:
        """Try settings until there are as many trials as wanted, or time is over."""
        started, first = time.perf_counter(), len(_list_ended(study))
        while (done := len(_list_ended(study))) < trials:
            if timeout is not None and done > first and time.perf_counter() - started > timeout:
                get_logger().info("tune: %d of %d trials before the timeout", done, trials)
                return
            # of the same draws after an interruption
            study.sampler = optuna.samplers.TPESampler(
                n_startup_trials=_RANDOM, seed=(self.seed + done) % 2**32
            )
            self._try(optuna, study, study.ask(), f"trial {done + 1}/{trials}")

    def _try(self, optuna: Any, study: Any, trial: Any, title: str) -> None:
        """Train and score one trial fold by fold."""
        settings = {name: _draw(trial, name, values) for name, values in self.space.items()}
        trial.set_user_attr("settings", _as_json(settings))
        trial.set_user_attr("objects", [n for n, v in settings.items() if not isinstance(v, _PLAIN)])
        started, scores = time.perf_counter(), []
        states = optuna.trial.TrialState
        state, reason = states.COMPLETE, ""
        for number, (train, test) in enumerate(self.data):
            try:
                scores.append(self._train(trial, train, test, settings))
            except TrainingError as error:
                # a high learning rate, for example, lets the loss diverge
                state, reason = states.FAIL, str(error)
                break
            trial.report(float(np.mean(scores)), number)
            if number + 1 < len(self.data) and trial.should_prune():
                state = states.PRUNED
                break
        trial.set_user_attr("folds", scores)
        trial.set_user_attr("seconds", round(time.perf_counter() - started, 3))
        trial.set_user_attr("reason", reason)
        mean = float(np.mean(scores)) if scores else None
        study.tell(trial, mean if state == states.COMPLETE else None, state=state)
        shown = ", ".join(f"{name}={_show(value)}" for name, value in settings.items())
        ended = reason or f"{trial.study.user_attrs['monitor']} {mean:.4f}"
        word = {states.PRUNED: " (stopped early)", states.FAIL: " failed"}.get(state, "")
        get_logger().info("%s%s: %s; %s", title, word, ended, shown)

    def _train(
        self, trial: Any, train: ImageDataset, test: ImageDataset, settings: Mapping[str, Any]
    ) -> float:
        """Return the score of the best epoch, higher is better."""
        _check_processes({**self.fixed, **settings})
        own = copy.deepcopy(self.model)
        shown = self.loading["progress"] is True
        with nullcontext() if shown else _warnings_only():
            fit = fine_tune(
                own,
                train,
                test,
                **{**self.loading, "progress": shown, **self.fixed, **settings},
                seed=self.seed,
                cache=self.cache,
            )
        monitor = fit.monitor or "val_loss"
        before = trial.study.user_attrs.get("monitor")
        if before is None:
            trial.study.set_user_attr("monitor", monitor)
        elif before != monitor:
            raise TrainingError(
                f"folds were scored by {before} and by {monitor}: pass "
                'fine_tune={"monitor": "val_loss"}, or use fewer folds'
            )
        value = float(fit.best[monitor])
        return -value if monitor == "val_loss" else value

    def summarize(self, optuna: Any, study: Any) -> TuneResult:
        """Return the table and the best settings; TrainingError if no trial has a score."""
        states = optuna.trial.TrialState
        words = {states.COMPLETE: "complete", states.PRUNED: "stopped", states.FAIL: "failed"}
        rows: list[dict[str, Any]] = []
        for number, one in enumerate(_list_ended(study), 1):
            folds = list(one.user_attrs.get("folds", ()))
            rows.append(
                {
                    "trial": number,
                    "status": words[one.state],
                    "score": float(np.mean(folds)) if folds and one.state != states.FAIL else None,
                    "folds": folds,
                    "seconds": one.user_attrs.get("seconds"),
                    "reason": one.user_attrs.get("reason", ""),
                    **one.user_attrs.get("settings", {}),
                }
            )
        complete = [row for row in rows if row["status"] == "complete"]
        if not complete:
            reasons = "; ".join(dict.fromkeys(row["reason"] for row in rows if row["reason"]))
            raise TrainingError(
                f"no trial of {len(rows)} has a score: {reasons or 'none ended; raise timeout'}"
            )
        best = max(complete, key=lambda row: row["score"])
        settings = self._restore(optuna, study, best["trial"])
        return TuneResult(tuple(rows), {**self.fixed, **settings}, best["score"], study.user_attrs["monitor"])

    def _restore(self, optuna: Any, study: Any, number: int) -> dict[str, Any]:
        """Return the settings of a trial, with objects as they were given, or as functions return them."""
        frozen = _list_ended(study)[number - 1]
        found = dict(frozen.user_attrs["settings"])
        for name, values in self.space.items():
            if isinstance(values, list):
                found[name] = values[frozen.params[name]]
            elif name in frozen.user_attrs.get("objects", ()):
                found[name] = _draw(optuna.trial.FixedTrial(frozen.params, frozen.number), name, values)
        return found


def _check_processes(arguments: Mapping[str, Any]) -> None:
    """Refuse several processes, each of which would have a search of its own, with one file."""
    if (count := Processes.of(arguments).count) > 1:
        raise TrainingError(
            f"fine_tune would train in {count} processes, and tune decides in one which settings are tried: "
            "pass devices=1, or leave it out"
        )


def _make_url(path: Path) -> str:
    """Return the URL of an SQLite file for Optuna."""
    import sqlalchemy

    # a URI, in which characters such as "?" are escaped, whether SQLAlchemy does so or not
    query = {"uri": "true"}
    url = sqlalchemy.URL.create("sqlite", database=path.absolute().as_uri(), query=query)
    return str(url.render_as_string())


def _list_ended(study: Any) -> list[Any]:
    """Return the trials that ended by themselves, in order; an interrupted one has no settings to show."""
    return [
        one
        for one in study.get_trials(deepcopy=False)
        if one.state.is_finished() and "seconds" in one.user_attrs
    ]


def _check_space(space: object) -> dict[str, Any]:
    """Return the space with checked values; TrainingError if one is none."""
    if not isinstance(space, Mapping) or not space:
        raise also(TrainingError, TypeError)(
            'space must be a mapping of values to try, such as {"lr": (1e-4, 1e-2, "log")}; found '
            f"{'an empty one' if isinstance(space, Mapping) else 'a ' + type(space).__name__}"
        )
    known = [name for name in FineTuneArguments.__annotations__ if name not in _OBJECTS]
    for name, values in space.items():
        if name not in known:
            raise TrainingError(
                f"space has {name!r}, which is no argument of medimg.fine_tune to tune"
                f"{did_you_mean(str(name), known)}"
            )
        _check_range(name, values)
    return dict(space)


def _check_range(name: str, values: Any) -> None:
    if callable(values) or (isinstance(values, list) and values):
        return
    problem = f"found {values!r}" if not isinstance(values, list) else "found an empty list"
    is_range = (
        isinstance(values, tuple)
        and len(values) in (2, 3)
        and all(isinstance(v, int | float) and not isinstance(v, bool) for v in values[:2])
        and (len(values) == 2 or values[2] == "log")
    )
    if is_range:
        low, high = values[:2]
        whole = isinstance(low, int) and isinstance(high, int)
        if low < high and (len(values) == 2 or low > 0):
            # a larger width overflows
            if _find_width(low, high) <= (_MOST_WHOLE if whole else sys.float_info.max):
                return
            problem = "found bounds that are infinite, or too far apart"
        else:
            rise = " from above 0" if len(values) == 3 else ""
            problem = f"found {values!r}, whose bounds must rise{rise}"
    raise TrainingError(
        f'space has {name!r}: expected a list of choices, (low, high), (low, high, "log") or a function of a '
        f"trial; {problem}"
    )


def _find_width(low: float, high: float) -> float:
    try:
        return float(high) - float(low)
    except OverflowError:
        return math.inf


def _draw(trial: Any, name: str, values: Any) -> Any:
    """Return the value of a setting that Optuna proposes."""
    if callable(values):
        try:
            return values(trial)
        except Exception as error:  # whatever the user's own code raises
            raise TrainingError(
                f"the function of {name!r} in space fails on a trial: {type(error).__name__}: {error}"
            ) from error
    if isinstance(values, list):
        # by number, so that any object can be a choice
        return values[trial.suggest_categorical(name, list(range(len(values))))]
    low, high, log = values[0], values[1], len(values) == 3
    if isinstance(low, int) and isinstance(high, int):
        return trial.suggest_int(name, low, high, log=log)
    return trial.suggest_float(name, float(low), float(high), log=log)


def _describe_range(values: Any) -> str:
    if callable(values):
        return describe_callable(values)
    if isinstance(values, list):
        return repr([describe_callable(v) if callable(v) else repr(v) for v in values])
    return repr(values)


def _as_json(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings as JSON values; an object is its type."""
    return {name: v if isinstance(v, _PLAIN) else type(v).__name__ for name, v in settings.items()}
