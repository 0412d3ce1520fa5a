"""The phases of a training, one after the other."""

from __future__ import annotations

import copy
import time
from typing import TYPE_CHECKING, Any

from medimg.adapt.base import Adaptation
from medimg.core.logger import get_logger
from medimg.data.dataloader import worker_errors
from medimg.errors import TrainingError
from medimg.features.dataset_features import EmbeddedDataset, item_features
from medimg.models.freezing import frozen_fraction
from medimg.training._phases import make_trainable
from medimg.training._state import PhaseProgress
from medimg.training._trainer import memory_format
from medimg.training.history import FitResult
from medimg.training.optimization.custom import naming

if TYPE_CHECKING:
    import torch

    from medimg.core.progress import Progress
    from medimg.data.protocols import LabeledDataset
    from medimg.training._phases import Phase
    from medimg.training._state import FineTuneInputs, TrainingState
    from medimg.training._trainer import TrainerConfig

__all__ = ["run"]


def run(state: TrainingState, trainer: TrainerConfig, *, compiled: bool) -> FitResult:
    """Train through the remaining phases, logged; see `_run_phases`."""
    model, history = state.inputs.model, state.history
    device = next(model.parameters()).device
    started = time.perf_counter()
    with history.logged({**state.inputs.more, **_describe_model(state)}, write=trainer.is_main_process):
        _run_phases(state, trainer, compiled=compiled)
        _finish_adaptations(state, trainer, device)
    trainer.processes.share(None)  # its files are written
    seconds = time.perf_counter() - started
    sha256 = history.confirm_checkpoint() if trainer.is_main_process else None
    if trainer.is_main_process:
        get_logger().info(
            "training ended after %d epochs, %.0f s; best epoch %d",
            len(history.rows),
            seconds,
            history.best_epoch,
        )
    return FitResult(
        history=tuple(history.rows),
        best_epoch=history.best_epoch,
        monitor=history.monitor,
        seconds=seconds,
        checkpoint=history.checkpoint,
        model_sha256=sha256,
    )


def _describe_model(state: TrainingState) -> dict[str, Any]:
    """Return what loggers get of the model."""
    model = state.inputs.model
    return {
        "backbone": model.backbone_name,
        "weights": model.weights_name,
        "pool": model.pool,
        "classes": len(model.classes),
        "frozen_fraction": round(frozen_fraction(model), 4),
    }


def _run_phases(state: TrainingState, trainer: TrainerConfig, *, compiled: bool) -> None:
    """Train through the remaining phases; the model ends with the best weights, whatever happens."""
    model, history = state.inputs.model, state.history
    device = next(model.parameters()).device
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    phases = state.phases
    try:
        layout = memory_format(model, channels_last=state.inputs.channels_last, compiled=compiled)
        with trainer.running(state.inputs.config.seed), layout:
            initial = [copy.deepcopy(callback.state_dict()) for callback in trainer.callbacks]
            for number in range(state.progress.number, len(phases)):
                # a callback of the caller that counts starts each phase from its initial state
                for callback, values in zip(trainer.callbacks, initial, strict=True):
                    callback.load_state_dict(copy.deepcopy(values))
                if not state.progress.done:
                    history.early_stopping.start_phase()
                make_trainable(model, model.backbone, trainable, phases[number])
                _check_trainable(state.inputs, phases[number])
                _fit_phase(state, phases[number], trainer)
                state.progress = PhaseProgress(number + 1)
    finally:
        state.display.close()
        make_trainable(model, model.backbone, trainable)
        model.to(device)
        history.restore_best()
        model.eval()
    if not history.rows:
        raise TrainingError(
            "no epoch was completed: a limit among trainer_kwargs stops training before; raise it"
        )


def _fit_phase(state: TrainingState, phase: Phase, trainer: TrainerConfig) -> None:
    """Train for one phase: on images, or on cached embeddings if these are the same in every epoch."""
    # Lightning takes seconds to import
    from medimg.training._lightning_module import FineTuneModule

    inputs, cached = state.inputs, _can_cache(state)
    train, val = inputs.train, inputs.val
    if trainer.is_main_process:
        _log_phase(phase, train, val, cached=cached)
    if cached:
        inputs.model.to(trainer.device)
        progress = state.display.progress if trainer.is_main_process else False
        train = _embed_dataset(inputs, train, progress)
        val = None if val is None else _embed_dataset(inputs, val, progress)
    if state.sharding is not None:
        inputs.model.to("cpu")  # each process trains its share of a copy
    module = FineTuneModule(state, phase, train=train, val=val, cached=cached)
    trainer.fit(module, phase.epochs - state.progress.done)


def _log_phase(phase: Phase, train: LabeledDataset, val: LabeledDataset | None, *, cached: bool) -> None:
    how = "images"
    if cached:
        count = len(train) + (0 if val is None else len(val))
        how = f"embeddings; embedding {count:,} items"
    plural = "" if phase.epochs == 1 else "s"
    get_logger().info("%s phase: %d epoch%s on %s", phase.name, phase.epochs, plural, how)


def _can_cache(state: TrainingState) -> bool:
    """Return whether the input of the head is the same in every epoch of a phase that begins now."""
    inputs = state.inputs
    augmented = inputs.augment is not None and inputs.augment_frozen
    changing = augmented or inputs.perturbs or bool(inputs.config.mixup)
    trained = inputs.is_backbone_trained()
    return not (changing or trained or state.terms.find_active(backbone_trained=trained))


def _embed_dataset(inputs: FineTuneInputs, data: LabeledDataset, progress: Progress) -> LabeledDataset:
    """Return a dataset of embeddings; each image passes the backbone once."""
    features = item_features(
        inputs.model,
        data,
        cache=inputs.cache,
        batch_size=inputs.config.batch_size,
        workers=inputs.workers,
        progress=progress,
    )
    return EmbeddedDataset(data, features.embeddings, features.offsets)


def _finish_adaptations(state: TrainingState, trainer: TrainerConfig, home: torch.device) -> None:
    """Let adaptations change the trained model, such as its batch statistics."""
    inputs, device = state.inputs, trainer.device
    if all(type(one).finish is Adaptation.finish for one in inputs.adaptations):
        return
    inputs.model.to(device)
    for one in inputs.adaptations:
        with worker_errors(), naming("adapt", one, on="the trained model"):
            one.finish(inputs.model, device, inputs.config.batch_size, inputs.workers)
    inputs.model.to(home).eval()
    own = {name: buffer.cpu() for name, buffer in inputs.model.named_buffers()}
    for name, buffer in trainer.processes.share(own).items():
        inputs.model.get_buffer(name).copy_(buffer)
    state.history.replace_best(write=trainer.is_main_process)


def _check_trainable(inputs: FineTuneInputs, phase: Phase) -> None:
    if not any(parameter.requires_grad for parameter in inputs.model.parameters()):
        raise TrainingError(
            f"nothing is trainable in the {phase.name} phase, because all parameters are frozen: unfreeze "
            "the head, or give the phase 0 epochs"
        )
