"""What training went through, which epoch was best, and the files that tell of both."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from medimg.errors import TrainingError
from medimg.io.files import write_text
from medimg.learn.checkpoint import save

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import pandas as pd
    from torch import Tensor

    from medimg.learn.classifier import TransferClassifier

__all__ = ["COLUMNS", "FitResult", "Recorder"]

#: Of a row of the history, in this order.
COLUMNS: Final = (
    "epoch",
    "phase",
    "train_loss",
    "val_loss",
    "val_accuracy",
    "val_auroc",
    "monitor",
    "lr",
    "seconds",
)


@dataclass(frozen=True, slots=True)
class FitResult:
    """
    What :func:`medimg.fine_tune` did.

    Parameters
    ----------
    history : tuple of dict
        One row per epoch: ``epoch`` (from 1, through both phases), ``phase`` ("head" or "full"),
        ``train_loss``, ``val_loss``, ``val_accuracy``, ``val_auroc`` (None where there is no such score),
        ``monitor`` (the score that chose the best epoch), ``lr`` (of the head, at the epoch's last step) and
        ``seconds``.
    best_epoch : int
        The epoch whose weights the model holds.
    monitor : str or None
        "val_auroc", "val_loss" where no class has both examples and counterexamples in the validation data,
        or None without validation: then the last epoch stands for the best.
    seconds : float
        How long it all took.
    checkpoint : Path or None
        The file of the best epoch, where there is an output folder.
    """

    history: tuple[dict[str, Any], ...] = field(repr=False)
    best_epoch: int
    monitor: str | None
    seconds: float
    checkpoint: Path | None = None

    @property
    def best(self) -> dict[str, Any]:
        """The row of the best epoch."""
        return next(row for row in self.history if row["epoch"] == self.best_epoch)

    def to_pandas(self) -> pd.DataFrame:
        """Return the history as a table with one row per epoch."""
        import pandas as pd

        return pd.DataFrame(list(self.history), columns=list(COLUMNS))


class Recorder:
    """
    Keep the rows, and the weights of the best epoch; write both as they come.

    The highest ``val_auroc`` is best, a lower ``val_loss`` decides between equals; where the AUROC is
    undefined the lowest ``val_loss`` is best; without validation, the last epoch.

    Parameters
    ----------
    model : TransferClassifier
        The model in training.
    output : Path or None
        Folder for ``best.safetensors`` and ``history.csv``.
    settings : mapping
        What the checkpoint says of the training, besides its scores.
    """

    def __init__(self, model: TransferClassifier, output: Path | None, settings: Mapping[str, Any]) -> None:
        self._model = model
        self._output = output
        if output is not None:
            _make_folder(output)
        self._settings = dict(settings)
        self._best_score = (-math.inf, -math.inf)
        self._best_state = _copied(model)
        self._best_summary = model.training_summary
        self.rows: list[dict[str, Any]] = []
        self.best_epoch = 0
        self.monitor: str | None = None
        self.checkpoint: Path | None = None

    def end_epoch(self, row: dict[str, Any], *, write: bool = True) -> None:
        """
        Take the row of an epoch that has just ended.

        Parameters
        ----------
        row : dict
            All columns but ``monitor``.
        write : bool
            Whether this process is the one that writes files.
        """
        monitor, score = _score(row)
        self.rows.append({name: {**row, "monitor": monitor}[name] for name in COLUMNS})
        # an epoch without validation is best only as long as none was validated
        better = self.monitor is None if monitor is None else score > self._best_score
        if better and not _is_finite(self._model):
            raise TrainingError(
                f"parameters are not finite after epoch {row['epoch']}: lower lr, or look for images with "
                "extreme values. The model holds the best weights before"
            )
        if better:
            self._best_score = score
            self.monitor, self.best_epoch = monitor, row["epoch"]
            self._best_state = _copied(self._model)
            self._best_summary = self._summary()
        if self._output is not None and write:
            if better:
                self._write_best(self._output / "best.safetensors")
            write_text(self._output / "history.csv", _csv(self.rows))

    def restore(self) -> None:
        """Give the model the weights of the best epoch; those it came with, if none has ended."""
        self._model.load_state_dict(self._best_state)
        self._model.training_summary = self._best_summary

    def _write_best(self, path: Path) -> None:
        before = self._model.training_summary
        self._model.training_summary = self._best_summary
        try:
            self.checkpoint = save(self._model, path)
        finally:
            self._model.training_summary = before

    def _summary(self) -> dict[str, Any]:
        best = {name: value for name, value in self.rows[-1].items() if name != "seconds"}
        return {**self._settings, "epochs_run": len(self.rows), "best": best}


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(
            f"output={str(path)!r} can't be a folder: {error.strerror or type(error).__name__}"
        ) from None


def _is_finite(model: TransferClassifier) -> bool:
    return all(bool(v.isfinite().all()) for v in model.state_dict().values() if v.is_floating_point())


def _score(row: Mapping[str, Any]) -> tuple[str | None, tuple[float, float]]:
    if row["val_loss"] is None:
        return None, (-math.inf, -math.inf)
    if row["val_auroc"] is None:
        return "val_loss", (-row["val_loss"], 0.0)
    return "val_auroc", (row["val_auroc"], -row["val_loss"])


def _copied(model: TransferClassifier) -> Mapping[str, Tensor]:
    state = model.state_dict()
    for name, value in state.items():  # in place: a new dict would lose the versions of the layers
        state[name] = value.detach().to("cpu", copy=True)
    return state


def _csv(rows: list[dict[str, Any]]) -> str:
    lines = [",".join(COLUMNS)]
    lines += [",".join("" if row[name] is None else str(row[name]) for name in COLUMNS) for row in rows]
    return "\n".join(lines) + "\n"
