"""Phases of a training: what is trained, for how long, and how fast."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

from medimg.errors import TrainingError
from medimg.models.backbones.stages import split_stages

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from medimg.adapt.base import Adaptation
    from medimg.models.classifier import TransferClassifier
    from medimg.training._config import FineTuneConfig

__all__ = ["Phase", "check_phases", "make_trainable", "plan_phases"]


@dataclass(frozen=True, slots=True)
class Phase:
    """Part of a training with its own optimizer and schedule."""

    #: The head is trained; the head and the last stages; everything that isn't frozen.
    name: Literal["head", "gradual", "full"]
    epochs: int
    epochs_before: int
    #: Highest learning rates, of the head and of the backbone's last stage; 0 freezes the backbone.
    lr: float
    backbone_lr: float
    #: How many of the backbone's last stages are trained; None for all.
    stages: int | None = None


def plan_phases(
    config: FineTuneConfig, body: nn.Module, ends: Sequence[int] = (), *, epochs: int | None = None
) -> tuple[Phase, ...]:
    """
    Return the phases in order, each of at least one epoch; `body` is the backbone.

    `ends` are the numbers of epochs after which the training had ended before further ones were added;
    `epochs` by default those of the settings.
    """
    last = config.epochs if epochs is None else epochs
    lr, backbone_lr = config.lr, config.backbone_lr
    phases = [Phase("head", config.head_epochs, 0, lr, 0.0)]
    done, left = config.head_epochs, (*ends, last)[0]
    if config.gradual and backbone_lr:
        # one epoch for each further stage, as long as one is left for the last phase
        for count in range(1, min(len(split_stages(body)), left)):
            phases.append(Phase("gradual", 1, done, lr, backbone_lr, count))
            done, left = done + 1, left - 1
    phases.append(Phase("full", left, done, lr, backbone_lr))
    for before, end in pairwise((*ends, last)):
        phases.append(Phase("full", end - before, config.head_epochs + before, lr, backbone_lr))
    return tuple(phase for phase in phases if phase.epochs)


def check_phases(
    config: FineTuneConfig, model: TransferClassifier, adaptations: Sequence[Adaptation]
) -> None:
    """Raise TrainingError if a setting has no effect, as the backbone is trained too briefly, or never."""
    phases = plan_phases(config, model.backbone)
    frozen = not any(parameter.requires_grad for parameter in model.backbone.parameters())
    idle = [f"adapt={type(one).__name__}" for one in adaptations if one.moves_backbone]
    idle += ["gradual=True"] if config.gradual else []
    idle += [] if config.adapter is None else [f"adapter={config.adapter!r}"]
    if idle and (frozen or not any(phase.backbone_lr for phase in phases)):
        raise TrainingError(
            f"{idle[0]} needs a backbone that is trained, and all of it is frozen (epochs={config.epochs}, "
            f"backbone_lr_scale={config.backbone_lr_scale:g}): call model.unfreeze(), or "
            "model.freeze(upto=...) for a part of it, and set epochs and backbone_lr_scale above 0"
        )
    if config.gradual and not any(phase.name == "gradual" for phase in phases):
        raise TrainingError(
            f"gradual=True trains the last stage alone first, and then one more in each epoch; found "
            f"epochs={config.epochs} and {len(split_stages(model.backbone))} stages: raise epochs to at "
            "least 2, use a backbone of several stages, or gradual=False"
        )


def make_trainable(model: nn.Module, body: nn.Module, names: set[str], phase: Phase | None = None) -> None:
    """Make the named parameters trainable, in the backbone `body` only those of `phase`; freeze others."""
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
