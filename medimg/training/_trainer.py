"""Options of Lightning's trainer: device, precision, loggers, memory format."""

from __future__ import annotations

import logging
import os
import signal
import threading
import warnings
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn

from medimg._validation import check_whole_number
from medimg.data.dataloader import worker_errors
from medimg.data.processes import (
    Processes,
    count_processes,
    find_launched,
    find_local_rank,
    is_main_process,
    lost_processes,
)
from medimg.errors import MedimgError, MissingDependencyError, TrainingError, also
from medimg.training.optimization.sharding import Sharding

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence
    from pathlib import Path

    from pytorch_lightning import Callback
    from pytorch_lightning.loggers import Logger

    from medimg.models.classifier import TransferClassifier
    from medimg.training._lightning_module import FineTuneModule

__all__ = ["TrainerConfig", "check_monitored", "make_loggers", "memory_format", "prefers_channels_last"]

#: Arguments of Lightning's trainer that are arguments of ``fine_tune`` under these names.
_OWN_ARGUMENTS: Final = {
    "max_epochs": "head_epochs and epochs",
    "accumulate_grad_batches": "accumulate",
    "callbacks": "callbacks",
    "precision": "precision",
    "devices": "devices",
    "num_nodes": "num_nodes",
    "strategy": "strategy",
}

#: The strategy that divides a model between processes, here by FSDP2.
_FSDP: Final = "fsdp"

#: Others that do, by the start of their names.
_DIVIDING: Final = ("fsdp", "deepspeed", "model_parallel", "xla_fsdp", "tensor_parallel")

#: Lightning's warnings about choices that are made on purpose here, or by the user.
_IGNORED_WARNINGS: Final = (
    r".*module\(s\) in eval mode at the start of training.*",  # the frozen ones
    r"Total length of `list` across ranks is zero.*",  # validation data are optional
    r"You defined a `validation_step` but have no `val_dataloader`.*",  # validation data are optional
    r".*does not have many workers which may be a bottleneck.*",  # images are kept in memory
    r".*available but not used.*",  # the device is the caller's choice
    r"`isinstance\(treespec, LeafSpec\)` is deprecated.*",  # Lightning 2.6 with torch 2.15
)

#: Arguments of Lightning's trainer that leave the result of a training unchanged, or are compared otherwise.
_WITHOUT_EFFECT: Final = (
    "accelerator",
    "barebones",
    "benchmark",
    "callbacks",
    "default_root_dir",
    "detect_anomaly",
    "deterministic",
    "devices",
    "enable_autolog_hparams",
    "enable_checkpointing",
    "enable_model_summary",
    "enable_progress_bar",
    "inference_mode",
    "log_every_n_steps",
    "logger",
    "max_time",
    "num_nodes",
    "num_sanity_val_steps",
    "plugins",
    "precision",
    "profiler",
    "strategy",
    "use_distributed_sampler",
)

#: Lightning's short names of precisions.
_PRECISIONS: Final = {"16": "16-mixed", "32": "32-true", "64": "64-true", "bf16": "bf16-mixed"}

#: A vision transformer has one convolution, the patch embedding.
_FEW_CONVOLUTIONS: Final = 4


