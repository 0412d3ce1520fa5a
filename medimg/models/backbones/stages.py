"""The stages of a network: parts in the order of computation, split where resolution drops."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

from torch import nn
from torch.nn.utils.parametrize import is_parametrized
from torchvision.models.swin_transformer import PatchMerging, PatchMergingV2

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch import Tensor

__all__ = ["STEM", "Stage", "split_stages"]

_Part: TypeAlias = tuple[str, nn.Module]
_T = TypeVar("_T")

#: Name of the first stage of every network.
STEM: Final = "stem"

_FEW: Final = 4  # with fewer parts, the largest is split into its children
_MOST: Final = 12  # stages beside the stem, if the resolution never drops
_ADAPTIVE: Final = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
_ENLARGING: Final = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_MERGING: Final = (PatchMerging, PatchMergingV2)  # they reduce the resolution by indexing, without a stride


@dataclass(frozen=True, slots=True, eq=False)
class Stage:
    """
    One part of a network: its modules by name, in order, none inside another.

    `loose` are modules of the first stage that were split into children, of whose tensors only their own
    belong to it, such as a class token or position embeddings.
    """

    name: str
    modules: tuple[tuple[str, nn.Module], ...]
    loose: tuple[tuple[str, nn.Module], ...] = ()

    def parameters(self) -> list[nn.Parameter]:
        """Return the parameters, each once."""
        own = [p for _, m in self.loose for p in m.parameters(recurse=False)]
        return _unique([*own, *(p for _, m in self.modules for p in m.parameters())])

    def buffers(self) -> list[Tensor]:
        """Return the buffers, such as the statistics of batch normalization, each once."""
        own = [b for _, m in self.loose for b in m.buffers(recurse=False)]
        return _unique([*own, *(b for _, m in self.modules for b in m.buffers())])


def split_stages(body: nn.Module) -> tuple[Stage, ...]:
    """
    Split a network into stages, in the order in which its modules are registered.

    The parts are the children of the network; while fewer than four of them have parameters, the largest is
    replaced by its children, and so is a sequence of which several members reduce the resolution, such as the
    ``blocks`` of timm's EfficientNet. A part that reduces the resolution (a stride, merged patches, global
    pooling) starts a stage; norms belong to the part before them. If this gives fewer than three
    stages, as in a ViT, the first part is the stem and the others are joined into at most twelve stages.
    Together the stages have every parameter and buffer exactly once.

    Examples
    --------
    >>> from torchvision.models import resnet18
    >>> [stage.name for stage in split_stages(resnet18())]
    ['stem', 'layer1', 'layer2', 'layer3', 'layer4', 'fc']
    """
    parts, opened = _split_parts(body)
    groups = _group_by_resolution(parts)
    if len(groups) < 3:
        half = _count_parameters(body) / 2
        _open_parts(parts, opened, lambda module: _is_sequence(module) and _count_parameters(module) > half)
        groups = _merge_groups(_group_norms(parts))
    loose = [(name, module) for name, module in opened if _own_tensors(module)]
    if loose and not groups:
        groups = [[]]
    first = groups[0][-1][0] if groups and groups[0] else ""
    name = STEM if _is_free(body, groups, first) else first
    return tuple(
        Stage(group[-1][0] if n else name, tuple(group), () if n else tuple(loose))
        for n, group in enumerate(groups)
    )


def _split_parts(body: nn.Module) -> tuple[list[_Part], list[_Part]]:
    """Return the parts in order, also those without tensors, and the modules that were split."""
    parts: list[_Part] = _named_children(body)
    opened: list[_Part] = [("", body)]
    while sum(_has_tensors(module) for _, module in parts) < _FEW:
        inner = [
            n
            for n, (_, module) in enumerate(parts)
            if any(_has_tensors(child) for _, child in _named_children(module))
        ]
        if not inner:
            break
        _open_part(parts, opened, max(inner, key=lambda n: len(list(parts[n][1].parameters()))))
    half = _count_parameters(body) / 2
    _open_parts(parts, opened, lambda module: _has_several_stages(module, half))
    return parts, opened


def _open_parts(parts: list[_Part], opened: list[_Part], is_opened: Callable[[nn.Module], bool]) -> None:
    """Replace all parts for which `is_opened` holds by their children, in place."""
    while True:
        found = next((n for n, (_, module) in enumerate(parts) if is_opened(module)), None)
        if found is None:
            return
        _open_part(parts, opened, found)


def _open_part(parts: list[_Part], opened: list[_Part], number: int) -> None:
    """Replace a part by its children, in place."""
    name, module = parts[number]
    opened.append((name, module))
    parts[number : number + 1] = [(f"{name}.{child}", m) for child, m in _named_children(module)]


def _named_children(module: nn.Module) -> list[_Part]:
    """Return the children by name; adapters of a weight are none."""
    hidden = "parametrizations" if is_parametrized(module) else None
    return [(name, child) for name, child in module.named_children() if name != hidden]


def _has_several_stages(module: nn.Module, half: float) -> bool:
    """
    Whether several children reduce the resolution one after the other.

    Within a block they may do so side by side; a sequence, or what has over half of the parameters, is none.
    """
    if sum(map(_reduces_resolution, module.children())) < 2:
        return False
    return _is_sequence(module) or _count_parameters(module) > half


def _is_sequence(module: nn.Module) -> bool:
    return isinstance(module, nn.Sequential | nn.ModuleList)


def _count_parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _group_by_resolution(parts: list[_Part]) -> list[list[_Part]]:
    """Start a group wherever the resolution drops."""
    groups: list[list[_Part]] = [[]]
    smaller = False
    for name, module in parts:
        smaller = smaller or _reduces_resolution(module)
        if not _has_tensors(module):
            continue
        if smaller and not _is_norm(module):
            if groups[-1]:
                groups.append([])
            smaller = False
        groups[-1].append((name, module))
    return [group for group in groups if group]


def _group_norms(parts: list[_Part]) -> list[list[_Part]]:
    """Group each part with the norms after it."""
    groups: list[list[_Part]] = []
    for name, module in parts:
        if not _has_tensors(module):
            continue
        if groups and _is_norm(module):
            groups[-1].append((name, module))
        else:
            groups.append([(name, module)])
    return groups


def _merge_groups(groups: list[list[_Part]]) -> list[list[_Part]]:
    """Merge neighboring groups after the first into at most twelve."""
    stem, rest = groups[:1], groups[1:]
    step = max(1, math.ceil(len(rest) / _MOST))
    return stem + [list(chain(*rest[n : n + step])) for n in range(0, len(rest), step)]


def _reduces_resolution(module: nn.Module) -> bool:
    """Whether a module has a stride, merges patches, or begins with global pooling."""
    if any(isinstance(m, _MERGING) for m in module.modules()):
        return True
    if any(_has_stride(m) for m in module.modules()):
        return True
    # global pooling within a squeeze-and-excitation block does not reduce the resolution
    first: nn.Module | None = module
    while isinstance(first, nn.Sequential):
        first = next(iter(first.children()), None)
    return isinstance(first, _ADAPTIVE)


def _has_stride(module: nn.Module) -> bool:
    """Whether a module has a stride above 1; transposed convolutions raise the resolution by theirs."""
    stride: Any = getattr(module, "stride", 1)
    steps = stride if isinstance(stride, tuple | list) else (stride,)
    larger = any(isinstance(step, int) and step > 1 for step in steps)
    return larger and not isinstance(module, _ENLARGING)


def _is_norm(module: nn.Module) -> bool:
    return all(p.ndim <= 1 for p in module.parameters())


def _has_tensors(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None or next(module.buffers(), None) is not None


def _own_tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(recurse=False), *module.buffers(recurse=False)]


def _is_free(body: nn.Module, groups: list[list[_Part]], first: str) -> bool:
    """Whether the name "stem" is unambiguous for the first stage."""
    named = any(name == STEM for name, _ in body.named_modules())
    return not named or (first == STEM and len(groups[0]) == 1)


def _unique(tensors: Iterable[_T]) -> list[_T]:
    return list({id(tensor): tensor for tensor in tensors}.values())
