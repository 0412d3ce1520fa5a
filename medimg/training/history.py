"""History of a training: rows, best epoch, the files of both, and learning curves."""

from __future__ import annotations

import math
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from medimg._plot_style import COLORS, REFERENCE_LINE, add_legend, make_axes
from medimg._public import set_module
from medimg.core.content_hash import json_text
from medimg.errors import CheckpointError, TrainingError
from medimg.io.files.output import write_text
from medimg.models.checkpoint import read_digest
from medimg.models.digest import model_digest
from medimg.models.low_rank import merged_copy
from medimg.plotting.html_repr import rows_html
from medimg.training.epoch_display import format_value, list_columns
from medimg.training.optimization.early_stopping import EarlyStopping

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pytorch_lightning.loggers import Logger
    from torch import Tensor

    from medimg.models.classifier import TransferClassifier


__all__ = ["COLUMNS", "FitResult", "HistoryRecorder", "order_row", "plot_learning_curves"]

#: Columns of the history, in this order.
COLUMNS: Final = (
    "epoch",
    "phase",
    "train_loss",
    "adapt_loss",
    "val_loss",
    "val_accuracy",
    "val_balanced_accuracy",
    "val_f1",
    "val_auroc",
    "monitor",
    "lr",
    "seconds",
)

_MOST_ROWS: Final = 20
_SCALARS: Final = (bool, int, float, str)
_WORST: Final = (-math.inf, -math.inf)


@set_module("medimg")
@dataclass(frozen=True, slots=True)
class FitResult:
    """
    Result of :func:`medimg.fine_tune`: history, best epoch, checkpoint.

    Parameters
    ----------
    history : tuple of dict
        One row per epoch: ``epoch`` (from 1, through all phases), ``phase`` ("head", "gradual" or "full"),
        ``train_loss`` (of classification), ``adapt_loss`` (added by domain adaptation), ``val_loss``,
        ``val_accuracy``, ``val_balanced_accuracy``, ``val_f1``, ``val_auroc`` (None if undefined),
        ``monitor`` (the score that selected the best epoch), ``lr`` (of the head, in the epoch's last step)
        and ``seconds``; metrics of your own are ``val_<name>``.
    best_epoch : int
        Epoch whose weights the model has.
    monitor : str or None
        Score that selected it; None without validation data, when the last epoch counts as the best.
    seconds : float
        Duration of the training.
    checkpoint : Path or None
        File of the best epoch, if there is an output folder.
    model_sha256 : str or None
        SHA-256 of the model in that file, by which a model that replaced it later is noticed.
    candidates : tuple of dict
        With ``adapt="auto"`` one row per method: ``name``, ``val_auroc`` on the source (None if undefined),
        ``information`` (:func:`medimg.adapt.mutual_information` on the target) and ``chosen``.
    """

    history: tuple[dict[str, Any], ...] = field(repr=False)
    best_epoch: int
    monitor: str | None
    seconds: float
    checkpoint: Path | None = None
    candidates: tuple[dict[str, Any], ...] = field(default=(), repr=False)
    model_sha256: str | None = field(default=None, repr=False)

    @property
    def best(self) -> dict[str, Any]:
        """Row of the best epoch."""
        return next(row for row in self.history if row["epoch"] == self.best_epoch)

    def to_pandas(self) -> pd.DataFrame:
        """Return the history as a table with one row per epoch."""
        import pandas as pd

        columns = list(self.history[0]) if self.history else list(COLUMNS)
        numbers = dict.fromkeys((n for n in columns if n not in ("epoch", "phase", "monitor")), "float64")
        return pd.DataFrame(list(self.history), columns=columns).astype(numbers)

    def _repr_html_(self) -> str:
        columns = list_columns(self.history)
        # the last ones, and the best one
        shown = [
            row
            for row in self.history
            if row["epoch"] > len(self.history) - _MOST_ROWS or row["epoch"] == self.best_epoch
        ]
        rows = [[format_value(name, row[name]) for name in columns] for row in shown]
        by = f" by {self.monitor}" if self.monitor else ""
        title = f"FitResult: best epoch {self.best_epoch}{by}, {self.seconds:.0f} s"
        hidden = len(self.history) - len(shown)
        notes = [f"and {hidden} more epochs; to_pandas() has all of them"] if hidden else []
        best = [number for number, row in enumerate(shown) if row["epoch"] == self.best_epoch]
        return rows_html(title, columns, rows, notes=notes, emphasized=best)

    def plot(self) -> Figure:
        """
        Return a figure of losses and scores by epoch.

        Returns
        -------
        matplotlib.figure.Figure
            Losses on the left, scores on the right, with the best epoch marked; scores that no epoch has are
            left out.
        """
        return plot_learning_curves(self)


