"""Models that the processes of a training divide between them (FSDP): parameters, gradients, optimizer."""

from __future__ import annotations

import copy
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn

from medimg.errors import TrainingError
from medimg.models.backbones.stages import split_stages
from medimg.models.module_mode import module_mode

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from medimg.models.classifier import TransferClassifier
    from medimg.training._config import FineTuneConfig

__all__ = [
    "Sharding",
    "check_sharding",
    "copy_whole",
    "gathered",
    "is_sharded",
    "reshard",
    "shard_like",
    "whole_tensors",
]

#: Parts with a smaller share of the backbone's parameters are gathered with the rest: each costs a message.
_LEAST_SHARE: Final = 1 / 64


@dataclass(frozen=True, slots=True)
class Sharding:
    """How models are divided: each process has its share of every parameter, and all of the buffers."""

    #: Whether batch normalization uses the batch of all processes.
    sync_batchnorm: bool = False

    def copy_sharded(self, model: TransferClassifier, mesh: Any) -> TransferClassifier:
        """Return a copy of a model, divided between the devices of `mesh`; every process takes part."""
        # torch can't make a divided network whole again
        sharded = copy.deepcopy(model)
        sharded.to(memory_format=torch.contiguous_format)
        if self.sync_batchnorm:
            convert: Any = nn.SyncBatchNorm.convert_sync_batchnorm
            sharded = convert(sharded)
        self.shard(sharded, mesh)
        self._check_forward(sharded)
        return sharded

    def shard(self, model: TransferClassifier, mesh: Any) -> None:
        """Divide a model, in place."""
        from torch.distributed.fsdp import fully_shard

        others = [child for name, child in model.named_children() if name != "backbone"]
        for part in (*find_parts(model.backbone), model.backbone, *others):
            if next(part.parameters(), None) is not None:
                part.register_forward_hook(_copy_views)
                fully_shard(part, mesh=mesh)
        for module in _sharded_modules(model):
            # gloo of torch 2.8 takes an average for a sum, without a word
            module.set_force_sum_reduction_for_comms(True)

    def _check_forward(self, model: TransferClassifier) -> None:
        """Raise TrainingError if a network uses parameters of a part without calling it."""
        device = next(model.parameters()).device
        images = torch.zeros(2, *model.preprocess.image_shape, device=device)
        try:
            with module_mode(model, training=False), torch.no_grad():
                model(images)
        except RuntimeError as error:
            if "DTensor" not in str(error):
                raise
            raise TrainingError(
                f'strategy="fsdp" can\'t divide {model.backbone_name}: it uses parameters of its parts '
                'without calling them, so that they are not gathered; use strategy="ddp"'
            ) from error
        finally:
            reshard(model)


def _copy_views(part: nn.Module, inputs: Any, output: Any) -> Any:
    """Return an output that isn't a view: in-place operations on one would drop the hook that gathers."""
    if isinstance(output, tuple | list):
        return type(output)(_copy_views(part, inputs, one) for one in output)
    if isinstance(output, Tensor) and output.requires_grad and output._is_view():
        return output.clone()
    return output


def find_parts(backbone: nn.Module) -> list[nn.Module]:
    """
    Return the parts of a network that are gathered one after the other, such as the blocks of a transformer.

    >>> from torchvision.models import resnet50
    >>> [type(part).__name__ for part in find_parts(resnet50())][:3], len(find_parts(resnet50()))
    (['Bottleneck', 'Bottleneck', 'Bottleneck'], 10)
    """
    modules = chain.from_iterable(stage.modules for stage in split_stages(backbone))
    parts = list(chain.from_iterable(_open(module) for _, module in modules))
    least = _LEAST_SHARE * sum(parameter.numel() for parameter in backbone.parameters())
    parts = [part for part in parts if sum(p.numel() for p in part.parameters()) >= least]
    return [] if _share_parameters(backbone, parts) else parts


def _open(module: nn.Module) -> Iterator[nn.Module]:
    """Yield a module; of a list or sequence, its members."""
    if isinstance(module, nn.ModuleList) or type(module).forward is nn.Sequential.forward:
        for child in module.children():
            yield from _open(child)
    else:
        yield module


