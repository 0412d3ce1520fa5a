"""How to train: every choice of a call, checked, and fit to be written down."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from medimg._validation import real_number, whole_number
from medimg.errors import TrainingError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["MONITORS", "BatchStatistics", "FineTuneConfig", "Monitor", "Schedule"]

#: How the learning rate runs through a phase.
Schedule: TypeAlias = Literal["one_cycle", "cosine", "constant"]

#: What may choose the best epoch.
Monitor: TypeAlias = Literal[
    "auto", "val_auroc", "val_loss", "val_accuracy", "val_balanced_accuracy", "val_f1"
]
MONITORS: tuple[str, ...] = get_args(Monitor)

#: What training does to the running means and variances of BatchNorm layers.
BatchStatistics: TypeAlias = Literal["auto", "keep", "update"]

_WHOLE = {"head_epochs": 0, "epochs": 0, "batch_size": 1, "accumulate": 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class FineTuneConfig:
    """
    The numbers and choices of one training; see :func:`medimg.fine_tune` for what they mean.

    Raises
    ------
    TrainingError
        If one of them can't train anything; it names the setting.

    Examples
    --------
    >>> FineTuneConfig(epochs=3).to_dict()["epochs"]
    3
    >>> FineTuneConfig(mixup=-1.0)
    Traceback (most recent call last):
    medimg.errors.TrainingError: mixup is a number of 0 or more; found -1.0
    """

    head_epochs: int = 1
    epochs: int = 10
    lr: float = 1e-3
    backbone_lr_scale: float = 0.1
    layer_decay: float = 0.8
    gradual: bool = False
    schedule: Schedule = "one_cycle"
    weight_decay: float = 0.01
    batch_size: int = 32
    accumulate: int = 1
    balance: Literal["loss", "sampler"] | None = "loss"
    label_smoothing: float = 0.0
    mixup: float = 0.0
    ema: float | None = None
    monitor: Monitor = "auto"
    patience: int | None = None
    grad_slices: int | None = None
    batch_statistics: BatchStatistics = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in _WHOLE.items():
            self._set(name, _whole(name, getattr(self, name), least))
        self._set("seed", whole_number("seed", self.seed))
        for name in ("patience", "grad_slices"):
            if getattr(self, name) is not None:
                self._set(name, _whole(name, getattr(self, name), 1))
        for name in ("lr", "backbone_lr_scale", "layer_decay", "weight_decay", "label_smoothing", "mixup"):
            self._set(name, real_number(name, getattr(self, name)))
        if not self.head_epochs + self.epochs:
            raise TrainingError(
                "head_epochs and epochs are both 0: there is nothing to train; raise one of them"
            )
        self._check_ranges()
        self._check_choices()

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _check_ranges(self) -> None:
        _in_range("lr", self.lr, "a positive number", self.lr > 0)
        for name in ("backbone_lr_scale", "weight_decay", "mixup"):
            value = getattr(self, name)
            _in_range(name, value, "a number of 0 or more", value >= 0)
        decay = self.layer_decay
        _in_range("layer_decay", decay, "a number above 0 and at most 1", 0 < decay <= 1)
        smoothing = self.label_smoothing
        _in_range("label_smoothing", smoothing, "a number from 0 to below 1", 0 <= smoothing < 1)
        if self.ema is not None:
            self._set("ema", real_number("ema", self.ema))
            _in_range("ema", self.ema, "None or a decay between 0 and 1, such as 0.999", 0 < self.ema < 1)

    def _check_choices(self) -> None:
        choices: dict[str, tuple[object, ...]] = {
            "balance": ("loss", "sampler", None),
            "schedule": get_args(Schedule),
            "monitor": MONITORS,
            "gradual": (True, False),
            "batch_statistics": get_args(BatchStatistics),
        }
        for name, allowed in choices.items():
            value = getattr(self, name)
            if not any(value is one or value == one for one in allowed):
                raise TrainingError(f"{name} is {_listed(allowed)}; found {value!r}")

    def to_dict(self) -> dict[str, Any]:
        """Return all settings by name: numbers, text and None."""
        return asdict(self)

    def differences(self, other: Mapping[str, Any]) -> list[str]:
        """Name the settings that differ from others, with both values."""
        own = self.to_dict()
        names = [f.name for f in fields(self)]
        return [f"{n}={own[n]!r}, before {other.get(n)!r}" for n in names if own[n] != other.get(n)]


def _whole(name: str, value: object, least: int) -> int:
    what = "a whole number of epochs" if name.endswith("epochs") else "a whole number"
    try:
        number = whole_number(name, value)
    except TrainingError:
        number = least - 1
    if number < least:
        raise TrainingError(f"{name} is {what}, {least} or more; found {value!r}")
    return number


def _in_range(name: str, value: float | None, expected: str, sound: bool) -> None:  # the test
    if value is None or not math.isfinite(value) or not sound:
        raise TrainingError(f"{name} is {expected}; found {value!r}")


def _listed(choices: tuple[object, ...]) -> str:
    shown = [f'"{c}"' if isinstance(c, str) else repr(c) for c in choices]
    return f"{', '.join(shown[:-1])} or {shown[-1]}"
