"""Pretrained weights into a network without its head."""

from __future__ import annotations

import re
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

import torch

from medimg.errors import WeightsUnavailableError

if TYPE_CHECKING:
    from torch import Tensor

    from medimg.learn.backbones import Parts

__all__ = ["load_body"]

_AUXILIARY: Final = ("aux1.", "aux2.", "AuxLogits.")
# torchvision's own first DenseNet files spell "norm.1" for "norm1"
_OLD_DENSENET: Final = re.compile(r"^(.*denselayer\d+\.(?:norm|conv))\.([12]\.\w+)$")


def load_body(parts: Parts, state: OrderedDict[str, Tensor], *, backbone: str, source: str) -> None:
    """
    Load pretrained weights into a body; those of the head, of whatever size, are left out.

    Parameters
    ----------
    parts : Parts
        The network; its body is changed.
    state : OrderedDict of str to Tensor
        The state dict of the whole network.
    backbone, source : str
        What to call the network and the weights in a message.

    Raises
    ------
    WeightsUnavailableError
        If names or shapes don't fit, or a value is not finite.
    """
    left_out = (f"{parts.head_name}.", *_AUXILIARY)
    wanted = OrderedDict(
        (_OLD_DENSENET.sub(r"\1\2", name), value)
        for name, value in state.items()
        if not name.startswith(left_out)
    )
    # without versions the oldest are assumed, which MNASNet refuses
    metadata = getattr(state, "_metadata", None) or {"": {"version": parts.body._version}}
    wanted._metadata = metadata  # type: ignore[attr-defined]  # set by torch, and untyped
    _check_fit(parts.body.state_dict(), wanted, backbone, source)
    parts.body.load_state_dict(wanted, strict=False)  # strictness is _check_fit's, which can name the causes


def _check_fit(own: dict[str, Tensor], found: dict[str, Tensor], backbone: str, source: str) -> None:
    # files from before 2018 don't count batches, and nothing here depends on the count
    missing = [n for n in own if n not in found and not n.endswith("num_batches_tracked")]
    unexpected = [n for n in found if n not in own]
    shapes = [
        f"{n} {tuple(found[n].shape)} instead of {tuple(own[n].shape)}"
        for n in own
        if n in found and found[n].shape != own[n].shape
    ]
    kinds = [
        f"{n} {found[n].dtype}"
        for n in own
        if n in found and found[n].is_floating_point() != own[n].is_floating_point()
    ]
    problems = [
        f"{len(names)} {kind} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for kind, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", shapes),
            ("of another type", kinds),
        )
        if names
    ]
    if problems:
        raise WeightsUnavailableError(
            f"the weights {source} are not those of a {backbone}: {'; '.join(problems)}. Pass the backbone "
            "they were made for, or other weights"
        )
    broken = [n for n, v in found.items() if v.is_floating_point() and not bool(torch.isfinite(v).all())]
    if broken:
        raise WeightsUnavailableError(
            f"the weights {source} hold values that are not finite in {', '.join(broken[:3])}; they can't be "
            "trained on (torchvision's IMAGENET1K_FEATURES, for one, have no classifier): choose other ones"
        )
