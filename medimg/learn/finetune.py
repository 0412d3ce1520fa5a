"""Fine-tuning: first the head alone, then everything that isn't frozen."""

from __future__ import annotations

import copy
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from medimg.errors import TrainingError
from medimg.learn.augment import make_augmentation
from medimg.learn.balance import make_loss, make_sampler
from medimg.learn.checks import check_data, check_reserved, check_settings, real_number, whole_number
from medimg.learn.engine import Engine
from medimg.learn.history import FitResult, Recorder
from medimg.learn.loaders import evaluation_loader, training_loader

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping, Sequence

    from pytorch_lightning import Callback
    from torch import Tensor

    from medimg.learn.augment import AugmentChoice
    from medimg.learn.balance import Balance, ClassificationLoss
    from medimg.learn.classifier import TransferClassifier
    from medimg.learn.loaders import LabeledImages

__all__ = ["Phase", "fine_tune"]

logger = logging.getLogger("medimg")


@dataclass(frozen=True, slots=True)
class Phase:
    """
    One part of the training.

    Parameters
    ----------
    name : {"head", "full"}
        What is trained.
    epochs : int
        How long.
    epochs_before : int
        How many there were in earlier phases.
    lr, backbone_lr : float
        Learning rates.
    seed : int
        Of order and augmentation.
    """

    name: Literal["head", "full"]
    epochs: int
    epochs_before: int
    lr: float
    backbone_lr: float
    seed: int


@dataclass(frozen=True, slots=True)
class _Job:
    """What all phases share."""

    model: TransferClassifier
    train: LabeledImages
    val: LabeledImages | None
    loss: ClassificationLoss
    augment: Callable[[Tensor, torch.Generator], Tensor] | None
    balance: Balance
    batch_size: int
    num_workers: int
    recorder: Recorder

    def run(self, phase: Phase, engine: Engine) -> None:
        """Train for one phase."""
        # Lightning takes seconds to import
        from medimg.learn._lightning import FineTuning

        val_labels = self.val.labels if self.val is not None else None
        module = FineTuning(
            self.model,
            phase,
            loss=self.loss,
            augment=self.augment,
            val_labels=val_labels,
            recorder=self.recorder,
        )
        generator = torch.Generator().manual_seed(phase.seed)
        sampled = self.balance == "sampler"
        batches = training_loader(
            self.train,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            pin_memory=engine.pins_memory,
            generator=generator,
            sampler=make_sampler(self.train.labels, self.model.task, generator) if sampled else None,
        )
        checks = None
        if self.val is not None:
            checks = evaluation_loader(
                self.val,
                batch_size=self.batch_size,
                num_workers=self.num_workers,
                pin_memory=engine.pins_memory,
            )
        logger.info("%s phase: %d epochs", phase.name, phase.epochs)
        engine.fit(module, phase.epochs, batches, checks)


