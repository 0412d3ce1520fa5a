"""Fine-tuning: first the head alone, then all layers that aren't frozen."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypedDict, cast

import numpy as np

from medimg._public import set_module
from medimg._validation import check_choice, check_path, check_processes
from medimg.adapt.base import Adaptation
from medimg.adapt.terms import AdaptationTerms
from medimg.core.logger import get_logger
from medimg.core.progress import check_progress
from medimg.data.augmentation.random_scan import describe_augmentation, make_augmentation
from medimg.data.processes import is_main_process
from medimg.errors import TrainingError
from medimg.metrics.validation_scores import validation_scores
from medimg.models.freezing import find_kept_statistics
from medimg.models.low_rank import add_adapters, merges_adapters
from medimg.models.module_mode import with_gradients
from medimg.models.training_distribution import record_training_distribution
from medimg.models.training_images import record_training_images
from medimg.training._config import MONITORS, FineTuneConfig
from medimg.training._loop import run
from medimg.training._phases import check_phases, make_trainable
from medimg.training._state import FineTuneInputs, TrainingState, check_candidates
from medimg.training._trainer import (
    TrainerConfig,
    check_monitored,
    make_loggers,
    prefers_channels_last,
)
from medimg.training.adaptation.choose_adaptation import resolve_auto, train_candidates
from medimg.training.checks import check_data, check_forward, check_unit
from medimg.training.class_weights import list_class_weights, sampling_weights
from medimg.training.epoch_display import EpochDisplay
from medimg.training.history import HistoryRecorder
from medimg.training.losses import make_loss
from medimg.training.optimization.custom import OWN, CustomParts
from medimg.training.optimization.optimizer import make_optimizer
from medimg.training.optimization.sharding import check_sharding
from medimg.training.resume import FILE, check_output, find_resume_file

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from pytorch_lightning import Callback
    from pytorch_lightning.loggers import Logger

    from medimg.adapt.auto import Auto
    from medimg.adapt.base import Images
    from medimg.core.progress import Progress
    from medimg.data.augmentation.random_scan import AugmentChoice
    from medimg.data.protocols import LabeledDataset
    from medimg.models.classifier import TransferClassifier
    from medimg.training._config import Adapter, BatchStatistics, Monitor, Schedule
    from medimg.training.class_weights import Balance
    from medimg.training.history import FitResult
    from medimg.training.optimization.custom import (
        LossFunction,
        MetricFunction,
        OptimizerFactory,
        ScheduleFactory,
    )

__all__ = ["FineTuneArguments", "fine_tune"]


class FineTuneArguments(TypedDict, total=False):
    """Arguments of :func:`medimg.fine_tune` for the model of each fold, each optional."""

    head_epochs: int
    epochs: int
    lr: float
    backbone_lr_scale: float
    layer_decay: float
    gradual: bool
    schedule: Schedule | ScheduleFactory
    optimizer: OptimizerFactory | None
    weight_decay: float
    batch_size: int
    accumulate: int
    loss: LossFunction | None
    balance: Balance
    label_smoothing: float
    mixup: float
    ema: float | None
    augment: AugmentChoice
    metrics: Mapping[str, MetricFunction] | None
    monitor: Monitor | str
    patience: int | None
    grad_slices: int | None
    batch_statistics: BatchStatistics
    adapter: Adapter | None
    rank: int | None
    adapt: Adaptation | Sequence[Adaptation] | Auto | Literal["auto"] | None
    target: Images | None
    precision: Any
    devices: int | str | Sequence[int]
    num_nodes: int | Literal["auto"]
    strategy: str
    channels_last: bool | str
    compile: bool
    logger: str | Sequence[str] | None
    callbacks: Sequence[Callback]
    trainer_kwargs: Mapping[str, Any] | None


@set_module("medimg")
@with_gradients
@merges_adapters
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
    schedule: Schedule | ScheduleFactory = "one_cycle",
    optimizer: OptimizerFactory | None = None,
    weight_decay: float = 0.01,
    batch_size: int = 32,
    accumulate: int = 1,
    loss: LossFunction | None = None,
    balance: Balance = "loss",
    label_smoothing: float = 0.0,
    mixup: float = 0.0,
    ema: float | None = None,
    augment: AugmentChoice = "auto",
    metrics: Mapping[str, MetricFunction] | None = None,
    monitor: Monitor | str = "auto",
    patience: int | None = None,
    grad_slices: int | None = None,
    batch_statistics: BatchStatistics = "auto",
    adapter: Adapter | None = None,
    rank: int | None = None,
    adapt: Adaptation | Sequence[Adaptation] | Auto | Literal["auto"] | None = None,
    target: Images | None = None,
    precision: Any = "auto",
    devices: int | str | Sequence[int] = "auto",
    num_nodes: int | Literal["auto"] = "auto",
    strategy: str = "auto",
    channels_last: bool | str = "auto",
    compile: bool = False,
    resume: bool | str | os.PathLike[str] | None = None,
    output: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    cache: str | os.PathLike[str] | None = None,
    logger: str | Logger | Sequence[str | Logger] | None = None,
    callbacks: Sequence[Callback] = (),
    trainer_kwargs: Mapping[str, Any] | None = None,
    seed: int = 0,
    workers: int | None = None,
    progress: Progress = "auto",
) -> FitResult:
    """
    Train a classifier: first the head alone, then all layers, the backbone with lower learning rates.

    Layers frozen by :meth:`medimg.TransferClassifier.freeze` stay bit-for-bit identical, batch statistics
    included. Without augmentation the images go through a frozen backbone once, and the head is trained on
    cached embeddings. With validation data the model ends with the weights of the best epoch: the one with
    the highest AUROC (lower loss if equal), or with the lowest loss if no AUROC is defined.

    Parameters
    ----------
    model : TransferClassifier
        Model to train in place. It ends in evaluation mode, on the device where it was.
    train, val : ImageDataset
        Training and validation data with the model's preprocessing and classes, and without a patient in
        common.
    head_epochs, epochs : int
        Number of epochs for the head alone, and for all layers; one of them may be 0.
    lr : float
        Peak learning rate of the head in each phase; :func:`medimg.lr_find` suggests one.
    backbone_lr_scale : float
        Learning rate of the backbone's last stage relative to `lr`; 0 keeps the backbone frozen.
    layer_decay : float
        Learning rate of each stage relative to the next one (discriminative learning rates); 1 for equal
        rates.
    gradual : bool
        Whether to unfreeze the stages one after the other from the last, one epoch each, before the whole
        backbone is trained for the rest of `epochs`.
    schedule : {"one_cycle", "cosine", "constant"} or callable
        Learning-rate schedule of each phase: one cycle (up for a quarter of the phase and down again,
        momentum the other way round), a short linear warm-up and half a cosine, or constant. A callable takes
        the optimizer, and the phase's number of steps if it has a parameter for that, and returns a torch
        scheduler, which is stepped after every step.
    optimizer : callable, optional
        Class or function from parameter groups to a torch optimizer, such as
        ``functools.partial(torch.optim.SGD, momentum=0.9)``. Each group has "params", "lr" and
        "weight_decay"; the momentum stays as it is. By default AdamW.
    weight_decay : float
        Weight decay. It is not applied to normalization layers, biases, position embeddings and
        layer scales.
    batch_size : int
        Number of items per batch on each device; a bag counts as one. A last batch of a single item is left
        out of an epoch.
    accumulate : int
        Number of gradient accumulation steps.
    loss : callable, optional
        Loss instead of cross-entropy: a function or module of float32 logits (B, K) and labels, (B,) int64 or
        (B, K) float32, that returns (B,), (B, K) or a mean. It needs ``balance=None`` or "sampler".
    balance : {"loss", "sampler"} or None
        Correction for class imbalance: class weights in the loss, oversampling of rare classes, or none.
    label_smoothing : float
        Label smoothing factor.
    mixup : float
        Parameter alpha of mixup, for single images only, whose weights are drawn from Beta(alpha, alpha); 0
        disables it.
    ema : float, optional
        Decay of an exponential moving average of the weights, such as 0.999; the average is then validated
        and saved.
    augment : "auto", str, callable or None
        Augmentation. "auto": small random changes that suit the modality, without flips, in phases that train
        the backbone; see the user guide. A callable takes and returns a batch (B, C, H, W), in all phases.
        None: no augmentation.
    metrics : mapping, optional
        Further scores of the validation data: functions by name of labels (n,) or (n, K) and probabilities
        (n, K), such as scikit-learn's ``roc_auc_score``; one of predicted classes, such as
        ``balanced_accuracy_score``, needs ``probabilities.argmax(1)``. Higher is better. They are
        ``val_<name>`` in the history.
    monitor : str
        Score that selects the best epoch: "val_auroc", "val_loss", "val_accuracy", "val_balanced_accuracy",
        "val_f1" or one of `metrics`; "auto" as described above.
    patience : int, optional
        Number of epochs without a better score after which a phase ends.
    grad_slices : int, optional
        Largest number of slices per bag that gradients flow through, sampled in each step.
    batch_statistics : {"auto", "keep", "update"}
        Whether BatchNorm layers of the backbone normalize by their running statistics, which stay unchanged
        while scale and offset are trained ("keep"), or by those of each batch ("update"). "auto" keeps the
        statistics of layers that have some, and updates new ones (mean 0, variance 1, no batches).
    adapter : "lora", optional
        Low-rank adapters (LoRA) of the linear and attention layers of a transformer, which are trained
        instead of the backbone's own parameters, with ten times their learning rates. They are merged into
        the weights at the end, and in every checkpoint; all other parameters of the backbone stay bit-for-bit
        identical. Frozen layers get none.
    rank : int, optional
        Rank of the adapters, by default 8.
    adapt : Adaptation, sequence of Adaptation, Auto or "auto", optional
        Methods of domain adaptation or adversarial training; see :mod:`medimg.adapt`. "auto" trains with
        several methods and without adaptation, each for all epochs, and keeps one model:
        ``adapt.Auto(target)``; it needs `val` and, as "auto", `target`.
    target : ImageDataset, optional
        Unlabeled images of the target domain for ``adapt="auto"``.
    precision : str or int
        Lightning's precision; "auto" is bf16-mixed on GPUs that support it, 16-mixed on others, 32 bits on
        the CPU.
    devices : "auto", int or sequence of int
        Devices of Lightning's trainer, of each computer. "auto" is one device: the GPU of the model or the
        first there is, else the CPU; under ``torchrun`` or SLURM as many as it has started processes for.
        Several train distributed; the loss does not depend on their number.
    num_nodes : "auto" or int
        Number of computers, each of which runs this script; "auto" is 1, or what ``torchrun`` or SLURM state.
    strategy : str
        Lightning's strategy for several devices: "auto", "ddp" or another one with a whole copy of the model
        on each device; or "fsdp", which divides parameters, gradients and optimizer between them, for models
        that are too large for one. Its limits are in the guide.
    channels_last : bool or "auto"
        Whether the backbone runs in channels-last memory format, which is faster for convolutions on GPUs;
        "auto" for convolutional backbones.
    compile : bool
        Whether to compile the backbone with ``torch.compile``: minutes at first, then faster steps.
    resume : bool or path-like, optional
        True: continue the interrupted training of `output`; it ends with the same weights as without the
        interruption. A path: the folder of another training. Settings that change the result and the content
        of the data must be the same, but a training that has ended goes on if `epochs` is higher, from its
        last weights, with a new schedule for the further epochs.
    output : path-like, optional
        Folder for ``best.safetensors``, ``last.safetensors``, ``history.csv`` and the resume file, all
        written after each epoch. One with the results of an earlier training is refused, unless that goes on
        (`resume`) or is to be replaced (`overwrite`).
    overwrite : bool
        Whether to replace the results of an earlier training in `output`.
    cache : path-like, optional
        Folder for cached embeddings of a frozen backbone, shared between trainings; see :func:`medimg.embed`.
    logger : "tensorboard", Lightning logger, or several, optional
        Loggers of the settings and each epoch's metrics, in addition to ``history.csv``.
    callbacks : sequence of pytorch_lightning.Callback
        Lightning callbacks. They see one fit per phase, and start each from their initial state. The metrics
        are ``train_loss``, ``val_loss``, ``val_accuracy``, ``val_balanced_accuracy``, ``val_f1`` and
        ``val_auroc``.
    trainer_kwargs : mapping, optional
        Further arguments of ``pytorch_lightning.Trainer``: ``accelerator``, ``gradient_clip_val``,
        ``sync_batchnorm``, ...
    seed : int
        Seed for sampling order, augmentation and dropout; the head was initialized when the model was
        created. torch's global random state is restored.
    workers : int, optional
        Number of processes that read the images; by default they are read in this process.
    progress : "auto" or bool
        Whether to show a progress bar. "auto": in a terminal or a notebook, after 1 s.

    Returns
    -------
    FitResult
        History, best epoch and checkpoint.

    Raises
    ------
    TrainingError
        If data and model don't match, a class has no example, a setting is invalid or would have no effect,
        `output` has the results of an earlier training, the resume file belongs to another one, the loss
        is not finite, or another process of the training has ended.
    LeakageError
        If a patient is in both datasets.
    CheckpointError
        If the resume file is damaged.

    Warns
    -----
    MedimgWarning
        If ``adapt="auto"`` keeps the training without adaptation, because the target is too small to tell the
        best method from it.

    Notes
    -----
    The validation loss is computed like the training loss, class weights included. AUROC is one-vs-rest,
    averaged over the classes that have both positive and negative examples.

    The random numbers of an epoch depend only on the seed and the epoch's number, so that a resumed training
    sees the same batches.
    """
    given: dict[str, Any] = {**locals()}
    auto = resolve_auto(given.pop("adapt"), given.pop("target"))
    custom = CustomParts.make(
        optimizer=optimizer,
        schedule=None if isinstance(schedule, str) else schedule,
        loss=loss,
        metrics=metrics,
        taken=MONITORS,
    )
    config = FineTuneConfig(
        head_epochs=head_epochs,
        epochs=epochs,
        lr=lr,
        backbone_lr_scale=backbone_lr_scale,
        layer_decay=layer_decay,
        gradual=gradual,
        schedule=cast("Schedule", OWN if custom.schedule is not None else schedule),
        weight_decay=weight_decay,
        batch_size=batch_size,
        accumulate=accumulate,
        balance=balance,
        label_smoothing=label_smoothing,
        mixup=mixup,
        ema=ema,
        monitor=cast("Monitor", monitor),
        patience=patience,
        grad_slices=grad_slices,
        batch_statistics=batch_statistics,
        adapter=adapter,
        rank=rank,
        seed=seed,
        own=(*custom.columns, *(() if custom.schedule is None else (OWN,))),
    )
    custom.check_settings(balance=config.balance, label_smoothing=config.label_smoothing, adapts=bool(adapt))
    folder = _check_folder(output, resume, overwrite=overwrite, adapts_automatically=auto is not None)
    check_data(model, train, val)
    check_unit(config, train)
    custom.check_loss(train.labels, len(model.classes), next(model.parameters()).device)
    scores = _list_scores(val, custom)
    _check_monitored(config, val, scores)
    adaptations = _check_adaptations(None if auto is not None else adapt, model, train)
    check_phases(config, model, adaptations)
    check_choice("compile", compile, (True, False))
    if cache is not None:
        check_path("cache", cache)
    trainer = TrainerConfig.make(
        next(model.parameters()).device,
        precision=precision,
        devices=devices,
        num_nodes=num_nodes,
        strategy=strategy,
        accumulate=config.accumulate,
        callbacks=callbacks,
        more=trainer_kwargs if trainer_kwargs is not None else {},
    )
    check_sharding(
        trainer.sharding,
        model,
        config,
        adapts=bool(adapt),
        compiled=compile,
        channels_last=channels_last,
        precision=trainer.options["precision"],
    )
    trainer.check(config.seed)
    check_progress(progress)
    if not adaptations:  # which log scores of their own
        check_monitored(trainer.callbacks, scores)
    inputs = FineTuneInputs(
        model=model,
        config=config,
        train=train,
        val=val,
        loss=custom.loss
        or make_loss(train.labels, len(model.classes), model.task, config.balance, config.label_smoothing),
        odds=sampling_weights(train.labels, model.task) if config.balance == "sampler" else None,
        augment=make_augmentation(augment, model.preprocess, getattr(train, "modalities", ())),
        augment_frozen=callable(augment),
        adaptations=adaptations,
        custom=custom,
        workers=check_processes(workers),
        pin_memory=trainer.uses_gpu,
        channels_last=prefers_channels_last(model, channels_last) and trainer.sharding is None,
        cache=cache,
        resume_file=folder / FILE if folder is not None else None,
        more={
            "augment": describe_augmentation(augment, getattr(train, "modalities", ())),
            **trainer.describe(),
            **custom.identity,
        },
    )
    _check_custom(inputs, trainer.processes.count)
    if auto is not None:
        given = {name: value for name, value in given.items() if name not in ("model", "train", "val")}
        return train_candidates(
            fine_tune,
            auto,
            model,
            (train, val),
            given,
            check=partial(check_phases, config, model),
            check_resume=partial(check_candidates, inputs),
        )
    if trainer.is_main_process:
        get_logger().info("%s", _describe_start(inputs, trainer))
    adapted = None if config.rank is None else add_adapters(model, config.rank, config.seed)
    if adapted is not None and trainer.is_main_process:
        get_logger().info("adapters of %d layers, %d parameters", *adapted)
    kept = find_kept_statistics(model, config.batch_statistics)
    if any(phase.backbone_lr for phase in inputs.phases):
        check_forward(model, train, config, kept)
    summary = {
        **config.to_dict(),
        **custom.names,
        "adapter_parameters": adapted.parameters if adapted is not None else 0,
        "augment": augment if augment is None or isinstance(augment, str) else "own",
        "adapt": [one.settings() for one in adaptations],
        "train_items": len(train),
        "val_items": len(val) if val is not None else 0,
        "class_weights": list_class_weights(train.labels, model.task, len(model.classes), config.balance),
    }
    loggers = make_loggers(logger, folder)
    state = TrainingState(
        inputs,
        history=HistoryRecorder(
            model, folder, summary, monitor=config.monitor, patience=config.patience, loggers=loggers
        ),
        terms=AdaptationTerms(adaptations, train, model, config.seed),
        kept_statistics=kept,
        sharding=trainer.sharding,
        display=EpochDisplay(
            progress, config.head_epochs + config.epochs, own_bar=not trainer.has_progress_bar
        ),
    )
    resume_file = find_resume_file(resume, folder)
    if resume_file is not None:
        state.restore(resume_file)
        if trainer.is_main_process:
            get_logger().info("resuming after %d epochs", len(state.history.rows))
            if state.ends:
                get_logger().info(
                    "%d further epochs after %d", config.epochs - state.ends[-1], state.ends[-1]
                )
            state.display.show_rows(state.history.rows, state.history.best_epoch)
    record_training_distribution(model, train)
    record_training_images(model, train=train, val=val, target=[one.target for one in adaptations])
    if resume_file is None and trainer.is_main_process:
        # a resumed training starts from the same random head
        state.save()
    return run(state, trainer, compiled=compile)


def _check_folder(
    output: str | os.PathLike[str] | None,
    resume: bool | str | os.PathLike[str] | None,
    *,
    overwrite: object,
    adapts_automatically: bool,
) -> Path | None:
    """Return the output folder; TrainingError if it has results that are not to be replaced."""
    replaces = check_choice("overwrite", overwrite, (True, False))
    if output is None:
        return None
    folder = check_path("output", output)
    # a process that the main one starts finds the files of this training
    if not adapts_automatically and is_main_process():
        check_output(folder, resume, overwrite=bool(replaces))
    return folder


def _check_custom(inputs: FineTuneInputs, processes: int) -> None:
    """Raise TrainingError if the user's optimizer or schedule fails on groups and steps of the last phase."""
    model, custom, config, last = inputs.model, inputs.custom, inputs.config, inputs.phases[-1]
    if custom.optimizer is None and custom.schedule is None:
        return
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    make_trainable(model, model.backbone, trainable, last)
    try:
        if not any(p.requires_grad for p in model.parameters()):
            return  # an error of its own, once the phase begins
        optimizer = make_optimizer(
            model,
            last.lr,
            last.backbone_lr,
            layer_decay=config.layer_decay,
            weight_decay=config.weight_decay,
            factory=None if custom.optimizer is None else custom.make_optimizer,
        )
    finally:
        make_trainable(model, model.backbone, trainable)
    if custom.schedule is not None:
        items = len(inputs.train) // processes
        # a last batch of a single item is left out
        batches = math.ceil(items / config.batch_size) - (items % config.batch_size == 1)
        custom.make_schedule(optimizer, last.epochs * max(1, math.ceil(batches / config.accumulate)))