class HistoryRecorder:
    """
    Records the rows and the weights of the best epoch, and writes both to `output`.

    With "auto" the highest ``val_auroc`` is best, then the lowest ``val_loss``; if the AUROC is undefined,
    the lowest ``val_loss``; without validation, the last epoch. The checkpoint's summary starts with
    `settings`.
    """

    def __init__(
        self,
        model: TransferClassifier,
        output: Path | None,
        settings: Mapping[str, Any],
        *,
        monitor: str = "auto",
        patience: int | None = None,
        loggers: Sequence[Logger] = (),
    ) -> None:
        self._model = model
        self._output = output
        if output is not None:
            _make_folder(output)
        self._settings = dict(settings)
        self._monitored = monitor
        self._loggers = loggers
        self._best_score = _WORST
        self._best_state = _copy_state(model)
        self._best_summary = model.training_summary
        self.rows: list[dict[str, Any]] = []
        self.best_epoch = 0
        self.monitor: str | None = None
        self.checkpoint: Path | None = None
        self.early_stopping = EarlyStopping(patience)

    def end_epoch(
        self, row: dict[str, Any], *, evaluated: TransferClassifier | None = None, write: bool = True
    ) -> None:
        """Add a row (all columns but ``monitor``); `evaluated` is the model that has these scores."""
        source = evaluated or self._model
        monitor, score = self._score(row)
        full = {**row, "monitor": monitor}
        self.rows.append(order_row(full))
        # an epoch without validation is best only as long as none was validated
        better = self.monitor is None if monitor is None else score > self._best_score
        self.early_stopping.end_epoch(better=better, validated=monitor is not None)
        if better and not _is_finite(source):
            raise TrainingError(
                f"parameters are not finite after epoch {row['epoch']}: lower lr, or check for images with "
                "extreme values. The model has the best weights so far"
            )
        if better:
            self._best_score = score
            self.monitor, self.best_epoch = monitor, row["epoch"]
            self._best_state = _copy_state(source)
            self._best_summary = self._summarize()
        if better and self._output is not None:
            self.checkpoint = self._output / "best.safetensors"
        if write:
            self._write(source, better=better)

    def _write(self, source: TransferClassifier, *, better: bool) -> None:
        numbers = {n: v for n, v in self.rows[-1].items() if isinstance(v, int | float)}
        for logger in self._loggers:
            logger.log_metrics(numbers, step=self.rows[-1]["epoch"])
        if self._output is None:
            return
        if better:
            _save_model(source, self._output / "best.safetensors", self._best_summary)
        _save_model(source, self._output / "last.safetensors", self._summarize())
        write_text(self._output / "history.csv", _format_csv(self.rows))

    def restore_best(self) -> None:
        """Give the model the weights of the best epoch; its initial ones, if no epoch has ended."""
        self._model.load_state_dict(self._best_state)
        self._model.training_summary = self._best_summary

    def state_dict(self) -> tuple[dict[str, Any], Mapping[str, Tensor]]:
        """Return the state as JSON values, and the best weights."""
        header = {
            "rows": self.rows,
            "best_score": list(self._best_score),
            "best_epoch": self.best_epoch,
            "monitor": self.monitor,
            "waited": self.early_stopping.waited,
            "summary": self._best_summary,
        }
        return header, self._best_state

    def load_state_dict(self, header: Mapping[str, Any], best: Mapping[str, Tensor]) -> None:
        """Continue from the result of :meth:`state_dict`."""
        # JSON values are sorted by name
        self.rows = [order_row(row) for row in header["rows"]]
        self._best_score = (float(header["best_score"][0]), float(header["best_score"][1]))
        self.best_epoch, self.monitor = header["best_epoch"], header["monitor"]
        self.early_stopping.waited, self._best_summary = header["waited"], header["summary"]
        for name, value in self._best_state.items():
            value.copy_(best[name])
        path = self._output / "best.safetensors" if self._output is not None else None
        self.checkpoint = path if path is not None and path.is_file() else None

    @contextmanager
    def logged(self, settings: Mapping[str, Any], *, write: bool) -> Iterator[None]:
        """Give the loggers all settings, and in the end whether the block succeeded."""
        values = {**settings, **self._settings}
        scalars = {n: v if v is None or isinstance(v, _SCALARS) else json_text(v) for n, v in values.items()}
        status = "failed"
        try:
            if write:
                for logger in self._loggers:
                    logger.log_hyperparams(scalars)
            yield
            status = "success"
        finally:
            for logger in self._loggers:
                logger.finalize(status)

    def add_settings(self, **settings: Any) -> None:
        """Add settings to the summary of checkpoints to come."""
        self._settings |= settings

    def replace_best(self, *, write: bool) -> None:
        """Take the model as it is now, after adaptation, for the best."""
        self._best_state = _copy_state(self._model)
        if write and self.checkpoint is not None:
            _save_model(self._model, self.checkpoint, self._best_summary)

    def confirm_checkpoint(self) -> str | None:
        """Write the best model if its file is gone or has another one; return the model's SHA-256."""
        if self._output is None:
            return None
        path = self._output / "best.safetensors"
        sha256 = model_digest(merged_copy(self._model))
        try:
            written = read_digest(path)
        except CheckpointError:
            written = None
        if written != sha256:
            _save_model(self._model, path, self._best_summary)
        self.checkpoint = path
        return sha256

    def _score(self, row: Mapping[str, Any]) -> tuple[str | None, tuple[float, float]]:
        """Return the monitored column, and the score by which epochs are compared; higher is better."""
        if row["val_loss"] is None:
            return None, _WORST
        name = self._monitored
        if name == "auto":
            name = "val_loss" if row["val_auroc"] is None else "val_auroc"
        if row[name] is None:
            why = (
                "no class has both positive and negative examples in the validation data"
                if name in COLUMNS
                else "the metric is not finite"
            )
            raise TrainingError(
                f'monitor={name!r} has no value, because {why}: use another split, or monitor="val_loss"'
            )
        value = row[name]
        return name, (-value, 0.0) if name == "val_loss" else (value, -row["val_loss"])

    def _summarize(self) -> dict[str, Any]:
        best = {name: value for name, value in self.rows[-1].items() if name != "seconds"}
        return {**self._settings, "epochs_run": len(self.rows), "best": best}


