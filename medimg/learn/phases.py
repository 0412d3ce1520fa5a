"""The phases of a training: what is trained when, for how long, and how fast."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from medimg.learn.stages import stages

if TYPE_CHECKING:
    from torch import nn

    from medimg.learn.settings import Settings

__all__ = ["Phase", "epoch_seed", "make_trainable", "planned"]


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


def planned(settings: Settings, body: nn.Module) -> tuple[Phase, ...]:
    """
    Return the phases in their order.

    Parameters
    ----------
    settings : Settings
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
        for count in range(1, min(len(stages(body)), left)):
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
        for stage in stages(body)[: -phase.stages]:
            for parameter in stage.parameters():
                parameter.requires_grad_(False)


def epoch_seed(seed: int, epoch: int, purpose: int = 0) -> int:
    """
    Return the seed of what is drawn in an epoch: a training that goes on after a break draws the same.

    Parameters
    ----------
    seed : int
        Of the training.
    epoch : int
        From 0, through all phases.
    purpose : int
        Different draws have different ones: order, augmentation, dropout.

    Returns
    -------
    int
        63 bits, without sign.

    Examples
    --------
    >>> epoch_seed(0, 1) == epoch_seed(0, 1), epoch_seed(0, 1) == epoch_seed(1, 0)
    (True, False)
    """
    import numpy as np

    # negative seeds are torch's too
    entropy = [seed % 2**64, epoch, purpose]
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]) >> 1
