"""Fine-tuning: first the head alone, then everything that isn't frozen."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from medimg._validation import check_whole_number
from medimg.adapt.base import Adaptation
from medimg.errors import TrainingError
from medimg.models.training_distribution import record_training_distribution
from medimg.models.training_images import record_training_images
from medimg.training.augmentation.random_scan import make_augmentation
from medimg.training.checks import check_data
from medimg.training.config import FineTuneConfig
from medimg.training.history import HistoryRecorder
from medimg.training.loop import restore_state, run
from medimg.training.losses import class_odds, make_loss
from medimg.training.resume import FILE, data_digest, find_progress
from medimg.training.state import TrainingState
from medimg.training.trainer import TrainerConfig, make_loggers, prefers_channels_last

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from pytorch_lightning import Callback
    from pytorch_lightning.loggers import Logger

    from medimg.data.protocols import LabeledDataset
    from medimg.models.classifier import TransferClassifier
    from medimg.training.augmentation.random_scan import AugmentChoice
    from medimg.training.config import BatchStatistics, Monitor, Schedule
    from medimg.training.history import FitResult
    from medimg.training.losses import Balance

__all__ = ["fine_tune"]


def fine_tune(
    model: TransferClassifier,
    train: LabeledDataset,
    val: LabeledDataset | None = None,
    *,
    head_epochs: int = 1,
    epochs: int = 10,
    lr: float = 1e-3,
    backbone_lr_scale: float = 0.1,
    layer_decay: float = 0.8,
    gradual: bool = False,
    schedule: Schedule = "one_cycle",
    weight_decay: float = 0.01,
    batch_size: int = 32,
    accumulate: int = 1,
    balance: Balance = "loss",
    label_smoothing: float = 0.0,
    mixup: float = 0.0,
    ema: float | None = None,
    augment: AugmentChoice = "auto",
    monitor: Monitor = "auto",
    patience: int | None = None,
    grad_slices: int | None = None,
    batch_statistics: BatchStatistics = "auto",
    adapt: Adaptation | Sequence[Adaptation] | None = None,
    precision: Any = "auto",
    devices: int | str | Sequence[int] = "auto",
    channels_last: bool | str = "auto",
    compile: bool = False,
    resume: bool | str | os.PathLike[str] | None = None,
    output: str | os.PathLike[str] | None = None,
    cache: str | os.PathLike[str] | None = None,
    logger: str | Logger | Sequence[str | Logger] | None = None,
    callbacks: Sequence[Callback] = (),
    trainer_kwargs: Mapping[str, Any] | None = None,
    seed: int = 0,
    num_workers: int = 0,
    progress: bool = True,
) -> FitResult:
    """
    Train a classifier: first its head on the frozen backbone, then everything, the backbone more slowly.

    What was frozen by :meth:`medimg.TransferClassifier.freeze` stays as it is, bit by bit, batch statistics
    included. Where the backbone is frozen and nothing is augmented, images pass it once, and epochs are
    epochs over their embeddings. With validation data the weights of the best epoch are restored at the end:
    that of the highest AUROC (lower loss between equals), of the lowest loss where no AUROC is defined.

    Parameters
    ----------
    model : TransferClassifier
        Trained in place. It ends in evaluation mode, on the device where it was.
    train, val : ImageDataset
        Made by the model's own recipe, of its classes; without a patient in common.
    head_epochs, epochs : int
        Epochs with the head alone, and with everything; one of them may be 0.
    lr : float
        Highest learning rate of the head in each phase; :func:`medimg.lr_find` looks for one.
    backbone_lr_scale : float
        The rate of the backbone's last stage is `lr` times this; 0 keeps it frozen.
    layer_decay : float
        The rate of each stage before is that of the next one times this; 1 for the same.
    gradual : bool
        Whether the stages are unfrozen one after the other, from the last, one epoch each, before all of
        the backbone is trained for the rest of `epochs`.
    schedule : {"one_cycle", "cosine", "constant"}
        How rates run through a phase: up for a quarter of it and down again, the momentum the other way
        round; a short linear warm-up and half a cosine; or no change.
    weight_decay : float
        Of AdamW; norms, biases, embeddings of positions and scales of layers don't decay.
    batch_size : int
        Items at once, on each device; bags count as one. A last batch of a single item is left out of an
        epoch.
    accumulate : int
        Batches whose gradients are put together for a step.
    balance : {"loss", "sampler"} or None
        Against classes of unequal size: weigh the loss, draw rare ones more often, or do nothing.
    label_smoothing : float
        Share of the target that is spread over all classes.
    mixup : float
        Mix pairs of single pictures by a share from Beta(mixup, mixup); 0 is off.
    ema : float, optional
        Decay of a moving mean of the weights, such as 0.999, which is then what is validated and kept.
    augment : "auto", str, callable or None
        "auto": small changes that suit the modality, never a mirroring, in those phases that train the
        backbone; see the user guide. A callable takes and gives a batch (B, 3, H, W), in all phases. None:
        off.
    monitor : str
        The score that chooses the best epoch: "val_auroc", "val_loss", "val_accuracy",
        "val_balanced_accuracy" or "val_f1"; "auto" as told above.
    patience : int, optional
        End a phase after so many epochs without a better score.
    grad_slices : int, optional
        Of bags: the most slices of each that gradients flow through, chosen anew for each step.
    batch_statistics : {"auto", "keep", "update"}
        Whether BatchNorm layers of the backbone normalize by the means and variances that came with the
        weights, while their scales and offsets are trained ("keep"), or by those of each batch, and follow
        them by running means ("update"). "auto" keeps those of pretrained weights, and updates those of
        random ones.
    adapt : Adaptation or sequence of Adaptation, optional
        What is done about another domain, or against perturbed images; see :mod:`medimg.adapt`.
    precision : str or int
        Lightning's; "auto" is bf16-mixed on GPUs that have it, 16-mixed on others, 32 bits on the CPU.
    devices : "auto", int or sequence of int
        "auto" is one device: the GPU that the model is on or the first there is, else the CPU. More than one
        trains distributed, as Lightning does it; what the loss is does not depend on their number.
    channels_last : bool or "auto"
        Whether pictures lie in memory pixel by pixel, which convolutions on GPUs are faster with; "auto" for
        convolutional backbones.
    compile : bool
        Whether the backbone is compiled by ``torch.compile``: minutes at first, then faster steps.
    resume : bool or path-like, optional
        True: go on with the training that `output` is of, if it was cut off; it ends with the weights that
        it would have had without the break. A path: the folder of another one.
    output : path-like, optional
        Folder for ``best.safetensors``, ``last.safetensors``, ``history.csv`` and what `resume` needs, all
        written after each epoch.
    cache : path-like, optional
        A folder where embeddings of a frozen backbone are kept for other trainings; see :func:`medimg.embed`.
    logger : "tensorboard", Lightning logger, or several, optional
        Where the numbers of each epoch go, besides ``history.csv``.
    callbacks : sequence of pytorch_lightning.Callback
        They see one fit per phase, and start each with the state that they came with. The metrics are
        ``train_loss``, ``val_loss``, ``val_accuracy``, ``val_balanced_accuracy``, ``val_f1``, ``val_auroc``.
    trainer_kwargs : mapping, optional
        More for ``pytorch_lightning.Trainer``: ``accelerator``, ``gradient_clip_val``, ``strategy``, ...
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
        If data and model don't fit, a class has no example, a setting is unsound, what is resumed was
        another training, or the loss is not finite.
    LeakageError
        If a patient is in both data sets.
    CheckpointError
        If the file to resume from is damaged.

    Notes
    -----
    The validation loss is that of training, class weights included. AUROC is each class's against the rest,
    averaged over those classes that have both examples and counterexamples.

    What an epoch draws depends on the seed and its number alone, so that a training that was cut off and
    resumed sees the same batches.
    """
    settings = FineTuneConfig(
        head_epochs=head_epochs,
        epochs=epochs,
        lr=lr,
        backbone_lr_scale=backbone_lr_scale,
        layer_decay=layer_decay,
        gradual=gradual,
        schedule=schedule,
        weight_decay=weight_decay,
        batch_size=batch_size,
        accumulate=accumulate,
        balance=balance,
        label_smoothing=label_smoothing,
        mixup=mixup,
        ema=ema,
        monitor=monitor,
        patience=patience,
        grad_slices=grad_slices,
        batch_statistics=batch_statistics,
        seed=seed,
    )
    check_data(model, train, val)
    _check_watched(settings, val)
    adaptations = _adaptations(adapt, model, train)
    folder = Path(output) if output is not None else None
    engine = TrainerConfig.make(
        next(model.parameters()).device,
        precision=precision,
        devices=devices,
        progress=progress,
        accumulate=settings.accumulate,
        callbacks=callbacks,
        more=trainer_kwargs or {},
    )
    summary = {
        **settings.to_dict(),
        "augment": augment if augment is None or isinstance(augment, str) else "own",
        "adapt": [one.settings() for one in adaptations],
        "train_items": len(train),
        "val_items": len(val) if val is not None else 0,
    }
    loss = make_loss(train.labels, len(model.classes), model.task, settings.balance, settings.label_smoothing)
    work = TrainingState(
        model=model,
        settings=settings,
        train=train,
        val=val,
        loss=loss,
        augment=make_augmentation(augment, model.preprocess, getattr(train, "modalities", ())),
        always=callable(augment),
        odds=class_odds(train.labels, model.task) if settings.balance == "sampler" else None,
        adaptations=adaptations,
        recorder=HistoryRecorder(
            model, folder, summary, monitor=settings.monitor, loggers=make_loggers(logger, folder)
        ),
        num_workers=max(0, check_whole_number("num_workers", num_workers)),
        pin_memory=engine.pins_memory,
        channels_last=prefers_channels_last(model, channels_last),
        state_file=folder / FILE if folder is not None else None,
        cache=cache,
        digests={"train": data_digest(train), "val": data_digest(val)},
    )
    start = restore_state(work, find_progress(resume, folder))
    record_training_distribution(model, train)
    record_training_images(model, train=train, val=val, target=[one.target for one in adaptations])
    return run(work, engine, start, compiled=compile)


def _check_watched(settings: FineTuneConfig, val: LabeledDataset | None) -> None:
    if val is None and (settings.patience is not None or settings.monitor != "auto"):
        name = "patience" if settings.patience is not None else "monitor"
        raise TrainingError(
            f"{name}= watches the validation data, and there are none: pass val=, or leave it"
        )


def _adaptations(
    adapt: Adaptation | Sequence[Adaptation] | None, model: TransferClassifier, train: LabeledDataset
) -> tuple[Adaptation, ...]:
    if adapt is None:
        return ()
    several: Any = (adapt,) if isinstance(adapt, Adaptation) else adapt
    if not isinstance(several, list | tuple) or not all(isinstance(one, Adaptation) for one in several):
        raise TrainingError(
            f"adapt is one of medimg.adapt, such as medimg.adapt.DANN(target), or several; found {adapt!r}"
        )
    for one in several:
        one.check(model.classes, train)
        one.check_model(model)
    return tuple(several)
