"""The phases of a training: what is trained when, for how long, and how fast."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from medimg.models.backbones.stages import split_stages

if TYPE_CHECKING:
    from torch import nn

    from medimg.training.config import FineTuneConfig

__all__ = ["Phase", "make_trainable", "plan_phases"]


@dataclass(frozen=True, slots=True)
class Phase:
    """
    One part of the training, with an optimizer and a schedule of its own.

    Parameters
    ----------
    name : {"head", "gradual", "full"}
        What is trained: the head; the head and the last stages; everything that isn't frozen.
    epochs : int
        How long.
    epochs_before : int
        How many there were in earlier phases.
    lr, backbone_lr : float
        Highest learning rates, of the head and of the backbone's last stage; 0 keeps the backbone as it is.
    stages : int or None
        How many of the backbone's last stages are trained; None for all.
    """

    name: Literal["head", "gradual", "full"]
    epochs: int
    epochs_before: int
    lr: float
    backbone_lr: float
    stages: int | None = None


def plan_phases(settings: FineTuneConfig, body: nn.Module) -> tuple[Phase, ...]:
    """
    Return the phases in their order.

    Parameters
    ----------
    settings : FineTuneConfig
        How to train.
    body : nn.Module
        The backbone, whose stages are unfrozen one after the other if that was asked for.

    Returns
    -------
    tuple of Phase
        Each of at least one epoch.
    """
    lr, backbone_lr = settings.lr, settings.lr * settings.backbone_lr_scale
    found = [Phase("head", settings.head_epochs, 0, lr, 0.0)]
    done, left = settings.head_epochs, settings.epochs
    if settings.gradual and backbone_lr:
        # one epoch more for each stage, as long as the last phase has one too
        for count in range(1, min(len(split_stages(body)), left)):
            found.append(Phase("gradual", 1, done, lr, backbone_lr, count))
            done, left = done + 1, left - 1
    found.append(Phase("full", left, done, lr, backbone_lr))
    return tuple(phase for phase in found if phase.epochs)


def make_trainable(model: nn.Module, body: nn.Module, names: set[str], phase: Phase | None = None) -> None:
    """
    Make some parameters trainable, as far as a phase trains them, and freeze all others.

    Parameters
    ----------
    model : nn.Module
        Changed in place.
    body : nn.Module
        Its backbone.
    names : set of str
        The parameters that are ever trained.
    phase : Phase, optional
        What is trained now; all of these by default.
    """
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)
    if phase is None:
        return
    if not phase.backbone_lr:
        body.requires_grad_(False)
    elif phase.stages is not None:
        for stage in split_stages(body)[: -phase.stages]:
            for parameter in stage.parameters():
                parameter.requires_grad_(False)
