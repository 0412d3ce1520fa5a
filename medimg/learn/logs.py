"""Where the numbers of a training go, besides its own table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from medimg.errors import MissingDependencyError, TrainingError

if TYPE_CHECKING:
    from pathlib import Path

    from pytorch_lightning.loggers import Logger

__all__ = ["make_loggers"]


def make_loggers(choice: Any, folder: Path | None) -> tuple[Logger, ...]:
    """
    Return the loggers that were asked for.

    Parameters
    ----------
    choice : "tensorboard", Logger, sequence of these, or None
        Lightning's loggers write to W&B, MLflow and others.
    folder : Path or None
        Where TensorBoard's files go, into a folder of their own.

    Raises
    ------
    TrainingError
        If one is none of these, or TensorBoard is asked for without a folder.
    MissingDependencyError
        If TensorBoard is not installed.
    """
    if choice is None:
        return ()
    several = choice if isinstance(choice, list | tuple) else (choice,)
    return tuple(_made(one, folder) for one in several)


def _made(choice: Any, folder: Path | None) -> Logger:
    from pytorch_lightning.loggers import Logger, TensorBoardLogger

    if isinstance(choice, Logger):
        return choice
    if choice != "tensorboard":
        raise TrainingError(
            f'logger is "tensorboard" or a logger of pytorch_lightning.loggers; found {choice!r}. '
            "A table history.csv is written to output= in any case"
        )
    if folder is None:
        raise TrainingError('logger="tensorboard" writes into the output folder: pass output=')
    try:
        return TensorBoardLogger(save_dir=folder, name="tensorboard", version="")
    except ModuleNotFoundError:
        raise MissingDependencyError(
            'logger="tensorboard" needs a package that is not installed: run pip install tensorboard'
        ) from None
