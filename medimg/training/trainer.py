"""Running Lightning quietly: on which device, with what precision, and without traces."""

from __future__ import annotations

import logging
import os
import signal
import threading
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn

from medimg.errors import MissingDependencyError, TrainingError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from pytorch_lightning import Callback
    from pytorch_lightning.loggers import Logger

    from medimg.models.classifier import TransferClassifier
    from medimg.training._lightning_module import FineTuneModule

__all__ = ["TrainerConfig", "make_loggers", "memory_format", "prefers_channels_last"]

_OURS: Final = {
    "max_epochs": "head_epochs and epochs",
    "accumulate_grad_batches": "accumulate",
    "callbacks": "callbacks",
    "precision": "precision",
    "devices": "devices",
}

#: What Lightning says about choices that are made on purpose here, or that are the user's.
_HARMLESS: Final = (
    r".*module\(s\) in eval mode at the start of training.*",  # the frozen ones: that is the point
    r"Total length of `list` across ranks is zero.*",  # validation data are optional
    r"You defined a `validation_step` but have no `val_dataloader`.*",  # validation data are optional
    r".*does not have many workers which may be a bottleneck.*",  # pictures are kept in memory
    r".*available but not used.*",  # the device is the caller's choice
    r"`isinstance\(treespec, LeafSpec\)` is deprecated.*",  # Lightning 2.6 calls torch 2.15 the old way
)


@dataclass(frozen=True, slots=True)
class TrainerConfig:
    """
    How training runs.

    Parameters
    ----------
    options : dict
        Arguments of ``pytorch_lightning.Trainer``, but for the number of epochs.
    """

    options: dict[str, Any]

    @classmethod
    def make(
        cls,
        device: torch.device,
        *,
        precision: Any,
        devices: Any,
        progress: bool,
        accumulate: int,
        callbacks: Sequence[Callback],
        more: Mapping[str, Any],
    ) -> TrainerConfig:
        """
        Choose device and precision.

        Parameters
        ----------
        device : torch.device
            Where the model is now.
        precision, devices, progress, accumulate, callbacks, more
            As in :func:`medimg.fine_tune`.

        Raises
        ------
        TrainingError
            If `more` holds what has an argument of its own.
        """
        for name, own in _OURS.items():
            if name in more:
                raise TrainingError(f"trainer_kwargs holds {name!r}; pass {own} to fine_tune instead")
        if devices == "auto":
            devices = [device.index] if device.type == "cuda" and device.index is not None else 1
            if more.get("accelerator") == "cpu":
                devices = 1
        options: dict[str, Any] = {
            "accelerator": "auto",
            "devices": devices,
            "callbacks": list(callbacks),
            "logger": False,
            "enable_checkpointing": False,
            "enable_model_summary": False,
            "enable_progress_bar": progress,
            "num_sanity_val_steps": 0,
            "accumulate_grad_batches": accumulate,
            # ours share items out so that several processes train as one would
            "use_distributed_sampler": False,
            **more,
        }
        if str(precision).endswith("-true") and str(precision) != "32-true":
            raise TrainingError(
                f"precision={precision!r} would leave the model itself in that type; use 'bf16-mixed', "
                "'16-mixed', 32 or 'auto'"
            )
        if precision == "auto":
            precision = _native_precision(options["accelerator"])
        return cls({**options, "precision": precision})

    @property
    def callbacks(self) -> list[Callback]:
        """The user's callbacks."""
        return list(self.options["callbacks"])

    @property
    def device(self) -> torch.device:
        """Where the first process computes."""
        if not self.pins_memory:
            return torch.device("cpu")
        devices = self.options["devices"]
        return torch.device("cuda", devices[0] if isinstance(devices, list) and devices else 0)

    @property
    def writes(self) -> bool:
        """Whether this process is the one that writes files, as far as launchers of several say."""
        return os.environ.get("LOCAL_RANK", "0") == "0" and os.environ.get("RANK", "0") == "0"

    @property
    def pins_memory(self) -> bool:
        """Whether batches go to a GPU by way of pinned memory."""
        return torch.cuda.is_available() and self.options["accelerator"] in ("auto", "gpu", "cuda")

    @contextmanager
    def running(self, seed: int) -> Iterator[None]:
        """Seed torch, silence Lightning, and set all of it back."""
        import pytorch_lightning  # noqa: F401  # its import sets levels of loggers, which are changed next

        loggers = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning_fabric")]
        levels = [one.level for one in loggers]
        main = threading.current_thread() is threading.main_thread()
        handler = signal.getsignal(signal.SIGINT) if main else None
        gpus = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
        with torch.random.fork_rng(devices=gpus), warnings.catch_warnings():
            for message in _HARMLESS:
                warnings.filterwarnings("ignore", message=message)
            torch.manual_seed(seed)
            for one in loggers:
                one.setLevel(logging.WARNING)
            try:
                yield
            except SystemExit as error:
                # Lightning ends the whole process after Ctrl+C, and shuts its ears to the next one
                if isinstance(error.__context__, KeyboardInterrupt):
                    raise KeyboardInterrupt from None
                raise
            finally:
                for one, level in zip(loggers, levels, strict=True):
                    one.setLevel(level)
                # None is a handler that was not installed from Python, and can't be put back from here
                if handler is not None:
                    signal.signal(signal.SIGINT, handler)

    def fit(self, module: FineTuneModule, epochs: int) -> None:
        """
        Train for so many epochs.

        Raises
        ------
        TrainingError
            If Lightning can't work with the options.
        """
        import pytorch_lightning as pl
        from lightning_fabric.utilities.exceptions import MisconfigurationException

        try:
            trainer = pl.Trainer(max_epochs=epochs, **self.options)
        except (MisconfigurationException, TypeError, ValueError) as error:
            raise _refused(error) from error
        try:
            trainer.fit(module)
        except MisconfigurationException as error:
            raise _refused(error) from error