@dataclass(frozen=True, slots=True)
class TrainerConfig:
    """Arguments of ``pytorch_lightning.Trainer``, except for the number of epochs."""

    options: dict[str, Any]

    @classmethod
    def make(
        cls,
        device: torch.device,
        *,
        precision: Any,
        devices: Any,
        num_nodes: Any,
        strategy: Any,
        accumulate: int,
        callbacks: Sequence[Callback],
        more: Mapping[str, Any],
    ) -> TrainerConfig:
        """Choose device and precision, for a model on `device`; the other arguments are ``fine_tune``'s."""
        if not isinstance(more, Mapping) or not all(isinstance(name, str) for name in more):
            raise also(TrainingError, TypeError)(
                f"trainer_kwargs must be a mapping of arguments by name; found a {type(more).__name__}"
            )
        for name, own in _OWN_ARGUMENTS.items():
            if name in more:
                raise TrainingError(f"trainer_kwargs contains {name!r}; pass {own} to fine_tune instead")
        if not isinstance(precision, str | int) or not isinstance(devices, str | int | list | tuple):
            raise TrainingError(
                'precision must be text or a number, such as "bf16-mixed", and devices text, a number or a '
                f"list; found a {type(precision).__name__} and a {type(devices).__name__}"
            )
        on_cpu = more.get("accelerator") == "cpu" or not torch.cuda.is_available()
        cores = os.cpu_count() or 1
        if on_cpu and devices not in ("auto", -1, "-1") and count_processes(devices) > cores:
            raise TrainingError(
                f"devices={devices!r} would start as many processes on a CPU of {cores} cores, each with a "
                f'copy of the model: use at most {cores}, or "auto"'
            )
        launched = find_launched()
        if num_nodes == "auto":
            num_nodes = launched.nodes
        num_nodes = check_whole_number("num_nodes", num_nodes, least=1)
        _check_strategy(strategy)
        if devices == "auto" and launched.devices * launched.nodes > 1:
            devices = launched.devices
        if devices == "auto":
            devices = [device.index] if device.type == "cuda" and device.index is not None else 1
            if more.get("accelerator") == "cpu":
                devices = 1
        options: dict[str, Any] = {
            "accelerator": "auto",
            "devices": devices,
            "num_nodes": num_nodes,
            "strategy": strategy,
            "callbacks": list(_check_callbacks(callbacks, more)),
            "logger": False,
            "enable_checkpointing": False,
            "enable_model_summary": False,
            "enable_progress_bar": _has_progress_bar(callbacks),
            "num_sanity_val_steps": 0,
            "accumulate_grad_batches": accumulate,
            # EpochSampler distributes items so that several processes train as one would
            "use_distributed_sampler": False,
            **more,
        }
        if str(precision).endswith("-true") and str(precision) != "32-true":
            raise TrainingError(
                f"precision={precision!r} would convert the model itself to that dtype; use 'bf16-mixed', "
                "'16-mixed', 32 or 'auto'"
            )
        if precision == "auto":
            precision = _choose_precision(options["accelerator"])
        made = cls({**options, "precision": precision})
        if made.sharding is not None:
            # parameters that are gathered in inference mode can't be trained
            made.options["inference_mode"] = False
        return made

    def describe(self) -> dict[str, Any]:
        """Return the options that change the result of a training, as JSON values."""
        precision = str(self.options["precision"])
        kept = {
            name: _describe_option(value)
            for name, value in self.options.items()
            if name not in _WITHOUT_EFFECT and value is not None
        }
        return {
            **kept,
            "precision": _PRECISIONS.get(precision, precision),
            "processes": self.processes.count,
        }

    def check(self, seed: int) -> None:
        """Raise TrainingError if Lightning rejects the options."""
        with self.running(seed):
            self._make_trainer(1)

    def _make_trainer(self, epochs: int) -> Any:
        import pytorch_lightning as pl
        from lightning_fabric.utilities.exceptions import MisconfigurationException

        options = dict(self.options)
        if self.options["strategy"] == _FSDP:
            options["strategy"] = self._make_strategy()
        try:
            return pl.Trainer(max_epochs=epochs, **options)
        except (MisconfigurationException, TypeError, ValueError, RuntimeError, ImportError) as error:
            raise _lightning_error(error) from error

    def _make_strategy(self) -> Any:
        """Return Lightning's strategy for FSDP2; a single process has nothing to divide."""
        from pytorch_lightning.strategies import ModelParallelStrategy

        if self.sharding is None:
            return "auto"
        return ModelParallelStrategy(
            data_parallel_size=self.processes.count, tensor_parallel_size=1, save_distributed_checkpoint=False
        )

    @property
    def sharding(self) -> Sharding | None:
        """How the processes divide the model; None if each has all of it."""
        if self.options["strategy"] != _FSDP or self.processes.count == 1:
            return None
        return Sharding(sync_batchnorm=bool(self.options.get("sync_batchnorm")))

    @property
    def callbacks(self) -> list[Callback]:
        """The user's callbacks."""
        return list(self.options["callbacks"])

    @property
    def has_progress_bar(self) -> bool:
        """Whether the user has asked for a bar of Lightning's."""
        return bool(self.options["enable_progress_bar"])

    @property
    def device(self) -> torch.device:
        """Device of this process, as Lightning chooses it."""
        if not self.uses_gpu:
            return torch.device("cpu")
        devices = self.options["devices"]
        chosen = devices if isinstance(devices, list) and devices else range(torch.cuda.device_count())
        rank = find_local_rank() if self.processes.count > 1 else 0
        return torch.device("cuda", chosen[rank] if rank < len(chosen) else 0)

    @property
    def is_main_process(self) -> bool:
        """Whether this process writes files, as far as launchers of several processes tell."""
        return is_main_process()

    @property
    def processes(self) -> Processes:
        """Those of the training."""
        return Processes.of({name: self.options[name] for name in ("devices", "num_nodes")})

    @property
    def uses_gpu(self) -> bool:
        """Whether training runs on a GPU, and batches use pinned memory."""
        return torch.cuda.is_available() and self.options["accelerator"] in ("auto", "gpu", "cuda")

    @contextmanager
    def running(self, seed: int) -> Iterator[None]:
        """Seed torch, silence Lightning, and restore both and the signal handler at the end."""
        import pytorch_lightning  # noqa: F401  # its import sets levels of loggers, which are changed next

        loggers = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning_fabric")]
        levels = [one.level for one in loggers]
        main = threading.current_thread() is threading.main_thread()
        handler = signal.getsignal(signal.SIGINT) if main else None
        gpus = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
        with torch.random.fork_rng(devices=gpus), warnings.catch_warnings():
            for message in _IGNORED_WARNINGS:
                warnings.filterwarnings("ignore", message=message)
            torch.manual_seed(seed)
            for one in loggers:
                one.setLevel(logging.WARNING)
            try:
                yield
            except SystemExit as error:
                # Lightning ends the whole process after Ctrl+C, and ignores the next one
                if isinstance(error.__context__, KeyboardInterrupt):
                    raise KeyboardInterrupt from None
                raise
            finally:
                for one, level in zip(loggers, levels, strict=True):
                    one.setLevel(level)
                # None: a handler that was not installed from Python can't be restored from here
                if handler is not None:
                    signal.signal(signal.SIGINT, handler)

    def fit(self, module: FineTuneModule, epochs: int) -> None:
        """Train for a number of epochs; raise TrainingError if Lightning rejects the options."""
        trainer = self._make_trainer(epochs)
        try:
            with worker_errors(), lost_processes():
                trainer.fit(module)
        except torch.OutOfMemoryError as error:
            raise TrainingError(
                f"the memory of the device is too small for these batches ({error}): lower batch_size (with "
                "accumulate= for the same steps), the image size or grad_slices"
            ) from error
        except MedimgError:
            raise
        except Exception as error:
            if _is_of_lightning(error):
                raise _lightning_error(error) from error
            raise


