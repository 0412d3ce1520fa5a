"""Processes of a distributed training: which one writes, and what the others take over from it."""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

import torch

from medimg.errors import MedimgError, TrainingError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = [
    "Launched",
    "Processes",
    "count_processes",
    "find_launched",
    "find_local_rank",
    "is_main_process",
    "lost_processes",
]

_T = TypeVar("_T")

#: What errors of gloo and NCCL contain when a process has ended.
_LOST: Final = (
    "connection closed by peer",
    "connection reset by peer",
    "connection was likely closed",
    "broken pipe",
    "remote process exited",
    "timed out waiting",
)


def is_main_process() -> bool:
    """Return whether this process writes files, as far as launchers of several processes tell."""
    if _has_group():
        return torch.distributed.get_rank() == 0
    names = ["LOCAL_RANK", "RANK", *(["SLURM_PROCID"] if _is_slurm() else [])]
    return all(os.environ.get(name, "0") == "0" for name in names)


def _has_group() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def find_local_rank() -> int:
    """Return the number of this process among those of its computer, as its launcher states."""
    name = "SLURM_LOCALID" if _is_slurm() and "LOCAL_RANK" not in os.environ else "LOCAL_RANK"
    text = os.environ.get(name, "0")
    return int(text) if text.isdecimal() else 0


class Launched(NamedTuple):
    """Number of processes that a launcher has started on each computer, and of computers."""

    devices: int = 1
    nodes: int = 1


def find_launched() -> Launched:
    """Return what ``torchrun`` or SLURM state of the processes that they started; else one of each."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        each = _read_count("LOCAL_WORLD_SIZE")
        return Launched(each, max(1, _read_count("WORLD_SIZE") // each))
    if _is_slurm():
        nodes = _read_count("SLURM_NNODES")
        return Launched(max(1, _read_count("SLURM_NTASKS") // nodes), nodes)
    return Launched()


def _is_slurm() -> bool:
    """Whether ``srun`` has started this process, as Lightning finds it: interactive jobs don't count."""
    return "SLURM_NTASKS" in os.environ and os.environ.get("SLURM_JOB_NAME") not in ("bash", "interactive")


def _read_count(name: str) -> int:
    text = os.environ.get(name, "1")
    return max(1, int(text)) if text.isdecimal() else 1


@contextmanager
def lost_processes() -> Iterator[None]:
    """Raise TrainingError if another process has ended, so that this one waits for it in vain."""
    try:
        yield
    except RuntimeError as error:
        message = str(error).lower()
        lost = _has_group() and any(one in message for one in _LOST)
        if isinstance(error, MedimgError) or not lost:
            raise
        raise TrainingError(
            "another process of this training has ended, or can't be reached any more: find its error above "
            "or in its log, and start all of them again; with output= and resume=True the training goes on "
            "after the last epoch"
        ) from error


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
        launched = find_launched()
        nodes = arguments.get("num_nodes", "auto")
        if nodes == "auto":
            nodes = launched.nodes
        devices = arguments.get("devices", "auto")
        each = launched.devices if devices == "auto" else count_processes(devices)
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
        with lost_processes():
            torch.distributed.broadcast_object_list(found, src=0)
        return found[0]
