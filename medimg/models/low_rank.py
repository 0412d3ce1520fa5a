"""Low-rank adapters (LoRA) of the linear and attention layers of a backbone, and how they are merged."""

from __future__ import annotations

import copy
from collections import Counter
from functools import wraps
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final, NamedTuple, ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from medimg.errors import TrainingError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from medimg.models.classifier import TransferClassifier

__all__ = [
    "AdaptedLayers",
    "LowRank",
    "add_adapters",
    "count_adapters",
    "has_adapters",
    "merge_adapters",
    "merged_copy",
    "merges_adapters",
]

_P = ParamSpec("_P")
_R = TypeVar("_R")
_Module = TypeVar("_Module", bound=nn.Module)

#: Numerator of the scale of an update, divided by its rank: the best rate then hardly depends on the rank.
_ALPHA: Final = 16.0
_ATTENTION_WEIGHTS: Final = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


class AdaptedLayers(NamedTuple):
    """Number of weight matrices that have an adapter, and of the parameters of all adapters."""

    matrices: int
    parameters: int


class LowRank(nn.Module):
    """
    A weight (out, in) plus the product of two trainable matrices (out, rank) and (rank, in).

    Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, ICLR 2022. It is a parametrization of the
    weight itself, not a layer beside it, as attention layers read weights without calling the layer, and
    merging then computes the very weights of the training.
    """

    def __init__(self, weight: Tensor, rank: int, generator: torch.Generator, *, position: int = 0) -> None:
        super().__init__()
        #: Of the weight among the parameters of its layer.
        self.position = position
        outputs, inputs = weight.shape
        bound = inputs**-0.5
        down = torch.empty(rank, inputs).uniform_(-bound, bound, generator=generator)
        self.down = nn.Parameter(down.to(weight))
        self.up = nn.Parameter(weight.new_zeros(outputs, rank))
        self.scale = _ALPHA / rank

    def forward(self, weight: Tensor) -> Tensor:
        """Return the adapted weight (out, in), in the precision of the weight under autocast too."""
        with torch.autocast(weight.device.type, enabled=False):
            return torch.addmm(weight, self.up, self.down, alpha=self.scale)


def add_adapters(model: TransferClassifier, rank: int, seed: int) -> AdaptedLayers:
    """
    Freeze a backbone, except for new adapters of its linear and attention layers that were trainable.

    The outputs stay the same. A layer of which an adapter would not be smaller than its weight gets none, nor
    does one that shares its weight with another.
    """
    body = model.backbone
    found = list(_find_matrices(body))
    chosen = [one for one in found if rank * sum(one.weight.shape) < one.weight.numel()]
    if not chosen:
        raise TrainingError(_explain_unsuitable(model, rank, [one.weight for one in found]))
    body.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    positions = [list(one.layer._parameters).index(one.name) for one in chosen]
    for (layer, name, weight), position in zip(chosen, positions, strict=True):
        adapter = LowRank(weight, rank, generator, position=position)
        parametrize.register_parametrization(layer, name, adapter)
    return count_adapters(body)


class _Matrix(NamedTuple):
    layer: nn.Module
    name: str
    weight: nn.Parameter


def _find_matrices(body: nn.Module) -> Iterator[_Matrix]:
    """Yield the trainable weight matrices of linear and attention layers."""
    uses = Counter(
        id(parameter)
        for module in body.modules()
        for parameter in module._parameters.values()
        if parameter is not None
    )
    for layer in body.modules():
        if parametrize.is_parametrized(layer):
            continue
        names: tuple[str, ...] = ("weight",) if isinstance(layer, nn.Linear) else ()
        names = _ATTENTION_WEIGHTS if isinstance(layer, nn.MultiheadAttention) else names
        for name in names:
            weight = layer._parameters.get(name)
            if weight is not None and weight.requires_grad and uses[id(weight)] == 1:
                yield _Matrix(layer, name, weight)


def _explain_unsuitable(model: TransferClassifier, rank: int, weights: list[nn.Parameter]) -> str:
    if weights:
        widest = max(weights, key=lambda weight: weight.numel() / sum(weight.shape))
        most = (widest.numel() - 1) // sum(widest.shape)
        return (
            f"rank={rank} is too large: adapters of that rank would not be smaller than the weights of "
            f"{model.backbone_name}; expected at most {most}"
            if most
            else f"the linear layers of {model.backbone_name} are too small for adapters: use adapter=None"
        )
    linear = any(isinstance(layer, nn.Linear | nn.MultiheadAttention) for layer in model.backbone.modules())
    if linear:
        return (
            f'adapter="lora" found no linear or attention layer of {model.backbone_name} that is not frozen: '
            "call model.unfreeze(), or freeze fewer stages"
        )
    return (
        f'adapter="lora" needs linear or attention layers, and {model.backbone_name} has none: use a vision '
        "transformer, or adapter=None"
    )


def has_adapters(module: nn.Module) -> bool:
    """Whether a layer of a network has an adapter."""
    return any(isinstance(one, LowRank) for one in module.modules())


def count_adapters(module: nn.Module) -> AdaptedLayers:
    """Count the adapters of a network."""
    several = [one for one in module.modules() if isinstance(one, LowRank)]
    return AdaptedLayers(len(several), sum(p.numel() for one in several for p in one.parameters()))


def merge_adapters(module: nn.Module) -> None:
    """Replace adapted weights by their values, in place, and remove the adapters."""
    for layer in [one for one in module.modules() if parametrize.is_parametrized(one)]:
        several: Any = layer.parametrizations
        if any(isinstance(one, LowRank) for each in several.values() for one in each):
            _merge(layer)


@torch.no_grad()
def _merge(layer: nn.Module) -> None:
    """Make a layer what it was before it had adapters, with the sum as its weight."""
    several: Any = layer.parametrizations
    weights = []
    for name, (adapter,) in several.items():
        weight = several[name].original
        # an update of 0 would turn -0.0 into 0.0
        if bool(adapter.up.any()):
            weight.copy_(adapter(weight))
        weights.append((adapter.position, name, weight))
    # not remove_parametrizations: a copy of the layer shares its class, from which that deletes the weight
    del layer._modules["parametrizations"]
    layer.__class__ = type(layer).__bases__[0]
    items = list(layer._parameters.items())
    for position, name, weight in sorted(weights, key=itemgetter(0)):
        items.insert(position, (name, weight))
    layer._parameters.clear()
    layer._parameters.update(items)


def merged_copy(model: _Module) -> _Module:
    """Return a copy with merged adapters; the model itself if it has none."""
    if not has_adapters(model):
        return model
    copied = copy.deepcopy(model)
    merge_adapters(copied)
    return copied


def merges_adapters(train: Callable[_P, _R]) -> Callable[_P, _R]:
    """
    Merge the adapters that a function added to its first argument `model`, even if it fails.

    Parameters are then frozen or not as they were before.
    """

    @wraps(train)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        model = args[0] if args else kwargs.get("model")
        if not isinstance(model, nn.Module):
            return train(*args, **kwargs)
        before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
        try:
            return train(*args, **kwargs)
        finally:
            if has_adapters(model):
                merge_adapters(model)
                for parameter, trainable in before:
                    parameter.requires_grad_(trainable)

    return call
