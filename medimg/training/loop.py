"""The phases of a training, one after the other."""

from __future__ import annotations

import copy
import logging
import time
from typing import TYPE_CHECKING

from medimg.adapt.base import Adaptation
from medimg.errors import TrainingError
from medimg.training.history import FitResult
from medimg.training.phases import make_trainable, plan_phases
from medimg.training.resume import ResumeState, part
from medimg.training.state import PhaseProgress
from medimg.training.trainer import memory_format

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import torch

    from medimg.training.phases import Phase
    from medimg.training.state import TrainingState
    from medimg.training.trainer import TrainerConfig

__all__ = ["restore_state", "run"]

logger = logging.getLogger("medimg")


def restore_state(work: TrainingState, path: Path | None) -> PhaseProgress | None:
    """
    Take over the state in a file.

    Parameters
    ----------
    work : TrainingState
        Its model, terms and recorder take over what the file holds.
    path : Path or None
        The file.

    Returns
    -------
    Place or None
        Where it was left; None for the start.

    Raises
    ------
    TrainingError
        If the file is of another training.
    CheckpointError
        If it is damaged.
    """
    if path is None:
        return None
    progress = ResumeState.load(path)
    header = progress.header
    differing = work.settings.differences(header["settings"])
    if header["adapt"] != [one.settings() for one in work.adaptations]:
        differing.append("adapt")
    differing += [
        f"the {name} data" for name, value in work.digests.items() if header["data"].get(name) != value
    ]
    if differing:
        raise TrainingError(
            f"{path} is of another training, it differs in {'; '.join(differing)}: pass what it was started "
            "with, or resume=None to train anew"
        )
    state = part(progress.tensors, "model")
    own = work.model.state_dict()
    if {n: v.shape for n, v in own.items()} != {n: v.shape for n, v in state.items()}:
        raise TrainingError(
            f"{path} is of another network than {work.model.backbone_name}: make the same model"
        )
    work.model.load_state_dict(state)
    work.terms.load_state_dict(part(progress.tensors, "terms"))
    work.recorder.load_state(header["recorder"], part(progress.tensors, "best"))
    work.resumed = progress
    phases = plan_phases(work.settings, work.model.backbone)
    number = header["phase"]
    logger.info("resuming after %d epochs", len(work.recorder.rows))
    return PhaseProgress(phases[min(number, len(phases) - 1)], number, header["done"])


def run(
    work: TrainingState, engine: TrainerConfig, start: PhaseProgress | None, *, compiled: bool
) -> FitResult:
    """
    Train through all phases that are left, and leave the model with the best weights.

    Parameters
    ----------
    work : TrainingState
        What is trained, on what, and how.
    engine : TrainerConfig
        On what devices.
    start : PhaseProgress or None
        Where to go on.
    compiled : bool
        Whether the backbone is compiled.

    Raises
    ------
    TrainingError
        If nothing is trainable, or no epoch has ended.
    """
    model, recorder = work.model, work.recorder
    device = next(model.parameters()).device
    started = time.perf_counter()
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    if start is None and engine.writes:
        work.save_start()
    try:
        layout = memory_format(model, channels_last=work.channels_last, compiled=compiled)
        with engine.running(work.settings.seed), layout:
            fresh = [copy.deepcopy(callback.state_dict()) for callback in engine.callbacks]
            for place in _places(work, start):
                # a callback that counts, such as EarlyStopping, starts anew with what is trained anew
                for callback, state in zip(engine.callbacks, fresh, strict=True):
                    callback.load_state_dict(copy.deepcopy(state))
                make_trainable(model, model.backbone, trainable, place.phase)
                _check_trainable(work, place.phase)
                _fit(work, place, engine)
    finally:
        # whatever happened, the model is usable: the best weights so far, on its device, as it was frozen
        make_trainable(model, model.backbone, trainable)
        model.to(device)
        recorder.restore()
        model.eval()
        recorder.finish()
    if not recorder.rows:
        raise TrainingError(
            "no epoch has ended: a limit among trainer_kwargs stops training before; raise it"
        )
    _finish(work, engine.device, device)
    return FitResult(
        history=tuple(recorder.rows),
        best_epoch=recorder.best_epoch,
        monitor=recorder.monitor,
        seconds=time.perf_counter() - started,
        checkpoint=recorder.checkpoint,
    )


def _places(work: TrainingState, start: PhaseProgress | None) -> Iterator[PhaseProgress]:
    """Yield the phases that are left, the first of them from where it was left."""
    for number, phase in enumerate(plan_phases(work.settings, work.model.backbone)):
        if start is not None and number < start.number:
            continue
        done = start.done if start is not None and number == start.number else 0
        if not done:
            work.recorder.start_phase()
        yield PhaseProgress(phase, number, done)


def _fit(work: TrainingState, place: PhaseProgress, engine: TrainerConfig) -> None:
    """Train for one phase: on images, or on embeddings where these are the same in every epoch."""
    # Lightning takes seconds to import
    from medimg.training._lightning_module import FineTuneModule

    phase, cached = place.phase, work.can_cache()
    logger.info("%s phase: %d epochs%s", phase.name, phase.epochs, " on embeddings" if cached else "")
    train, val = work.train, work.val
    if cached:
        work.model.to(engine.device)
        train, val = work.embedded(train), None if val is None else work.embedded(val)
    module = FineTuneModule(work, place, train=train, val=val, cached=cached)
    engine.fit(module, phase.epochs - place.done)


def _finish(work: TrainingState, device: torch.device, home: torch.device) -> None:
    """Do what adaptations do once, after training."""
    if all(type(one).finish is Adaptation.finish for one in work.adaptations):
        return
    work.model.to(device)
    for one in work.adaptations:
        one.finish(work.model, device, work.settings.batch_size, work.num_workers)
    work.model.to(home).eval()
    work.recorder.replace_best()


def _check_trainable(work: TrainingState, phase: Phase) -> None:
    if not any(parameter.requires_grad for parameter in work.model.parameters()):
        raise TrainingError(
            f"nothing is trainable in the {phase.name} phase, as all is frozen: unfreeze the head, or give "
            "it 0 epochs"
        )
    idle = [type(a).__name__ for a in work.adaptations if a.moves_backbone]
    if phase.name == "full" and idle and not work.trains_backbone():
        raise TrainingError(
            f"adapt={idle[0]} moves the backbone, and all of it is frozen: model.unfreeze(), or "
            "model.freeze(upto=...) for a part, or backbone_lr_scale above 0"
        )
