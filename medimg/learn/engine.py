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

from medimg.errors import TrainingError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pytorch_lightning import Callback

    from medimg.learn._lightning import FineTuning

__all__ = ["Engine"]

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
class Engine:
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
    ) -> Engine:
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

    def fit(self, module: FineTuning, epochs: int) -> None:
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
