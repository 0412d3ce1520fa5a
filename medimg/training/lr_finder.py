"""Learning-rate range test."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from medimg._plot_style import COLORS, add_legend, make_axes
from medimg._public import set_module
from medimg._validation import check_number, check_processes, check_whole_number
from medimg.core.progress import Progress, progress_bar
from medimg.data.augmentation.random_scan import make_augmentation
from medimg.data.dataloader import (
    EpochSampler,
    epoch_seed,
    find_stream,
    make_training_loader,
    repeat_epochs,
    worker_errors,
)
from medimg.errors import TrainingError
from medimg.models.freezing import find_kept_statistics, freeze_batchnorm_statistics
from medimg.models.low_rank import add_adapters, merges_adapters
from medimg.models.module_mode import module_mode, with_gradients
from medimg.training._config import FineTuneConfig
from medimg.training.checks import check_data, check_forward, check_unit
from medimg.training.class_weights import sampling_weights
from medimg.training.losses import make_loss
from medimg.training.optimization.custom import CustomParts, run_step
from medimg.training.optimization.optimizer import make_optimizer

if TYPE_CHECKING:
    from collections.abc import Callable

    import pandas as pd
    from matplotlib.figure import Figure
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from medimg.data.protocols import LabeledDataset
    from medimg.models.classifier import TransferClassifier
    from medimg.training._config import Adapter, BatchStatistics
    from medimg.training.class_weights import Balance
    from medimg.training.optimization.custom import LossFunction, OptimizerFactory

__all__ = ["LRFinderResult", "lr_find"]

_SMOOTHING: Final = 0.9
_DIVERGED: Final = 4.0  # times the lowest loss
_FEW: Final = 5  # steps before the mean loss is stable


@set_module("medimg")
@dataclass(frozen=True, slots=True)
class LRFinderResult:
    """
    Result of :func:`medimg.lr_find`: losses by learning rate, and suggestions.

    Parameters
    ----------
    lrs : tuple of float
        Learning rates of the head, in ascending order.
    losses : tuple of float
        Training loss at each, smoothed by an exponential moving average.
    suggestion : float
        Learning rate in the middle of the longest descent of the loss.
    steepest : float
        Learning rate at which the loss falls fastest.
    """

    lrs: tuple[float, ...] = field(repr=False)
    losses: tuple[float, ...] = field(repr=False)
    suggestion: float
    steepest: float

    def to_pandas(self) -> pd.DataFrame:
        """Return learning rates and losses as a table."""
        import pandas as pd

        return pd.DataFrame({"lr": self.lrs, "loss": self.losses})

    def plot(self) -> Figure:
        """Return a figure of the loss by learning rate, with both suggestions marked."""
        figure, (axes,) = make_axes((5.5, 3.4))
        axes.plot(self.lrs, self.losses, color=COLORS[0])
        for rate, color, label in (
            (self.suggestion, COLORS[1], f"valley {self.suggestion:.1e}"),
            (self.steepest, COLORS[2], f"steepest {self.steepest:.1e}"),
        ):
            axes.axvline(rate, color=color, linestyle=":", label=label)
        axes.set_xscale("log")
        axes.set_xlabel("learning rate of the head")
        axes.set_ylabel("training loss, smoothed")
        add_legend(axes)
        return figure


@set_module("medimg")
@with_gradients
@merges_adapters
def lr_find(
    model: TransferClassifier,
    train: LabeledDataset,
    *,
    start: float = 1e-6,
    end: float = 1.0,
    steps: int = 100,
    batch_size: int = 32,
    backbone_lr_scale: float = 0.1,
    layer_decay: float = 0.8,
    optimizer: OptimizerFactory | None = None,
    weight_decay: float = 0.01,
    loss: LossFunction | None = None,
    balance: Balance = "loss",
    augment: Any = None,
    grad_slices: int | None = None,
    batch_statistics: BatchStatistics = "auto",
    adapter: Adapter | None = None,
    rank: int | None = None,
    seed: int = 0,
    workers: int | None = None,
    progress: Progress = "auto",
) -> LRFinderResult:
    """
    Run a learning-rate range test: a short training whose rate grows in every step until the loss diverges.

    Smith, Cyclical Learning Rates for Training Neural Networks (WACV 2017), section 3.3. All layers that are
    not frozen are trained; the model is restored at the end.

    Parameters
    ----------
    model : TransferClassifier
        Model to train, on the device for training; unchanged at the end.
    train : ImageDataset
        Training data.
    start, end : float
        First and last learning rate of the head.
    steps : int
        Number of learning rates, at least 10; the data are repeated as often as necessary.
    batch_size, backbone_lr_scale, layer_decay, weight_decay, balance, augment, grad_slices
        As in :func:`medimg.fine_tune`.
    optimizer, loss
        As in :func:`medimg.fine_tune`: rates of one optimizer or loss are not those of another.
    batch_statistics, adapter, rank
        As in :func:`medimg.fine_tune`.
    seed : int
        Seed for sampling order, augmentation and dropout.
    workers : int, optional
        Number of processes that read the images; by default they are read in this process.
    progress : "auto" or bool
        Whether to show a progress bar. "auto": in a terminal or a notebook, after 1 s.

    Returns
    -------
    LRFinderResult
        Losses by learning rate, and a suggestion for `lr` of :func:`medimg.fine_tune`.

    Raises
    ------
    TrainingError
        If data and model don't match, nothing is trainable, or the loss diverges from the start.
    """
    custom = CustomParts.make(optimizer=optimizer, schedule=None, loss=loss, metrics=None, taken=())
    config = FineTuneConfig(
        lr=start,
        backbone_lr_scale=backbone_lr_scale,
        layer_decay=layer_decay,
        weight_decay=weight_decay,
        batch_size=batch_size,
        balance=balance,
        grad_slices=grad_slices,
        batch_statistics=batch_statistics,
        adapter=adapter,
        rank=rank,
        seed=seed,
    )
    custom.check_settings(balance=config.balance, label_smoothing=config.label_smoothing, adapts=False)
    check_number("end", end)
    check_whole_number("steps", steps)
    if not (0 < start < end and math.isfinite(end)) or steps < 2 * _FEW:
        raise TrainingError(
            f"expected 0 < start < end and at least {2 * _FEW} steps; found start={start!r}, end={end!r}, "
            f"steps={steps!r}"
        )
    check_data(model, train, None)
    check_unit(config, train)
    device = next(model.parameters()).device
    custom.check_loss(train.labels, len(model.classes), device)
    if not any(p.requires_grad for p in model.parameters()):
        raise TrainingError(
            "nothing is trainable, because all parameters are frozen: call model.unfreeze() first"
        )
    if config.rank is not None:
        add_adapters(model, config.rank, config.seed)
    kept = find_kept_statistics(model, config.batch_statistics)
    check_forward(model, train, config, kept)
    before = {name: value.detach().clone() for name, value in model.state_dict().items()}
    gpus = [device] if device.type == "cuda" else []
    try:
        with module_mode(model, training=True), torch.random.fork_rng(devices=gpus), worker_errors():
            torch.manual_seed(seed)
            freeze_batchnorm_statistics(model, kept)
            lrs, losses = _run_test(
                model,
                train,
                config,
                custom,
                rates=np.geomspace(start, end, steps),
                augment=augment,
                workers=check_processes(workers),
                progress=progress,
            )
    finally:
        model.load_state_dict(before)
        model.zero_grad(set_to_none=True)
    return _suggest(lrs, losses)


def _run_test(
    model: TransferClassifier,
    train: LabeledDataset,
    config: FineTuneConfig,
    custom: CustomParts,
    *,
    rates: NDArray[np.float64],
    augment: Any,
    workers: int,
    progress: Progress,
) -> tuple[list[float], list[float]]:
    """Return learning rates and smoothed losses of all steps before the loss diverged."""
    device = next(model.parameters()).device
    augmentation = make_augmentation(augment, model.preprocess, getattr(train, "modalities", ()))
    generator = torch.Generator().manual_seed(epoch_seed(config.seed, 0, 1))
    plain = make_loss(train.labels, len(model.classes), model.task, config.balance)
    loss_of = (custom.loss or plain).to(device)
    first = config.lr
    optimizer = make_optimizer(
        model,
        first,
        config.backbone_lr,
        layer_decay=config.layer_decay,
        weight_decay=config.weight_decay,
        factory=None if custom.optimizer is None else custom.make_optimizer,
    )
    starts = [group["lr"] for group in optimizer.param_groups]
    sampler = EpochSampler(
        len(train),
        config.seed,
        odds=sampling_weights(train.labels, train.task) if config.balance == "sampler" else None,
        stream=find_stream(train),
    )
    loader = make_training_loader(
        train,
        batch_size=config.batch_size,
        workers=workers,
        pin_memory=device.type == "cuda",
        sampler=sampler,
    )
    smoothed, lowest = 0.0, math.inf
    lrs: list[float] = []
    losses: list[float] = []
    bar = progress_bar(rates, desc="learning rates", unit="step", progress=progress)
    for step, (rate, batch) in enumerate(zip(bar, repeat_epochs(loader, sampler), strict=False)):
        for group, lr in zip(optimizer.param_groups, starts, strict=True):
            group["lr"] = lr * rate / first
        images = batch.images.to(device)
        images = images if augmentation is None else augmentation(images, generator)
        mask = None if batch.mask is None else batch.mask.to(device)
        mean_loss = partial(
            _mean_loss, model, loss_of, images, mask, batch.labels.to(device), slices=config.grad_slices
        )
        value = _take_step(optimizer, mean_loss, custom, on=f"step {step + 1}")
        smoothed = _SMOOTHING * smoothed + (1.0 - _SMOOTHING) * value
        mean = smoothed / (1.0 - _SMOOTHING ** (step + 1))
        if not math.isfinite(value) or (step > _FEW and mean > _DIVERGED * lowest):
            break
        lowest = min(lowest, mean)
        lrs.append(float(rate))
        losses.append(mean)
    return lrs, losses


def _mean_loss(
    model: TransferClassifier,
    loss_of: nn.Module,
    images: Tensor,
    mask: Tensor | None,
    labels: Tensor,
    *,
    slices: int | None,
) -> Tensor:
    loss: Tensor = loss_of(model(images, mask, grad_slices=slices), labels).mean()
    return loss


def _take_step(
    optimizer: torch.optim.Optimizer, mean_loss: Callable[[], Tensor], custom: CustomParts, *, on: str
) -> float:
    """Step, and return the loss before; an optimizer may compute it several times."""
    found: list[float] = []

    @torch.enable_grad()
    def closure() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss = mean_loss()
        loss.backward()  # type: ignore[no-untyped-call]  # torch's
        found.append(float(loss.detach()))
        return loss

    run_step(optimizer.step, closure, custom.optimizer, on=on)
    return found[0]


def _suggest(lrs: list[float], losses: list[float]) -> LRFinderResult:
    if len(lrs) < 2 * _FEW:
        raise TrainingError(
            f"the loss diverged after {len(lrs)} steps: lower start, or check for non-finite images"
        )
    values = np.array(losses)
    left, right = _find_longest_descent(values)
    slopes = np.gradient(values, np.log(lrs))
    steepest = _FEW + int(np.argmin(slopes[_FEW:]))
    middle = (left + right) // 2
    return LRFinderResult(tuple(lrs), tuple(losses), float(lrs[middle]), float(lrs[steepest]))


def _find_longest_descent(values: NDArray[np.float64]) -> tuple[int, int]:
    """Return first and last index of the longest decreasing subsequence, which tolerates noise."""
    lengths, firsts = [1] * len(values), list(range(len(values)))
    for index in range(len(values)):
        for before in range(index):
            if values[before] > values[index] and lengths[before] + 1 > lengths[index]:
                lengths[index], firsts[index] = lengths[before] + 1, firsts[before]
    last = int(np.argmax(lengths))
    return firsts[last], last
