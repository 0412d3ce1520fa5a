"""States of optimizers and schedules as JSON values, which say where they can't be."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from medimg.errors import MedimgWarning

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["UNSAVED", "decode_state", "encode_state", "warn_unsaved"]

#: Result of a state that has other objects than numbers, texts, lists and dictionaries.
UNSAVED: Final = object()
_ITEMS, _COUNTS = "__items__", "__counts__"


def encode_state(state: Any) -> Any:
    """
    Return a state as JSON values, dictionaries with numbers as keys as lists of items; or `UNSAVED`.

    >>> decode_state(encode_state({"milestones": Counter({3: 1}), "lr": 0.1}))
    {'milestones': Counter({3: 1}), 'lr': 0.1}
    >>> encode_state({"function": print}) is UNSAVED
    True
    """
    try:
        return _encode(state)
    except TypeError:
        return UNSAVED


def _encode(state: Any) -> Any:
    """Return JSON values; TypeError if there are none for it."""
    if isinstance(state, list | tuple):
        return [_encode(one) for one in state]
    if isinstance(state, dict):
        items = [[name, _encode(value)] for name, value in state.items()]
        if isinstance(state, Counter):
            return {_COUNTS: items}
        if not all(isinstance(name, int | str) for name in state):
            raise TypeError
        return dict(items) if all(isinstance(name, str) for name in state) else {_ITEMS: items}
    if (
        state is None
        or isinstance(state, bool | int | str)
        or (isinstance(state, float) and math.isfinite(state))
    ):
        return state
    raise TypeError


def decode_state(state: Any) -> Any:
    """Return what `encode_state` was given; tuples are lists."""
    if isinstance(state, list):
        return [decode_state(one) for one in state]
    if not isinstance(state, dict):
        return state
    if state.keys() == {_COUNTS}:
        return Counter(dict(state[_COUNTS]))
    if state.keys() == {_ITEMS}:
        return {name: decode_state(value) for name, value in state[_ITEMS]}
    return {name: decode_state(value) for name, value in state.items()}


def warn_unsaved(names: Sequence[str]) -> None:
    """Warn that a training can't be resumed from the middle of a phase."""
    warnings.warn(
        f"the state of {', '.join(names)} has objects that no file holds: this training can be resumed only "
        "after a phase has ended",
        MedimgWarning,
        stacklevel=2,
    )