def order_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row with its columns in order: metrics of the user's own after those of medimg."""
    at = COLUMNS.index("val_auroc") + 1
    names = [*COLUMNS[:at], *sorted(row.keys() - set(COLUMNS)), *COLUMNS[at:]]
    return {name: row[name] for name in names}


def _save_model(model: TransferClassifier, path: Path, summary: dict[str, Any] | None) -> None:
    """Save a model with another training summary than its own."""
    before = model.training_summary
    model.training_summary = summary
    try:
        model.save(path)
    finally:
        model.training_summary = before


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(
            f"output={str(path)!r} can't be a folder: {error.strerror or type(error).__name__}"
        ) from None


def _is_finite(model: TransferClassifier) -> bool:
    return all(bool(v.isfinite().all()) for v in model.state_dict().values() if v.is_floating_point())


def _copy_state(model: TransferClassifier) -> Mapping[str, Tensor]:
    """Return a copy of the state dict on the CPU."""
    state = model.state_dict()
    for name, value in state.items():  # in place: a new dict would lose the versions of the layers
        state[name] = value.detach().to("cpu", copy=True)
    return state


def _format_csv(rows: list[dict[str, Any]]) -> str:
    columns = list(rows[0])
    lines = [",".join(columns)]
    lines += [",".join("" if row[name] is None else str(row[name]) for name in columns) for row in rows]
    return "\n".join(lines) + "\n"


_LOSSES: Final = {"train_loss": "training", "val_loss": "validation", "adapt_loss": "adaptation"}
_SCORES: Final = {
    "val_auroc": "AUROC",
    "val_balanced_accuracy": "balanced accuracy",
    "val_f1": "F1",
    "val_accuracy": "accuracy",
}


def plot_learning_curves(result: FitResult) -> Figure:
    """Return a figure of losses and scores by epoch."""
    from matplotlib.ticker import MaxNLocator

    figure, axes = make_axes((9, 3.4), columns=2)
    own = {name: name.removeprefix("val_") for name in result.history[0] if name not in COLUMNS}
    scores = {**_SCORES, **own}
    for one, lines, title in zip(axes, (_LOSSES, scores), ("Loss", "Score (validation)"), strict=True):
        _draw_lines(one, result.history, lines.items())
        one.set_title(title)
        one.set_xlabel("epoch")
        one.xaxis.set_major_locator(MaxNLocator(integer=True))
        one.axvline(result.best_epoch, **REFERENCE_LINE, label="best epoch")
        add_legend(one)
    axes[0].set_ylim(bottom=0)
    return figure


def _draw_lines(axes: Axes, rows: Sequence[dict[str, Any]], lines: Iterable[tuple[str, str]]) -> None:
    for color, (name, label) in zip(COLORS, lines, strict=False):
        points = [(row["epoch"], row[name]) for row in rows if row[name] is not None]
        if points:
            axes.plot(*zip(*points, strict=True), color=color, label=label, marker="o", markersize=3)