def _share_parameters(backbone: nn.Module, parts: Sequence[nn.Module]) -> bool:
    """Whether a parameter of a part belongs to something else, too."""
    inside = {id(module) for part in parts for module in part.modules()}
    rest = [module for module in backbone.modules() if id(module) not in inside]
    owned = [{id(p) for module in rest for p in module.parameters(recurse=False)}]
    owned += [{id(p) for p in part.parameters()} for part in parts]
    return sum(map(len, owned)) != len(set().union(*owned))


def check_sharding(
    sharding: Sharding | None,
    model: TransferClassifier,
    config: FineTuneConfig,
    *,
    adapts: bool,
    compiled: bool,
    channels_last: bool | str,
    precision: object,
) -> None:
    """Raise TrainingError if a model is to be divided, and it or a setting does not allow that."""
    if sharding is None:
        return
    scalars = [name for name, parameter in model.named_parameters() if parameter.ndim == 0]
    reasons: dict[str, tuple[bool, str]] = {
        "adapt": (adapts, "methods of adaptation use the network outside of the steps that gather its parts"),
        f"adapter={config.adapter!r}": (
            config.adapter is not None,
            "it trains few parameters, whose optimizer is small without being divided",
        ),
        "compile=True": (compiled, "compiled networks don't call the parts that are gathered"),
        "channels_last=True": (channels_last is True, "only contiguous parameters can be divided"),
        f"grad_slices={config.grad_slices}": (
            config.grad_slices is not None,
            "processes with bags of other lengths would gather the network at other times",
        ),
        f"precision={precision!r}": (
            str(precision).startswith("16"),
            'gradients in 16 bits are scaled, which needs all of them: use "bf16-mixed" or 32',
        ),
        f"the parameter {next(iter(scalars), '')}": (bool(scalars), "a single number can't be divided"),
    }
    for name, (found, why) in reasons.items():
        if found:
            raise TrainingError(
                f'strategy="fsdp" can\'t be combined with {name}: {why}; leave it out, or use strategy="ddp"'
            )


def reshard(model: nn.Module) -> None:
    """Free the parameters that a process has gathered from the others."""
    for module in _sharded_modules(model):
        module.reshard()


@contextmanager
def gathered(backbone: nn.Module) -> Iterator[None]:
    """Hold a divided network whole, for any number of passes without gradients; every process takes part."""
    modules = _sharded_modules(backbone)
    for module in modules:
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    try:
        yield
    finally:
        for module in modules:
            module.set_reshard_after_forward(module is not backbone, recurse=False)
            module.reshard()


def _sharded_modules(model: nn.Module) -> list[Any]:
    from torch.distributed.fsdp import FSDPModule

    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def is_sharded(model: nn.Module) -> bool:
    """Whether a model, or a part of it, is divided."""
    return bool(_sharded_modules(model))


def _is_share(value: object) -> bool:
    from torch.distributed.tensor import DTensor

    return isinstance(value, DTensor)


def whole_tensors(values: Mapping[str, Tensor], *, keep: bool = True) -> dict[str, Tensor]:
    """
    Return tensors whole and on the CPU, gathered from every process, all of which take part.

    Without `keep` a process gets none: one at a time is whole.
    """
    found = {}
    for name, value in values.items():
        whole: Any = value.detach()
        if _is_share(whole):
            whole = whole.full_tensor()
        if keep:
            found[name] = whole.to("cpu", copy=True)
    return found


def copy_whole(source: nn.Module, target: nn.Module) -> None:
    """Give a whole model the tensors of a divided one; every process takes part."""
    own = target.state_dict()
    for name, value in source.state_dict().items():
        own[name].copy_(whole_tensors({name: value})[name])


def shard_like(value: Tensor, parameter: Tensor) -> Tensor:
    """Return this process's share of a whole tensor of an optimizer's state, if its parameter is divided."""
    if value.shape != parameter.shape or not _is_share(parameter):
        return value
    from torch.distributed.tensor import distribute_tensor

    shared: Any = parameter
    return distribute_tensor(
        value.to(shared.device), shared.device_mesh, shared.placements, src_data_rank=None
    )
