"""A search for the learning rate: a short training whose rate grows with every step."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from medimg.core.progress import progress_bar
from medimg.data.dataloader import EpochSampler, epoch_seed, make_training_loader
from medimg.errors import TrainingError
from medimg.models.freezing import freeze_batchnorm_statistics
from medimg.training.augmentation.random_scan import make_augmentation
from medimg.training.checks import check_data
from medimg.training.config import FineTuneConfig
from medimg.training.losses import class_odds, make_loss
from medimg.training.optimizer import make_optimizer

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pandas as pd
    from matplotlib.figure import Figure
    from numpy.typing import NDArray
    from torch import Tensor

    from medimg.data.dataloader import Batch
    from medimg.data.protocols import LabeledDataset
    from medimg.models.classifier import TransferClassifier
    from medimg.training.config import BatchStatistics
    from medimg.training.losses import Balance

__all__ = ["LRFinderResult", "lr_find"]

_SMOOTHING: Final = 0.9
_DIVERGED: Final = 4.0  # times the lowest loss
_FEW: Final = 5  # steps whose mean loss says nothing yet


@dataclass(frozen=True, slots=True)
class LRFinderResult:
    """
    What :func:`medimg.lr_find` found.

    Parameters
    ----------
    lrs : tuple of float
        The rates tried, growing.
    losses : tuple of float
        The loss at each, smoothed by a moving mean.
    suggestion : float
        The rate in the middle of the longest valley of the loss, where it falls most steadily.
    steepest : float
        The rate at which the loss falls fastest.
    """

    lrs: tuple[float, ...] = field(repr=False)
    losses: tuple[float, ...] = field(repr=False)
    suggestion: float
    steepest: float

    def to_pandas(self) -> pd.DataFrame:
        """Return rates and losses as a table."""
        import pandas as pd

        return pd.DataFrame({"lr": self.lrs, "loss": self.losses})

    def plot(self) -> Figure:
        """Return a figure of the loss by rate, with both suggestions marked."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(5.5, 3.4), layout="constrained")
        axes = figure.subplots()
        axes.plot(self.lrs, self.losses, color="#0072B2")
        for rate, color, label in (
            (self.suggestion, "#D55E00", f"valley {self.suggestion:.1e}"),
            (self.steepest, "#009E73", f"steepest {self.steepest:.1e}"),
        ):
            axes.axvline(rate, color=color, linestyle=":", label=label)
        axes.set_xscale("log")
        axes.set_xlabel("learning rate of the head")
        axes.set_ylabel("training loss, smoothed")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
        return figure


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
    weight_decay: float = 0.01,
    balance: Balance = "loss",
    augment: Any = None,
    grad_slices: int | None = None,
    batch_statistics: BatchStatistics = "auto",
    seed: int = 0,
    num_workers: int = 0,
    progress: bool = False,
) -> LRFinderResult:
    """
    Look for a learning rate: train with one that grows at every step until the loss diverges.

    Smith, Cyclical Learning Rates for Training Neural Networks (WACV 2017), section 3.3. The model is
    trained on what is not frozen, and set back to what it was.

    Parameters
    ----------
    model : TransferClassifier
        On the device where it is to be trained; unchanged in the end.
    train : ImageDataset
        The training data.
    start, end : float
        First and last rate of the head.
    steps : int
        How many rates, 10 or more; the data are gone through as often as that takes.
    batch_size, backbone_lr_scale, layer_decay, weight_decay, balance, augment, grad_slices, batch_statistics
        As in :func:`medimg.fine_tune`.
    seed : int
        Of order, augmentation and dropout.
    num_workers : int
        Processes that read.
    progress : bool
        Whether to show a progress bar.

    Returns
    -------
    LRFinderResult
        With a suggestion for `lr` of :func:`medimg.fine_tune`.

    Raises
    ------
    TrainingError
        If data and model don't fit, nothing is trainable, or the loss is not finite from the start.
    """
    settings = FineTuneConfig(
        lr=start,
        backbone_lr_scale=backbone_lr_scale,
        layer_decay=layer_decay,
        weight_decay=weight_decay,
        batch_size=batch_size,
        balance=balance,
        grad_slices=grad_slices,
        batch_statistics=batch_statistics,
        seed=seed,
    )
    if not (0 < start < end and math.isfinite(end)) or steps < 2 * _FEW:
        raise TrainingError(
            f"expected 0 < start < end and at least {2 * _FEW} steps; found start={start!r}, end={end!r}, "
            f"steps={steps!r}"
        )
    check_data(model, train, None)
    if not any(p.requires_grad for p in model.parameters()):
        raise TrainingError("nothing is trainable, as all is frozen: model.unfreeze() before")
    before = {name: value.detach().clone() for name, value in model.state_dict().items()}
    modes = [(module, module.training) for module in model.modules()]
    device = next(model.parameters()).device
    gpus = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=gpus):
            torch.manual_seed(seed)
            found = _tried(
                model,
                train,
                settings,
                rates=np.geomspace(start, end, steps),
                augment=augment,
                num_workers=num_workers,
                progress=progress,
            )
    finally:
        model.load_state_dict(before)
        for module, mode in modes:
            module.training = mode
        model.zero_grad(set_to_none=True)
    return _suggested(*found)


