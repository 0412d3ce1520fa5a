"""Networks within the wrappers of torch.compile and of parallel training, which put names before theirs."""

from __future__ import annotations

import re
import warnings
from typing import TYPE_CHECKING, Final

from torch import nn

from medimg.errors import MedimgWarning

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import TypeVar

    _T = TypeVar("_T")

__all__ = ["is_wrapped", "plain_name", "plain_names", "unwrap"]

#: Names that torch.compile, checkpointing and FSDP put between others.
_BETWEEN: Final = re.compile(r"(?:(?<=\.)|^)_(?:orig_mod|fsdp_wrapped_module|checkpoint_wrapped_module)\.")
_PARALLEL: Final = (nn.DataParallel, nn.parallel.DistributedDataParallel)


def is_wrapped(network: nn.Module) -> bool:
    """Whether a network, or a part of it, is compiled by ``torch.compile`` or wrapped for several devices."""
    return any(_find_inner(one) is not None for one in network.modules())


def unwrap(network: nn.Module, *, warned: bool = True) -> nn.Module:
    """
    Return the network without wrappers, and take those of its parts away, in place.

    Names, parameters and outputs are those of the network before; a warning says that it is not compiled.
    """
    if not is_wrapped(network):
        return network
    if warned:
        warnings.warn(
            "the network is wrapped by torch.compile or for several devices, and is taken without its "
            "wrapper, so that its file fits the network itself: pass fine_tune(compile=True), or call "
            "model.backbone.compile(), which keeps the names",
            MedimgWarning,
            stacklevel=3,
        )
    found = _take_inner(network)
    for module in list(found.modules()):
        for name, child in module._modules.items():  # a shared one has several names
            if child is not None:
                module._modules[name] = _take_inner(child)
    return found


def plain_name(name: str) -> str:
    """
    Return the name of a tensor without those of the wrappers of ``torch.compile``, checkpointing and FSDP.

    Examples
    --------
    >>> plain_name("backbone._orig_mod.layer1._orig_mod.0.weight")
    'backbone.layer1.0.weight'
    """
    return _BETWEEN.sub("", name)


def plain_names(tensors: Mapping[str, _T]) -> dict[str, _T]:
    """Return tensors by their plain names."""
    return {plain_name(name): value for name, value in tensors.items()}


def _take_inner(module: nn.Module) -> nn.Module:
    """Return what is within all wrappers around a module."""
    while (inner := _find_inner(module)) is not None:
        module = inner
    return module


def _find_inner(module: nn.Module) -> nn.Module | None:
    """Return the module that a wrapper holds; None for any other module."""
    # torch._dynamo, which has the class of compiled modules, takes seconds to import
    return module._modules.get("module" if isinstance(module, _PARALLEL) else "_orig_mod")
