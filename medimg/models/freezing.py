"""Freezing: a frozen part keeps its parameters and its statistics, bit by bit."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any, Self

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from medimg.errors import TrainingError
from medimg.models.backbones.stages import Stage, split_stages

if TYPE_CHECKING:
    from collections.abc import Iterator

    from medimg.models.classifier import TransferClassifier

__all__ = [
    "Freezable",
    "freeze_batchnorm_statistics",
    "freeze_through",
    "set_frozen_to_eval",
    "share_frozen",
    "unfreeze_from",
]


class Freezable(nn.Module):
    """A model whose ``backbone`` can be frozen, whole or up to a part; what is frozen stays as it is."""

    backbone: nn.Module

    @property
    def stages(self) -> tuple[str, ...]:
        """
        Names of the backbone's stages, in the order of computation: what ``freeze(upto=...)`` takes.

        The first is always "stem"; each other has the name of its last module with parameters.
        """
        return tuple(stage.name for stage in split_stages(self.backbone))

    def freeze(self, upto: str | None = None) -> Self:
        """
        Freeze the backbone, or its first part: parameters and statistics stay as they are, bit by bit.

        Parameters
        ----------
        upto : str, optional
            The last part to freeze: one of :attr:`stages`, or any name in ``backbone.named_modules()``, such
            as "layer3.0" or "features.5"; by default all of it. The head is never frozen.

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
        Make parameters trainable: all of them, or from the head down to a part.

        Parameters
        ----------
        downto : str, optional
            The first part to train, as for :meth:`freeze`; what comes before it stays as it is.

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
        """Set the mode of every part but the frozen ones, which stay in evaluation mode."""
        super().train(mode)
        if mode:
            set_frozen_to_eval(self.backbone)
        return self

    def summary(self) -> str:
        """Return a table of stages, pooling and head: how many parameters each has, and whether frozen."""
        parts = [(stage.name, stage.parameters()) for stage in split_stages(self.backbone)]
        others = [(name, child) for name, child in self.named_children() if name != "backbone"]
        parts += [(name, own) for name, child in others if (own := list(child.parameters()))]
        rows = [(name, f"{sum(p.numel() for p in own):,}", _frozen(own)) for name, own in parts]
        total = sum(p.numel() for p in self.parameters())
        rows.append(("all", f"{total:,}", f"{100 * share_frozen(self):.0f} %"))
        table = [("part", "parameters", "frozen"), *rows]
        names, counts = (max(len(row[n]) for row in table) for n in (0, 1))
        return "\n".join(f"{name:{names}}  {count:>{counts}}  {state}" for name, count, state in table)


def _frozen(parameters: list[nn.Parameter]) -> str:
    states = {p.requires_grad for p in parameters}
    return "partly" if len(states) == 2 else "no" if True in states else "yes"


def freeze_through(body: nn.Module, upto: str | None) -> None:
    """
    Stop the gradients of a network's first part, or of all of it.

    Parameters
    ----------
    body : nn.Module
        The network; changed in place.
    upto : str or None
        The last stage or module to freeze, by its name in
        :func:`~medimg.models.backbones.stages.split_stages` or ``named_modules()``; None freezes
        all. What comes before it in that order, which is the order of
        computation in torchvision's models, is frozen with it.

    Raises
    ------
    TrainingError
        If there is no such part.
    """
    if upto is None:
        body.requires_grad_(False)
        return
    parts = split_stages(body)
    place = _stage(parts, upto)
    if place is not None:
        frozen = [p for stage in parts[: place + 1] for p in stage.parameters()]
    else:
        names = _modules(body, upto, parts)
        last = max(n for n, name in enumerate(names) if name == upto or name.startswith(f"{upto}."))
        frozen = list(_own_parameters(body, names[: last + 1]))
    for parameter in frozen:
        parameter.requires_grad_(False)


def unfreeze_from(body: nn.Module, downto: str) -> None:
    """
    Let a network's last part be trained.

    Parameters
    ----------
    body : nn.Module
        The network; changed in place.
    downto : str
        The first stage or module to train, by its name; all that comes after it is trained too.

    Raises
    ------
    TrainingError
        If there is no such part.
    """
    parts = split_stages(body)
    place = _stage(parts, downto)
    if place is not None:
        trained = [p for stage in parts[place:] for p in stage.parameters()]
    else:
        names = _modules(body, downto, parts)
        trained = list(_own_parameters(body, names[names.index(downto) :]))
    for parameter in trained:
        parameter.requires_grad_(True)


def _stage(parts: tuple[Stage, ...], name: str) -> int | None:
    return next((n for n, stage in enumerate(parts) if stage.name == name), None)


def _modules(body: nn.Module, wanted: Any, parts: tuple[Stage, ...]) -> list[str]:
    """Return the names of all modules, if the one that is wanted is among them."""
    names = [name for name, _ in body.named_modules()]
    if wanted and wanted in names:
        return names
    known = [stage.name for stage in parts]
    near = difflib.get_close_matches(str(wanted), [*known, *names], n=3)
    hint = f"; the nearest are {', '.join(map(repr, near))}" if near else ""
    raise TrainingError(
        f"the backbone has no part {wanted!r}{hint}; its stages are {', '.join(map(repr, known))}, and every "
        "name in backbone.named_modules() is a part too"
    )


def _own_parameters(body: nn.Module, names: list[str]) -> Iterator[nn.Parameter]:
    for name in names:
        yield from body.get_submodule(name).parameters(recurse=False)


def set_frozen_to_eval(module: nn.Module) -> None:
    """
    Put every part whose parameters are all frozen into evaluation mode.

    In training mode its batch normalization would go on moving its statistics, and its dropout go on making
    noise, without a single parameter being trained. A layer that has statistics and no parameters is as
    frozen as the parameters before it.

    Parameters
    ----------
    module : nn.Module
        The network; changed in place.
    """
    first = next(module.parameters(), None)
    if first is not None:
        _hold(module, not first.requires_grad)


def _hold(module: nn.Module, before: bool) -> bool:
    """Return whether the last parameters, of this module or else before it, are frozen."""
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
        before = _hold(child, before)
    return before


def freeze_batchnorm_statistics(model: TransferClassifier, choice: str) -> None:
    """
    Put the backbone's BatchNorm layers into evaluation mode, if their statistics are to be kept.

    Their scales and offsets can still be trained.

    Parameters
    ----------
    model : TransferClassifier
        In training mode; changed in place.
    choice : {"auto", "keep", "update"}
        "auto" keeps statistics that came with weights: those of random ones are of nothing.
    """
    if choice == "update" or (choice == "auto" and model.weights_name is None):
        return
    for layer in model.backbone.modules():
        if isinstance(layer, _BatchNorm) and layer.running_mean is not None:
            layer.eval()


def share_frozen(module: nn.Module) -> float:
    """Return which share of a network's parameters is frozen, from 0 to 1."""
    total = sum(p.numel() for p in module.parameters())
    frozen = sum(p.numel() for p in module.parameters() if not p.requires_grad)
    return frozen / total if total else 0.0