def fine_tune(
    model: TransferClassifier,
    train: LabeledImages,
    val: LabeledImages | None = None,
    *,
    head_epochs: int = 1,
    epochs: int = 10,
    lr: float = 1e-3,
    backbone_lr_scale: float = 0.1,
    batch_size: int = 32,
    balance: Balance = "loss",
    augment: AugmentChoice = "auto",
    adapt: None = None,
    precision: Any = "auto",
    devices: int | str | Sequence[int] = "auto",
    resume: None = None,
    output: str | os.PathLike[str] | None = None,
    callbacks: Sequence[Callback] = (),
    trainer_kwargs: Mapping[str, Any] | None = None,
    seed: int = 0,
    num_workers: int = 0,
    progress: bool = True,
) -> FitResult:
    """
    Train a classifier: first its head on the frozen backbone, then everything, the backbone more slowly.

    What was frozen by :meth:`medimg.TransferClassifier.freeze` stays as it is, bit by bit, batch statistics
    included. With validation data the weights of the best epoch are restored at the end: that of the highest
    AUROC (lower loss between equals), of the lowest loss where no AUROC is defined.

    Parameters
    ----------
    model : TransferClassifier
        Trained in place. It ends in evaluation mode, on the device where it was.
    train, val : ImageDataset
        Made by the model's own recipe, of its classes; without a patient in common.
    head_epochs, epochs : int
        Epochs with the head alone, and with everything; one of them may be 0.
    lr : float
        Highest learning rate of the head, after a short warm-up; half a cosine follows in each phase.
    backbone_lr_scale : float
        The backbone's rate is `lr` times this; 0 keeps it frozen.
    batch_size : int
        Items at once; bags count as one. A last batch of a single item is left out of an epoch.
    balance : {"loss", "sampler"} or None
        Against classes of unequal size: weigh the loss, draw rare ones more often, or do nothing.
    augment : "auto", callable or None
        "auto": turns up to 10 degrees, shifts up to 5 %, scales up to 10 %, brightness and contrast up to
        10 %; never a mirroring. A callable takes and gives a batch (B, 3, H, W): what it draws once, it
        draws for all. None: off.
    adapt : None
        Reserved for domain adaptation.
    precision : str or int
        Lightning's; "auto" is bf16-mixed on GPUs that have it, else 32 bits.
    devices : "auto", int or sequence of int
        "auto" is one device: the GPU that the model is on or the first there is, else the CPU. More than one
        trains distributed, as Lightning does it.
    resume : None
        Reserved for resuming.
    output : path-like, optional
        Folder for ``best.safetensors`` and ``history.csv``, both written as soon as there is something new.
    callbacks : sequence of pytorch_lightning.Callback
        They see two fits, one per phase, and start each with the state that they came with. The metrics are
        ``train_loss``, ``val_loss``, ``val_accuracy``, ``val_auroc``.
    trainer_kwargs : mapping, optional
        More for ``pytorch_lightning.Trainer``: ``logger``, ``accelerator``, ``gradient_clip_val``, ...
    seed : int
        Of order, augmentation and dropout; the new head was drawn when the model was made. torch's own
        random state is left as it was.
    num_workers : int
        Processes that read.
    progress : bool
        Whether to show a progress bar.

    Returns
    -------
    FitResult
        History, best epoch, checkpoint.

    Raises
    ------
    TrainingError
        If data and model don't fit, a class has no example, a setting is unsound, or the loss is not finite.
    LeakageError
        If a patient is in both data sets.

    Notes
    -----
    The validation loss is that of training, class weights included. AUROC is each class's against the rest,
    averaged over those classes that have both examples and counterexamples.
    """
    check_reserved(adapt, resume)
    head_epochs, epochs = whole_number("head_epochs", head_epochs), whole_number("epochs", epochs)
    batch_size, seed = whole_number("batch_size", batch_size), whole_number("seed", seed)
    num_workers = max(0, whole_number("num_workers", num_workers))
    lr, backbone_lr_scale = real_number("lr", lr), real_number("backbone_lr_scale", backbone_lr_scale)
    check_settings(
        head_epochs=head_epochs,
        epochs=epochs,
        lr=lr,
        backbone_lr_scale=backbone_lr_scale,
        batch_size=batch_size,
        balance=balance,
    )
    check_data(model, train, val)
    device = next(model.parameters()).device
    engine = Engine.make(
        device,
        precision=precision,
        devices=devices,
        progress=progress,
        callbacks=callbacks,
        more=trainer_kwargs or {},
    )
    settings = {
        "head_epochs": head_epochs,
        "epochs": epochs,
        "lr": lr,
        "backbone_lr_scale": backbone_lr_scale,
        "batch_size": batch_size,
        "balance": balance,
        "augment": augment if augment is None or isinstance(augment, str) else "own",
        "seed": seed,
        "train_items": len(train),
        "val_items": len(val) if val is not None else 0,
    }
    job = _Job(
        model,
        train,
        val,
        loss=make_loss(train.labels, len(model.classes), model.task, balance),
        augment=make_augmentation(augment, model.preprocess),
        balance=balance,
        batch_size=batch_size,
        num_workers=num_workers,
        recorder=Recorder(model, Path(output) if output is not None else None, settings),
    )
    phases = (
        Phase("head", head_epochs, 0, lr, 0.0, seed),
        Phase("full", epochs, head_epochs, lr, lr * backbone_lr_scale, seed + 1),
    )
    return _run(job, [phase for phase in phases if phase.epochs], engine, device, seed)


def _run(job: _Job, phases: Sequence[Phase], engine: Engine, device: torch.device, seed: int) -> FitResult:
    model, recorder = job.model, job.recorder
    started = time.perf_counter()
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    try:
        with engine.running(seed):
            fresh = [copy.deepcopy(callback.state_dict()) for callback in engine.callbacks]
            for phase in phases:
                # a callback that counts, such as EarlyStopping, starts anew with what is trained anew
                for callback, state in zip(engine.callbacks, fresh, strict=True):
                    callback.load_state_dict(copy.deepcopy(state))
                _make_trainable(model, trainable)
                if not phase.backbone_lr:
                    model.backbone.requires_grad_(False)
                _check_trainable(model, phase)
                job.run(phase, engine)
    finally:
        # whatever happened, the model is usable: the best weights so far, on its device, as it was frozen
        _make_trainable(model, trainable)
        model.to(device)
        recorder.restore()
        model.eval()
    if not recorder.rows:
        raise TrainingError(
            "no epoch has ended: a limit among trainer_kwargs stops training before; raise it"
        )
    return FitResult(
        history=tuple(recorder.rows),
        best_epoch=recorder.best_epoch,
        monitor=recorder.monitor,
        seconds=time.perf_counter() - started,
        checkpoint=recorder.checkpoint,
    )


def _check_trainable(model: TransferClassifier, phase: Phase) -> None:
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise TrainingError(
            f"nothing is trainable in the {phase.name} phase, as all is frozen: unfreeze the head, or give "
            "it 0 epochs"
        )


def _make_trainable(model: TransferClassifier, names: set[str]) -> None:
    """Make these parameters trainable and freeze all others."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)