def _check_strategy(strategy: object) -> None:
    """Raise TrainingError for a strategy that divides the model by other means than FSDP2."""
    if not isinstance(strategy, str):
        raise also(TrainingError, TypeError)(
            f'strategy must be the name of one of Lightning, such as "ddp"; found a {type(strategy).__name__}'
        )
    if strategy != _FSDP and strategy.startswith(_DIVIDING):
        raise TrainingError(
            f"strategy={strategy!r} divides the model between devices in a way that models, resume files and "
            'averages can\'t be made whole from; expected "auto", "ddp" or "fsdp"'
        )


def _has_progress_bar(callbacks: Sequence[Callback]) -> bool:
    """Whether one of the user's callbacks is a progress bar."""
    if not callbacks:
        return False
    from pytorch_lightning.callbacks import ProgressBar

    return any(isinstance(one, ProgressBar) for one in callbacks)


def _is_of_lightning(error: Exception) -> bool:
    """Whether an exception was raised in code of Lightning, not of torch or the user."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    module = "" if last is None else str(last.tb_frame.f_globals.get("__name__", ""))
    return module.partition(".")[0] in ("pytorch_lightning", "lightning_fabric", "lightning")


def _check_callbacks(callbacks: object, more: Mapping[str, Any]) -> Sequence[Callback]:
    """Return callbacks; raise TrainingError if one can't work in ``fine_tune``."""
    if isinstance(callbacks, list | tuple) and not callbacks:
        return ()
    import pytorch_lightning as pl
    from pytorch_lightning import callbacks as known

    if not isinstance(callbacks, list | tuple) or not all(isinstance(c, pl.Callback) for c in callbacks):
        several = callbacks if isinstance(callbacks, list | tuple) else (callbacks,)
        wrong = next((one for one in several if not isinstance(one, pl.Callback)), callbacks)
        found = f"the class {wrong.__name__}" if isinstance(wrong, type) else f"a {type(wrong).__name__}"
        raise TrainingError(
            f"callbacks must be a list of callbacks of Lightning, such as [Timer()]; found {found}"
        )
    reasons: list[tuple[tuple[type, ...], bool, str]] = [
        (
            (known.BaseFinetuning,),
            True,
            "freezes layers, as fine_tune does itself: use model.freeze(upto=...), head_epochs and gradual",
        ),
        (
            (known.LearningRateMonitor, known.DeviceStatsMonitor, known.ThroughputMonitor),
            not more.get("logger"),
            "writes to a logger of Lightning's trainer, and logger= of fine_tune is none: it gets one row "
            'per epoch, with the learning rate; pass trainer_kwargs={"logger": ...} for this callback',
        ),
        (
            (known.ModelCheckpoint,),
            not more.get("enable_checkpointing"),
            "is not needed: pass output= for the best and the last model, and for resume=",
        ),
        (
            (known.BatchSizeFinder, known.LearningRateFinder),
            True,
            "changes settings of fine_tune: use medimg.lr_find, and set batch_size",
        ),
        (
            (known.ModelPruning,),
            True,
            "changes parameters of layers, which checkpoints and resume files can't hold: prune the network "
            "after training",
        ),
        (
            (known.GradientAccumulationScheduler,),
            True,
            "changes a setting of fine_tune: use accumulate=",
        ),
        (
            (known.StochasticWeightAveraging, known.WeightAveraging),
            True,
            "averages weights, as fine_tune does itself: use ema=",
        ),
    ]
    for callback in callbacks:
        for classes, unsuitable, why in reasons:
            if unsuitable and isinstance(callback, classes):
                raise TrainingError(f"the callback {type(callback).__name__} {why}")
    return callbacks


