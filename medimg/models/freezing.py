"""Freezing of parameters and BatchNorm statistics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from medimg._validation import did_you_mean
from medimg.errors import TrainingError, also
from medimg.models.backbones.stages import Stage, split_stages
from medimg.models.low_rank import LowRank

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from medimg.models.classifier import TransferClassifier

__all__ = [
    "Freezable",
    "find_kept_statistics",
    "freeze_batchnorm_statistics",
    "freeze_through",
    "frozen_fraction",
    "set_frozen_to_eval",
    "unfreeze_from",
]


class Freezable(nn.Module):
    """A model whose ``backbone`` can be frozen, whole or up to a stage or module."""

    backbone: nn.Module

    @property
    def stages(self) -> tuple[str, ...]:
        """
        Names of the backbone's stages, in the order of computation, as ``freeze(upto=...)`` takes them.

        The first is always "stem"; each other one has the name of its last module with parameters.
        """
        return tuple(stage.name for stage in split_stages(self.backbone))

    def freeze(self, upto: str | None = None) -> Self:
        """
        Freeze the backbone or its first part: parameters and BatchNorm statistics stay bit-for-bit identical.

        Parameters
        ----------
        upto : str, optional
            Last part to freeze: one of :attr:`stages`, or any name in ``backbone.named_modules()``, such as
            "layer3.0" or "features.5"; by default the whole backbone. The head is never frozen.

        Returns
        -------
        TransferClassifier
            The model itself.

        Raises
        ------
        TrainingError
            If the backbone has no such part.

        Examples
        --------
        >>> from medimg import TransferClassifier
        >>> model = TransferClassifier("resnet18", classes=["a", "b"], weights=None).freeze(upto="layer1")
        >>> model.backbone.layer1[0].bn1.training, model.backbone.layer2[0].bn1.training
        (False, True)
        """
        freeze_through(self.backbone, upto)
        self.train(self.training)
        return self

    def unfreeze(self, downto: str | None = None) -> Self:
        """
        Make all parameters trainable, or those from the head down to a part.

        Parameters
        ----------
        downto : str, optional
            First part to train, as for :meth:`freeze`; earlier parts stay as they are.

        Returns
        -------
        TransferClassifier
            The model itself.

        Raises
        ------
        TrainingError
            If the backbone has no such part.

        Examples
        --------
        >>> from medimg import TransferClassifier
        >>> model = TransferClassifier("resnet18", classes=["a", "b"], weights=None).freeze()
        >>> print(model.unfreeze(downto="layer4").summary())
        part    parameters  frozen
        stem         9,536  yes
        layer1     147,968  yes
        layer2     525,568  yes
        layer3   2,099,712  yes
        layer4   8,393,728  no
        head         1,026  no
        all     11,177,538  25 %
        """
        if downto is None:
            self.requires_grad_(True)
        else:
            unfreeze_from(self.backbone, downto)
            inside = set(self.backbone.parameters())
            for parameter in self.parameters():
                if parameter not in inside:
                    parameter.requires_grad_(True)
        self.train(self.training)
        return self

    def train(self, mode: bool = True) -> Self:
        """Set the mode of every part except frozen ones, which stay in evaluation mode."""
        super().train(mode)
        if mode:
            set_frozen_to_eval(self.backbone)
        return self

    def summary(self) -> str:
        """Return a table of stages, pooling and head with their numbers of parameters, and whether frozen."""
        parts = [(stage.name, stage.parameters()) for stage in split_stages(self.backbone)]
        others = [(name, child) for name, child in self.named_children() if name != "backbone"]
        parts += [(name, own) for name, child in others if (own := list(child.parameters()))]
        rows = [(name, f"{sum(p.numel() for p in own):,}", _frozen_word(own)) for name, own in parts]
        total = sum(p.numel() for p in self.parameters())
        rows.append(("all", f"{total:,}", f"{100 * frozen_fraction(self):.0f} %"))
        table = [("part", "parameters", "frozen"), *rows]
        names, counts = (max(len(row[n]) for row in table) for n in (0, 1))
        return "\n".join(f"{name:{names}}  {count:>{counts}}  {state}" for name, count, state in table)


def _frozen_word(parameters: list[nn.Parameter]) -> str:
    """Return "yes", "no" or "partly"."""
    states = {p.requires_grad for p in parameters}
    return "partly" if len(states) == 2 else "no" if True in states else "yes"


def freeze_through(body: nn.Module, upto: str | None) -> None:
    """
    Turn off the gradients of a network up to a stage or module, in the order of computation; None for all.

    That order is the one of ``named_modules()``, which holds for torchvision's models.
    """
    if upto is None:
        body.requires_grad_(False)
        return
    parts = split_stages(body)
    index = _find_stage(parts, upto)
    if index is not None:
        frozen = [p for stage in parts[: index + 1] for p in stage.parameters()]
    else:
        names = _module_names(body, upto, parts)
        last = max(n for n, name in enumerate(names) if name == upto or name.startswith(f"{upto}."))
        frozen = list(_own_parameters(body, names[: last + 1]))
    for parameter in frozen:
        parameter.requires_grad_(False)


def unfreeze_from(body: nn.Module, downto: str) -> None:
    """Turn on the gradients of a network from a stage or module to its end."""
    parts = split_stages(body)
    index = _find_stage(parts, downto)
    if index is not None:
        trained = [p for stage in parts[index:] for p in stage.parameters()]
    else:
        names = _module_names(body, downto, parts)
        trained = list(_own_parameters(body, names[names.index(downto) :]))
    for parameter in trained:
        parameter.requires_grad_(True)


def _find_stage(parts: tuple[Stage, ...], name: str) -> int | None:
    """Return the index of a stage; None if no stage has that name."""
    names = [stage.name for stage in parts]
    return names.index(name) if isinstance(name, str) and name in names else None


def _module_names(body: nn.Module, wanted: Any, parts: tuple[Stage, ...]) -> list[str]:
    """Return the names of all modules, among which the wanted one must be."""
    names = [name for name, _ in body.named_modules()]
    if isinstance(wanted, str) and wanted and wanted in names:
        return names
    known = [stage.name for stage in parts]
    hint = did_you_mean(wanted, [*known, *names], most=3)
    raise also(TrainingError, KeyError)(
        f"the backbone has no part {wanted!r}; its stages are {', '.join(map(repr, known))}, and every name "
        f"in backbone.named_modules() is accepted{hint}"
    )


def _own_parameters(body: nn.Module, names: list[str]) -> Iterator[nn.Parameter]:
    """Yield the parameters of modules without those of their submodules."""
    for name in names:
        yield from body.get_submodule(name).parameters(recurse=False)


def set_frozen_to_eval(module: nn.Module) -> None:
    """
    Put every part whose parameters are all frozen into evaluation mode.

    In training mode its batch normalization would still update its statistics, and its dropout would still be
    active. A layer that has statistics and no parameters is as frozen as the parameters before it; adapters
    of frozen weights do not count.
    """
    first = next(module.parameters(), None)
    if first is not None:
        _set_frozen_parts(module, not first.requires_grad)


def _set_frozen_parts(module: nn.Module, before: bool) -> bool:
    """Set frozen parts to evaluation mode; return whether the last parameters so far are frozen."""
    if isinstance(module, LowRank):
        return before
    parameters = list(module.parameters())
    if not parameters:
        if before and next(module.buffers(), None) is not None:
            module.eval()
        return before
    if not any(p.requires_grad for p in parameters):
        module.eval()
        return True
    own = list(module.parameters(recurse=False))
    if own:
        before = not any(p.requires_grad for p in own)
    for child in module.children():
        before = _set_frozen_parts(child, before)
    return before


def find_kept_statistics(model: TransferClassifier, choice: str) -> tuple[str, ...]:
    """
    Return the names of the backbone's BatchNorm layers whose statistics training keeps.

    All of them for "keep", none for "update"; for "auto" those with statistics to keep. It must be asked
    before training, which gives every layer some.
    """
    if choice == "update":
        return ()
    layers = _batchnorm_layers(model.backbone)
    return tuple(name for name, layer in layers.items() if choice == "keep" or _has_statistics(layer))


def freeze_batchnorm_statistics(model: TransferClassifier, names: Iterable[str]) -> None:
    """Put BatchNorm layers of the backbone into evaluation mode; scales and offsets stay trainable."""
    layers = _batchnorm_layers(model.backbone)
    for name in names:
        layers[name].eval()


def _batchnorm_layers(body: nn.Module) -> dict[str, _BatchNorm]:
    """Return the BatchNorm layers with running statistics by name."""
    return {
        name: layer
        for name, layer in body.named_modules()
        if isinstance(layer, _BatchNorm) and layer.running_mean is not None and layer.running_var is not None
    }


def _has_statistics(layer: _BatchNorm) -> bool:
    """Whether statistics were ever computed: a new layer has mean 0, variance 1 and no batches."""
    batches, mean, variance = layer.num_batches_tracked, layer.running_mean, layer.running_var
    if batches is not None and bool(batches > 0):
        return True
    if mean is None or variance is None:
        return False
    return bool(mean.ne(0).any()) or bool(variance.ne(1).any())


def frozen_fraction(module: nn.Module) -> float:
    """Return the fraction of a network's parameters that is frozen."""
    total = sum(p.numel() for p in module.parameters())
    frozen = sum(p.numel() for p in module.parameters() if not p.requires_grad)
    return frozen / total if total else 0.0