def _tried(
    model: TransferClassifier,
    train: LabeledDataset,
    settings: FineTuneConfig,
    *,
    rates: NDArray[np.float64],
    augment: Any,
    num_workers: int,
    progress: bool,
) -> tuple[list[float], list[float]]:
    """Return rates and smoothed losses, as far as training did not diverge."""
    device = next(model.parameters()).device
    change = make_augmentation(augment, model.preprocess, getattr(train, "modalities", ()))
    generator = torch.Generator().manual_seed(epoch_seed(settings.seed, 0, 1))
    loss_of = make_loss(train.labels, len(model.classes), model.task, settings.balance).to(device)
    first = settings.lr
    optimizer = make_optimizer(
        model,
        first,
        first * settings.backbone_lr_scale,
        layer_decay=settings.layer_decay,
        weight_decay=settings.weight_decay,
    )
    starts = [group["lr"] for group in optimizer.param_groups]
    model.train()
    freeze_batchnorm_statistics(model, settings.batch_statistics)
    smoothed, lowest = 0.0, math.inf
    lrs: list[float] = []
    losses: list[float] = []
    batches = _endless(train, settings, num_workers, pin=device.type == "cuda")
    for step, (rate, batch) in enumerate(
        zip(progress_bar(rates, desc="rates", unit="step", progress=progress), batches, strict=False)
    ):
        for group, lr in zip(optimizer.param_groups, starts, strict=True):
            group["lr"] = lr * rate / first
        images = batch.images.to(device)
        images = images if change is None else change(images, generator)
        mask = None if batch.mask is None else batch.mask.to(device)
        logits = model(images, mask, grad_slices=settings.grad_slices)
        loss: Tensor = loss_of(logits, batch.labels.to(device)).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch's
        optimizer.step()
        value = float(loss.detach())
        smoothed = _SMOOTHING * smoothed + (1.0 - _SMOOTHING) * value
        mean = smoothed / (1.0 - _SMOOTHING ** (step + 1))
        if not math.isfinite(value) or (step > _FEW and mean > _DIVERGED * lowest):
            break
        lowest = min(lowest, mean)
        lrs.append(float(rate))
        losses.append(mean)
    return lrs, losses


def _endless(
    items: LabeledDataset, settings: FineTuneConfig, num_workers: int, *, pin: bool
) -> Iterator[Batch]:
    odds = class_odds(items.labels, items.task) if settings.balance == "sampler" else None
    sampler = EpochSampler(len(items), settings.seed, odds=odds)
    loader = make_training_loader(
        items, batch_size=settings.batch_size, num_workers=num_workers, pin_memory=pin, sampler=sampler
    )
    turn = 0
    while True:
        sampler.set_epoch(turn)
        yield from loader
        turn += 1


def _suggested(lrs: list[float], losses: list[float]) -> LRFinderResult:
    if len(lrs) < 2 * _FEW:
        raise TrainingError(
            f"the loss diverged after {len(lrs)} steps: lower start, or look for images that aren't finite"
        )
    values = np.array(losses)
    left, right = _longest_fall(values)
    slopes = np.gradient(values, np.log(lrs))
    steepest = _FEW + int(np.argmin(slopes[_FEW:]))
    middle = (left + right) // 2
    return LRFinderResult(tuple(lrs), tuple(losses), float(lrs[middle]), float(lrs[steepest]))


def _longest_fall(values: NDArray[np.float64]) -> tuple[int, int]:
    """Return first and last index of the longest falling subsequence: a valley, noise or not."""
    lengths, firsts = [1] * len(values), list(range(len(values)))
    for place in range(len(values)):
        for before in range(place):
            if values[before] > values[place] and lengths[before] + 1 > lengths[place]:
                lengths[place], firsts[place] = lengths[before] + 1, firsts[before]
    last = int(np.argmax(lengths))
    return firsts[last], last
