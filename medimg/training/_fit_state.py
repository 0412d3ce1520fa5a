"""State of a fit under way: optimizer, learning-rate schedule, gradient scaling and callbacks."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from medimg.errors import CheckpointError, MedimgWarning

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

__all__ = ["FitState"]


@dataclass(frozen=True, slots=True)
class FitState:
    """State of one fit, between two of its epochs."""

    #: State of each parameter, by "<number>.<name>".
    optimizer: dict[str, Tensor] = field(repr=False)
    groups: list[dict[str, Any]]
    schedule: dict[str, Any]
    precision: dict[str, Any]
    callbacks: dict[str, Any]

    @classmethod
    def capture(cls, trainer: Any) -> FitState:
        """Return the state of a Lightning trainer."""
        optimizer = trainer.optimizers[0].state_dict()
        return cls(
            optimizer={
                f"{number}.{name}": value
                for number, values in optimizer["state"].items()
                for name, value in values.items()
            },
            groups=optimizer["param_groups"],
            schedule=trainer.lr_scheduler_configs[0].scheduler.state_dict(),
            precision=trainer.precision_plugin.state_dict(),
            callbacks={
                key: _to_json(callback.state_dict(), type(callback).__name__)
                for key, callback in _key_callbacks(trainer.callbacks)
            },
        )

    def restore_optimizer(self, optimizer: torch.optim.Optimizer, schedule: Any) -> None:
        """Restore optimizer and schedule."""
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in self.optimizer.items():
            number, _, name = key.partition(".")
            state.setdefault(int(number), {})[name] = value
        optimizer.load_state_dict({"state": state, "param_groups": self.groups})
        schedule.load_state_dict(self.schedule)

    def restore_callbacks(self, trainer: Any) -> None:
        """Restore gradient scaling and callbacks of a Lightning trainer."""
        trainer.precision_plugin.load_state_dict(self.precision)
        for key, callback in _key_callbacks(trainer.callbacks):
            state = _from_json(self.callbacks.get(key))
            if state:
                callback.load_state_dict(state)


def _key_callbacks(callbacks: Sequence[Any]) -> list[tuple[str, Any]]:
    """Return callbacks with keys that are the same in another process, whatever comes between them."""
    counts: Counter[str] = Counter()
    keyed = []
    for callback in callbacks:
        key = str(callback.state_key)
        keyed.append((f"{key} {counts[key]}", callback))
        counts[key] += 1
    return keyed


def _to_json(state: Any, name: str) -> Any:
    """Return a callback's state in JSON's types, tensors as lists; None, with a warning, if it has others."""

    def encode(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return {"tensor": value.tolist(), "dtype": str(value.dtype).removeprefix("torch.")}
        raise TypeError

    try:
        return json.loads(json.dumps(state, default=encode))
    except TypeError:
        warnings.warn(
            f"the state of {name} can't be saved as JSON: after resume= it starts from its initial state",
            MedimgWarning,
            stacklevel=2,
        )
        return None


def _from_json(state: Any) -> Any:
    """Return what ``_to_json`` was given, tensors included."""
    if isinstance(state, dict):
        if state.keys() == {"tensor", "dtype"}:
            dtype = getattr(torch, str(state["dtype"]), None)
            if not isinstance(dtype, torch.dtype):
                raise CheckpointError(f"the state has a dtype that torch does not know: {state['dtype']!r}")
            return torch.tensor(state["tensor"], dtype=dtype)
        return {name: _from_json(value) for name, value in state.items()}
    return [_from_json(value) for value in state] if isinstance(state, list) else state