def check_monitored(callbacks: Sequence[Callback], scores: Collection[str]) -> None:
    """Raise TrainingError if a callback needs a score that no epoch will have."""
    for callback in callbacks:
        name = getattr(callback, "monitor", None)
        if isinstance(name, str) and name not in scores and getattr(callback, "strict", True):
            raise TrainingError(
                f"the callback {type(callback).__name__} monitors {name!r}, which this training lacks: "
                f"expected one of {', '.join(map(repr, sorted(scores)))} (those of validation need val=, and "
                "val_auroc a class with positive and negative validation examples)"
            )


def _describe_option(value: object) -> Any:
    """Return an option of the trainer as a JSON value; of an object, its type."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_describe_option(one) for one in value]
    return type(value).__qualname__


def _lightning_error(error: Exception) -> TrainingError:
    return TrainingError(
        f"Lightning rejects these settings: {error}. Correct devices, precision, callbacks or trainer_kwargs"
    )


def _choose_precision(accelerator: object) -> str:
    """Return the fastest precision of the device that training tolerates."""
    if accelerator not in ("auto", "gpu", "cuda") or not torch.cuda.is_available():
        return "32-true"
    native = torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16-mixed" if native else "16-mixed"


def make_loggers(choice: Any, folder: Path | None) -> tuple[Logger, ...]:
    """Return the loggers of ``logger=``; TensorBoard's writes into `folder`."""
    if choice is None:
        return ()
    several = choice if isinstance(choice, list | tuple) else (choice,)
    return tuple(_make_logger(one, folder) for one in several)


def _make_logger(choice: Any, folder: Path | None) -> Logger:
    from pytorch_lightning.loggers import Logger, TensorBoardLogger

    if isinstance(choice, Logger):
        return choice
    if not isinstance(choice, str) or choice != "tensorboard":
        raise TrainingError(
            f'logger must be "tensorboard" or a logger of pytorch_lightning.loggers; found {choice!r}. '
            "history.csv is written to output= in any case"
        )
    if folder is None:
        raise TrainingError('logger="tensorboard" writes to the output folder: pass output=')
    try:
        return TensorBoardLogger(save_dir=folder, name="tensorboard", version="")
    except ModuleNotFoundError:
        raise MissingDependencyError(
            'logger="tensorboard" needs a package that is not installed: run pip install tensorboard'
        ) from None


def prefers_channels_last(model: TransferClassifier, choice: bool | str) -> bool:
    """Return whether the backbone runs in channels-last format: for "auto", if it is convolutional."""
    if isinstance(choice, bool):
        return choice
    if not isinstance(choice, str) or choice != "auto":
        raise TrainingError(f'channels_last must be True, False or "auto"; found {choice!r}')
    convolutions = sum(isinstance(module, nn.Conv2d) for module in model.backbone.modules())
    return convolutions > _FEW_CONVOLUTIONS


@contextmanager
def memory_format(model: TransferClassifier, *, channels_last: bool, compiled: bool) -> Iterator[None]:
    """Convert the backbone to channels-last format and compile it, inside the block; values stay the same."""
    if channels_last:
        model.backbone.to(memory_format=torch.channels_last)
    if compiled:
        model.backbone.compile()
    try:
        yield
    finally:
        if compiled:
            model.backbone._compiled_call_impl = None  # torch has no public way back
        if channels_last:
            model.backbone.to(memory_format=torch.contiguous_format)
