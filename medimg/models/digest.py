"""What tells a model from every other one."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import nn

from medimg.models.safetensors_file import tensors_sha256

if TYPE_CHECKING:
    from collections.abc import Iterable

    from medimg.models.classifier import TransferClassifier

__all__ = ["SHOWN", "model_digest", "parameters_digest"]

#: How many digits of a digest stand in tables.
SHOWN: Final = 12

_Key = tuple[tuple[Any, ...], ...]
_known: WeakKeyDictionary[nn.Module, tuple[_Key, str]] = WeakKeyDictionary()


def parameters_digest(model: nn.Module) -> str:
    """
    Return the SHA-256 of all parameters and buffers, as a checkpoint has it.

    It is computed anew only after they changed, which is told by where they lie, torch's count of changes,
    and a sum of their bits.
    """
    state = model.state_dict()
    key = tuple(
        (name, t.data_ptr(), 0 if t.is_inference() else t._version, t.dtype, tuple(t.shape), total)
        for (name, t), total in zip(state.items(), _sums(state.values()), strict=True)
    )
    kept = _known.get(model)
    if kept is None or kept[0] != key:
        plain = {name: value.detach().cpu().contiguous() for name, value in state.items()}
        kept = _known[model] = key, tensors_sha256(plain)
    return kept[1]


def model_digest(model: TransferClassifier) -> str:
    """
    Return what tells a model from every other one that predicts otherwise: 64 hexadecimal digits.

    It covers parameters, architecture, classes, task, pooling, recipe and calibration, and not the versions
    of libraries, nor how the model was trained: a model has the same digest before it is saved and after
    it is loaded.

    Examples
    --------
    >>> from medimg import TransferClassifier
    >>> model = TransferClassifier("squeezenet1_1", classes=["a", "b"], weights=None)
    >>> before = model_digest(model)
    >>> with torch.no_grad():
    ...     _ = model.head.bias.add_(1)
    >>> len(before), model_digest(model) == before
    (64, False)
    """
    calibration = model.calibration
    outliers = calibration.outliers if calibration is not None else None
    facts = {
        "architecture": asdict(model.architecture),
        "classes": list(model.classes),
        "task": model.task,
        "pool": model.pool,
        "preprocess": model.preprocess.to_dict(),
        "parameters": parameters_digest(model),
        "calibration": calibration.to_dict() if calibration is not None else None,
        "outliers": tensors_sha256(outliers.tensors()) if outliers is not None else None,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _sums(tensors: Iterable[torch.Tensor]) -> list[int]:
    """Return a sum of the bits of each, which changes behind torch's back would change, too."""
    totals = []
    for tensor in tensors:
        raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
        raw = raw.clone() if raw.storage_offset() % 8 else raw
        whole = len(raw) - len(raw) % 8
        # by eights, which is as fast as memory is read
        words, rest = raw[:whole].view(torch.int64), raw[whole:].sum(dtype=torch.int64)
        # NumPy adds whole numbers ten times faster than torch does on a CPU
        total = int(np.add.reduce(words.numpy())) if words.device.type == "cpu" else words.sum()
        totals.append(rest + total)
    return [int(total) for total in totals]
