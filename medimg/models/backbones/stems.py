"""The stem of a network: its first convolution, and its weights folded to one channel."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from medimg.errors import TrainingError
from medimg.models.backbones.heads import replace_layer

__all__ = ["fold_stem", "fold_weight", "input_channels"]


def input_channels(network: nn.Module) -> int:
    """Return the channels that the first convolution of a network takes: 1, or 3."""
    first = next((m for m in network.modules() if isinstance(m, nn.Conv2d)), None)
    return 1 if first is not None and first.in_channels == 1 else 3


def fold_stem(network: nn.Module, name: str) -> None:
    """
    Let a network of three channels take one, in place.

    The weights of its first convolution are summed over the channels: the output is that for three equal
    channels.
    """
    found = [(n, m) for n, m in network.named_modules() if isinstance(m, nn.Conv2d) and m.in_channels == 3]
    found = [(n, m) for n, m in found if n and m.groups == 1][:1]
    if not found or getattr(network, "transform_input", False):
        reason = "transforms its three channels" if found else "has no convolution of three channels"
        raise TrainingError(
            f"{name} {reason}, so that it can't take images of one: use in_channels=None, with which the one "
            "channel is repeated"
        )
    ((stem_name, stem),) = found
    # a subclass, such as one with weight standardization or padding of its own, stays what it is
    stem.in_channels = 1
    stem.weight = nn.Parameter(_fold(stem.weight.detach()), requires_grad=stem.weight.requires_grad)
    replace_layer(network, stem_name, stem)
    _state_one_channel(network, stem_name)


def _state_one_channel(network: nn.Module, stem_name: str) -> None:
    """Correct the number of channels that the modules around a folded stem state, as transformers' do."""
    parts = stem_name.split(".")[:-1]
    around = [network.get_submodule(".".join(parts[:n])) for n in range(len(parts) + 1)]
    for stated in (*around, *(getattr(module, "config", None) for module in around)):
        if stated is not None and getattr(stated, "num_channels", None) == 3:
            stated.num_channels = 1


def fold_weight(own: Tensor, value: Tensor) -> Tensor:
    """Return a tensor of a file, folded if the network's takes one channel, and the file's three."""
    one_channel = own.ndim == 4 and own.shape[1] == 1
    return _fold(value) if one_channel and value.shape == (len(own), 3, *own.shape[2:]) else value


def _fold(weight: Tensor) -> Tensor:
    """Return the sum of weights (O, 3, h, w) over the channels, (O, 1, h, w)."""
    return torch.sum(weight, dim=1, keepdim=True)
