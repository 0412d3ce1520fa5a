"""Settings of fine-tuning, checked and serializable."""

from __future__ import annotations

from dataclasses import InitVar, asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from medimg._validation import check_choice, check_number, check_whole_number
from medimg.errors import TrainingError
from medimg.training.class_weights import BALANCES

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

__all__ = ["MONITORS", "Adapter", "BatchStatistics", "FineTuneConfig", "Monitor", "Schedule"]

#: Learning-rate schedule of a phase.
Schedule: TypeAlias = Literal["one_cycle", "cosine", "constant"]

#: Score that selects the best epoch.
Monitor: TypeAlias = Literal[
    "auto", "val_auroc", "val_loss", "val_accuracy", "val_balanced_accuracy", "val_f1"
]
MONITORS: tuple[str, ...] = get_args(Monitor)

#: Treatment of the running statistics of BatchNorm layers.
BatchStatistics: TypeAlias = Literal["auto", "keep", "update"]

#: Low-rank adapters of a frozen backbone.
Adapter: TypeAlias = Literal["lora"]

_RANK = 8
#: An update of a low-rank product takes about ten times the rate of one of the weights themselves (Schulman
#: et al., LoRA Without Regret, 2025).
_ADAPTER_RATE = 10.0

_WHOLE_NUMBERS: dict[str, int | None] = {
    "head_epochs": 0,
    "epochs": 0,
    "batch_size": 1,
    "accumulate": 1,
    "patience": 1,
    "grad_slices": 1,
    "rank": 1,
    "seed": None,
}
_NUMBERS: dict[str, dict[str, Any]] = {
    "lr": {"above": 0},
    "backbone_lr_scale": {"least": 0},
    "layer_decay": {"above": 0, "most": 1},
    "weight_decay": {"least": 0},
    "label_smoothing": {"least": 0, "below": 1},
    "mixup": {"least": 0},
    "ema": {"above": 0, "below": 1},
}
_OPTIONAL = {"patience", "grad_slices", "rank", "ema"}
_CHOICES: dict[str, tuple[object, ...]] = {
    "balance": BALANCES,
    "schedule": get_args(Schedule),
    "monitor": MONITORS,
    "gradual": (True, False),
    "batch_statistics": get_args(BatchStatistics),
    "adapter": (*get_args(Adapter), None),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class FineTuneConfig:
    """Settings of one training, checked; see :func:`medimg.fine_tune`."""

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
    adapter: Adapter | None = None
    rank: int | None = None
    seed: int = 0
    #: Values besides the built-in ones: "own" for a schedule, names of own scores for the monitor.
    own: InitVar[Collection[str]] = ()

    def __post_init__(self, own: Collection[str]) -> None:
        for name, least in _WHOLE_NUMBERS.items():
            if not (name in _OPTIONAL and getattr(self, name) is None):
                self._set(name, check_whole_number(name, getattr(self, name), least=least))
        for name, bounds in _NUMBERS.items():
            if not (name in _OPTIONAL and getattr(self, name) is None):
                self._set(name, check_number(name, getattr(self, name), **bounds))
        for name, choices in _CHOICES.items():
            more = tuple(own) if name in ("schedule", "monitor") else ()
            if not (more and getattr(self, name) in more):
                check_choice(name, getattr(self, name), (*choices, *more))
        if not self.head_epochs + self.epochs:
            raise TrainingError(
                "head_epochs and epochs are both 0, so nothing would be trained: raise one of them"
            )
        self._check_adapter()

    def _check_adapter(self) -> None:
        if self.adapter is None:
            if self.rank is not None:
                raise TrainingError(
                    f'rank={self.rank} is that of adapters, and adapter is None: pass adapter="lora", or '
                    "leave it out"
                )
            return
        if self.batch_statistics == "update":
            raise TrainingError(
                f'adapter={self.adapter!r} keeps the backbone frozen, and batch_statistics="update" changes '
                'its BatchNorm statistics: use "auto", or adapter=None'
            )
        self._set("rank", self.rank or _RANK)

    @property
    def backbone_lr(self) -> float:
        """Learning rate of the backbone's last stage, or of its adapters."""
        return self.lr * self.backbone_lr_scale * (1.0 if self.adapter is None else _ADAPTER_RATE)

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def to_dict(self) -> dict[str, Any]:
        """Return all settings by name, as JSON values."""
        return asdict(self)

    def differences(self, other: Mapping[str, Any]) -> list[str]:
        """Describe the settings that differ from those of another training, with both values."""
        own = self.to_dict()
        names = [f.name for f in fields(self)]
        return [f"{n}={own[n]!r}, before {other.get(n)!r}" for n in names if own[n] != other.get(n)]