def _refused(error: Exception) -> TrainingError:
    return TrainingError(
        f"Lightning refuses these settings: {error}. Correct devices, precision, callbacks or trainer_kwargs"
    )


def _native_precision(accelerator: object) -> str:
    """Return what the device computes fastest without losing more than training can bear."""
    if accelerator not in ("auto", "gpu", "cuda") or not torch.cuda.is_available():
        return "32-true"
    native = torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16-mixed" if native else "16-mixed"


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


#: A transformer has one convolution, which cuts the picture into patches.
_FEW: Final = 4


def prefers_channels_last(model: TransferClassifier, choice: bool | str) -> bool:
    """
    Tell whether the backbone is computed pixel by pixel.

    Parameters
    ----------
    model : TransferClassifier
        The model.
    choice : bool or "auto"
        "auto": where the backbone consists of convolutions.

    Raises
    ------
    TrainingError
        If the choice is none of these.
    """
    if isinstance(choice, bool):
        return choice
    if choice != "auto":
        raise TrainingError(f'channels_last is True, False or "auto"; found {choice!r}')
    return sum(isinstance(module, nn.Conv2d) for module in model.backbone.modules()) > _FEW


@contextmanager
def memory_format(model: TransferClassifier, *, channels_last: bool, compiled: bool) -> Iterator[None]:
    """
    Lay the backbone's weights out for a while, compile it for a while.

    Parameters
    ----------
    model : TransferClassifier
        Its weights keep their values, bit by bit.
    channels_last, compiled : bool
        What is done.
    """
    if channels_last:
        model.backbone.to(memory_format=torch.channels_last)
    if compiled:
        model.backbone.compile()
    try:
        yield
    finally:
        if compiled:
            model.backbone._compiled_call_impl = None
        if channels_last:
            model.backbone.to(memory_format=torch.contiguous_format)
