"""Digests of tensors, of a network's parameters, of a backbone, and of a model as a whole."""

from __future__ import annotations

from dataclasses import asdict
from itertools import chain
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import nn

from medimg.core.content_hash import content_hash, json_text
from medimg.models.backbones.compiled import plain_names
from medimg.models.backbones.source import library_version
from medimg.preprocessing.preprocess import UNSTATED_REVISION

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from torch import Tensor

    from medimg.core.content_hash import Buffer
    from medimg.models.classifier import TransferClassifier
    from medimg.preprocessing.preprocess import Preprocess

__all__ = ["SHOWN", "members_digest", "model_digest", "network_digest", "parameters_digest", "tensors_sha256"]

#: Digits of a digest in tables.
SHOWN: Final = 12

_Key = tuple[tuple[Any, ...], ...]
_known: WeakKeyDictionary[nn.Module, tuple[_Key, str]] = WeakKeyDictionary()


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of tensors on the CPU: name, dtype, shape and bytes of each, ordered by name."""

    def parts() -> Iterator[Buffer]:
        for name in sorted(tensors):
            tensor = tensors[name]
            yield f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0"
            yield _raw_bytes(tensor).numpy().data

    return content_hash(parts())


def parameters_digest(model: nn.Module) -> str:
    """
    Return the SHA-256 of all parameters and buffers, as it is stored in a checkpoint.

    It is computed again only if they changed: their addresses, torch's version counters or the sums of their
    bits.
    """
    state = plain_names(model.state_dict())
    key = tuple(
        (name, t.data_ptr(), 0 if t.is_inference() else t._version, t.dtype, tuple(t.shape), total)
        for (name, t), total in zip(state.items(), _sum_bits(state.values()), strict=True)
    )
    kept = _known.get(model)
    if kept is None or kept[0] != key:
        plain = {name: value.detach().cpu().contiguous() for name, value in state.items()}
        kept = _known[model] = key, tensors_sha256(plain)
    return kept[1]


def network_digest(model: TransferClassifier) -> str:
    """
    Return the SHA-256 of a backbone: architecture, layers with their settings, parameters and buffers.

    The code of a registered network's forward method is not covered: its author gives it another name when
    that changes.

    Examples
    --------
    >>> from medimg import TransferClassifier
    >>> model = TransferClassifier("squeezenet1_1", classes=["a", "b"], weights=None)
    >>> before = network_digest(model)
    >>> nn.init.ones_(model.backbone.features[0].bias).sum().item()
    64.0
    >>> network_digest(model) == before
    False
    """
    body = model.backbone

    def parts() -> Iterator[Buffer]:
        facts: list[Any] = [
            _describe_architecture(model),
            f"{type(body).__module__}.{type(body).__qualname__}",
            repr(body),
        ]
        if model.backbone_library is not None:  # its code may change
            facts.append(library_version(model.backbone_library))
        yield json_text(facts, default=repr)
        for name, value in chain(body.named_parameters(), body.named_buffers()):
            yield f"{name} {value.dtype} {tuple(value.shape)}"
            yield _raw_bytes(value.detach().cpu().contiguous()).numpy().data

    return content_hash(parts())


def model_digest(model: TransferClassifier) -> str:
    """
    Return the SHA-256 of all that predictions depend on, the same before a model is saved and after loading.

    It covers parameters, architecture, classes, task, pooling, preprocessing and calibration; not the
    versions of libraries, nor how the model was trained.

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
    members = getattr(model, "members", ())
    facts = {
        "architecture": [model_digest(one) for one in members] or model.architecture.to_dict(),
        "classes": list(model.classes),
        "task": model.task,
        "pool": model.pool,
        "preprocess": _recipe_facts(model.preprocess),
        "parameters": parameters_digest(model),
        "calibration": calibration.to_dict() if calibration is not None else None,
        "outliers": tensors_sha256(outliers.tensors()) if outliers is not None else None,
    }
    return content_hash(json_text(facts))


def members_digest(model: TransferClassifier) -> str:
    """Return the SHA-256 of how the probabilities of an ensemble's members are calibrated; "" without any."""
    maps = [one.calibration and asdict(one.calibration.logit_map) for one in getattr(model, "members", ())]
    return content_hash(json_text(maps)) if maps else ""


def _describe_architecture(model: TransferClassifier) -> Any:
    """Return the fields of an architecture, or of those of the members of an ensemble."""
    members = getattr(model, "members", ())
    return [one.architecture.to_dict() for one in members] or model.architecture.to_dict()


def _recipe_facts(recipe: Preprocess) -> dict[str, Any]:
    """Return the fields of a recipe, without a revision that was not yet among them."""
    facts = recipe.to_dict()
    if recipe.revision == UNSTATED_REVISION:
        del facts["revision"]
    return facts


def _raw_bytes(tensor: Tensor) -> Tensor:
    """Return the bytes of a contiguous tensor as a uint8 view."""
    return tensor.reshape(-1).view(torch.uint8)


def _sum_bits(tensors: Iterable[Tensor]) -> list[int]:
    """Return a sum of the bits of each tensor; it detects changes that torch's version counters miss."""
    totals = []
    for tensor in tensors:
        raw = _raw_bytes(tensor.detach().contiguous())
        raw = raw.clone() if raw.storage_offset() % 8 else raw
        whole = len(raw) - len(raw) % 8
        # eight bytes at a time, at the speed of memory
        words, rest = raw[:whole].view(torch.int64), raw[whole:].sum(dtype=torch.int64)
        # on a CPU, NumPy adds integers ten times faster than torch
        total = int(np.add.reduce(words.numpy())) if words.device.type == "cpu" else words.sum()
        totals.append(rest + total)
    return [int(total) for total in totals]
