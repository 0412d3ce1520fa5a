"""Processes of a distributed training: which one writes, and what the others take over from it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

__all__ = ["Processes", "count_processes", "is_main_process"]

_T = TypeVar("_T")


def is_main_process() -> bool:
    """Return whether this process writes files, as far as launchers of several processes tell."""
    if _has_group():
        return torch.distributed.get_rank() == 0
    return os.environ.get("LOCAL_RANK", "0") == "0" and os.environ.get("RANK", "0") == "0"


def _has_group() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def count_processes(devices: object) -> int:
    """Return the number of processes of one computer, each with batches of its own."""
    if isinstance(devices, list | tuple):
        return len(devices)
    text = str(devices)
    if text in ("-1", "auto"):
        return max(1, torch.cuda.device_count())
    return int(text) if text.isdecimal() else text.count(",") + 1


@dataclass(frozen=True, slots=True)
class Processes:
    """
    The processes of one training; they run the same code, and go on together after it.

    Examples
    --------
    >>> Processes.of({"devices": 2}).count
    2
    >>> Processes.of({}).share("alone")
    'alone'
    """

    count: int = 1

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> Processes:
        """Return those that ``fine_tune`` with these arguments has, of which none is checked yet."""
        more = arguments.get("trainer_kwargs")
        nodes = more.get("num_nodes", 1) if isinstance(more, Mapping) else 1
        devices = arguments.get("devices", "auto")
        each = 1 if devices == "auto" else count_processes(devices)
        return cls(each * (nodes if isinstance(nodes, int) else 1))

    @property
    def is_main(self) -> bool:
        """Whether this one writes files."""
        return is_main_process()

    def share(self, value: _T) -> _T:
        """Return the value of the main process, which the others wait for."""
        # a group that others have made is no concern of a training by one process
        if self.count == 1 or not _has_group():
            return value
        found = [value]
        torch.distributed.broadcast_object_list(found, src=0)
        return found[0]
