"""Bounds on what the configuration in a file lets a library build, checked before memory is allocated."""

from __future__ import annotations

import re
from contextlib import contextmanager
from itertools import chain
from threading import get_ident
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.nn.parameter import is_lazy

from medimg._validation import printable
from medimg.errors import TrainingError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["check_numbers", "count_values", "limited"]

_MOST: Final = 2**20  # of any number; vocabularies have 2**18
_MOST_LAYERS: Final = 1024  # of one kind; also the entries of a list, one for each layer
#: Fields that count layers, of which some have no parameters by which they are counted.
_LAYERS: Final = re.compile(r"(?:^|_)(?:layers?|depths?|blocks?|stages?|repeats?)$", re.IGNORECASE)
_MOST_PARTS: Final = 20_000  # layers and tensors; the largest networks have 5000
_MOST_VALUES: Final = 2**34  # 64 GB in 32 bits
_DEEPEST: Final = 20


def check_numbers(value: object, name: str, key: str = "", depth: int = 0) -> None:
    """Refuse whole numbers and lists, in a configuration, that no network has."""
    if depth > _DEEPEST:
        raise TrainingError(f"the configuration of {name} is nested deeper than {_DEEPEST} levels")
    most = _MOST_LAYERS if _LAYERS.search(key) else _MOST
    whole = [v for v in (value if isinstance(value, list | tuple) else (value,)) if isinstance(v, int)]
    if sum(map(abs, whole)) > most:
        raise TrainingError(
            f"the configuration of {name} has a {printable(key)} of more than {most:,}, which no network "
            "has: the file was changed"
        )
    if isinstance(value, list | tuple) and len(value) > _MOST_LAYERS:
        raise TrainingError(
            f"the configuration of {name} has {len(value):,} entries in {printable(key)}, expected at "
            f"most {_MOST_LAYERS:,}: the file was changed"
        )
    for inner in value if isinstance(value, list | tuple) else ():
        check_numbers(inner, name, key, depth + 1)
    for own, inner in value.items() if isinstance(value, dict) else ():
        check_numbers(inner, name, str(own), depth + 1)


def count_values(build: Callable[[], nn.Module], name: str) -> int:
    """Return the number of values of parameters and buffers of a network, built without memory."""
    with torch.device("meta"), limited(name):
        network = build()
    return sum(
        value.numel() for value in chain(network.parameters(), network.buffers()) if not is_lazy(value)
    )


@contextmanager
def limited(name: str) -> Iterator[None]:
    """End the building of a network in this thread as soon as it has more layers or values than any has."""
    thread, parts, values = get_ident(), 0, 0

    def count(_: nn.Module, __: str, part: object) -> None:
        nonlocal parts, values
        if get_ident() != thread:
            return
        parts += 1
        values += part.numel() if isinstance(part, Tensor) and not is_lazy(part) else 0
        if parts > _MOST_PARTS or values > _MOST_VALUES:
            what = (
                f"{_MOST_PARTS:,} layers and tensors" if parts > _MOST_PARTS else f"{_MOST_VALUES:,} values"
            )
            raise TrainingError(
                f"{name} has more than {what} by its configuration, which no network has: the file was "
                "changed"
            )

    hooks = [
        torch_module.register_module_module_registration_hook(count),
        torch_module.register_module_parameter_registration_hook(count),
        torch_module.register_module_buffer_registration_hook(count),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