def _describe_start(inputs: FineTuneInputs, trainer: TrainerConfig) -> str:
    """Describe a training that begins: network, data, device."""
    unit = "series" if inputs.train.unit == "series" else "images"
    val = "no validation" if inputs.val is None else f"{len(inputs.val):,} for validation"
    precision = trainer.options["precision"]
    return (
        f"fine-tuning {inputs.model.backbone_name} on {len(inputs.train):,} {unit} ({val}), "
        f"{trainer.device.type}, precision {precision}: checking the data"
    )


def _check_monitored(config: FineTuneConfig, val: LabeledDataset | None, scores: set[str]) -> None:
    if val is None and (config.patience is not None or config.monitor != "auto"):
        name = "patience" if config.patience is not None else "monitor"
        raise TrainingError(f"{name}= needs validation data: pass val=, or leave {name} at its default")
    if config.monitor != "auto" and config.monitor not in scores:
        raise TrainingError(
            f"monitor={config.monitor!r} has no value, because no class has both positive and negative "
            'examples in the validation data: use another split, or monitor="val_loss"'
        )


def _list_scores(val: LabeledDataset | None, custom: CustomParts) -> set[str]:
    """Return the names of the scores that each epoch has; TrainingError if a metric of the user's fails."""
    if val is None:
        if custom.metrics:
            raise TrainingError("metrics= score validation data: pass val=, or leave metrics out")
        return {"train_loss"}
    labels = np.asarray(val.labels)
    equal = np.full((len(labels), len(val.classes)), 1.0 / len(val.classes))
    custom.check_metrics(labels, equal)
    defined = validation_scores(labels, equal, val.task)
    return {
        "train_loss",
        "val_loss",
        *custom.columns,
        *(name for name, value in defined.items() if value is not None),
    }


def _check_adaptations(
    adapt: object, model: TransferClassifier, train: LabeledDataset
) -> tuple[Adaptation, ...]:
    if adapt is None:
        return ()
    several: Any = (adapt,) if isinstance(adapt, Adaptation) else adapt
    if not isinstance(several, list | tuple) or not all(isinstance(one, Adaptation) for one in several):
        raise TrainingError(
            "adapt must be a method of medimg.adapt, such as medimg.adapt.DANN(target), or several, or "
            f'"auto"; found {adapt!r}'
        )
    for one in several:
        one.check(model.classes, train)
        one.check_model(model)
    return tuple(several)
