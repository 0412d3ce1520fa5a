"""The training steps, for Lightning; imported only when training starts, since Lightning takes seconds."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from medimg.adapt.base import Side, hold_statistics, total_loss
from medimg.data.dataloader import (
    Batch,
    EpochSampler,
    Share,
    concat_batches,
    epoch_seed,
    make_evaluation_loader,
    make_training_loader,
)
from medimg.errors import TrainingError
from medimg.metrics.validation_scores import validation_scores
from medimg.models.backbones.heads import head_logits
from medimg.models.freezing import freeze_batchnorm_statistics
from medimg.models.pooling import pool_embeddings
from medimg.models.probabilities import probabilities
from medimg.training.losses import MixedBatch, mixup
from medimg.training.lr_scheduler import make_schedule
from medimg.training.optimizer import make_optimizer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from medimg.data.protocols import LabeledDataset
    from medimg.models.classifier import TransferClassifier
    from medimg.training.state import PhaseProgress, TrainingState

__all__ = ["FineTuneModule"]

#: What is drawn in an epoch: order of the items, augmentation, dropout, order of the target.
_ORDER, _AUGMENT, _GLOBAL, _TARGET = range(4)
#: On a GPU each look at a loss waits for it.
_LOOK_EVERY: Final = 16


class FineTuneModule(pl.LightningModule):
    """
    One phase of fine-tuning, or what a break has left of it.

    Parameters
    ----------
    work : TrainingState
        What is trained, on what, and how.
    place : PhaseProgress
        Which phase, and how much of it is done.
    train, val : LabeledDataset
        Images, or their embeddings where the backbone is not to be passed again; the second may be None.
    cached : bool
        Whether they are embeddings.
    """

    def __init__(
        self,
        work: TrainingState,
        place: PhaseProgress,
        *,
        train: LabeledDataset,
        val: LabeledDataset | None,
        cached: bool,
    ) -> None:
        super().__init__()
        self.model = work.model
        self.loss = work.loss
        self.terms = work.terms
        self._work, self._place, self._settings = work, place, work.settings
        self._items, self._checks, self._cached = train, val, cached
        self._active = work.active_terms()
        self._generator = torch.Generator()
        self._targets: list[Iterator[Batch]] = []
        self._seen: list[tuple[Tensor, Tensor, int]] = []
        self._predicted: list[tuple[Tensor, Tensor]] = []
        self._scores: dict[str, float | None] = {}
        self._lr = place.phase.lr
        self._started = 0.0
        self._steps = 0
        self._ended = 0

    def configure_optimizers(self) -> Any:
        """Return AdamW with its schedule, step by step."""
        settings, phase = self._settings, self._place.phase
        optimizer = make_optimizer(
            self.model,
            phase.lr,
            phase.backbone_lr,
            layer_decay=settings.layer_decay,
            weight_decay=settings.weight_decay,
            others=self.terms if self._active else None,
        )
        left = phase.epochs - self._place.done
        steps = int(self.trainer.estimated_stepping_batches) * phase.epochs // left
        schedule = make_schedule(optimizer, settings.schedule, steps)
        self._work.continue_from(optimizer, schedule)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def train_dataloader(self) -> DataLoader[Any]:
        """Return shuffled batches; Lightning asks once it knows how many processes there are."""
        sampler = EpochSampler(
            len(self._items),
            self._settings.seed,
            odds=self._work.odds,
            share=self._share,
            offset=self._place.first,
        )
        return make_training_loader(self._items, sampler=sampler, **self._loading)

    def val_dataloader(self) -> Any:
        """Return batches in order, if there are any."""
        if self._checks is None:
            return []
        return make_evaluation_loader(self._checks, share=self._share, **self._loading)

    @property
    def _share(self) -> Share:
        return Share(self.trainer.global_rank, self.trainer.world_size)

    @property
    def _loading(self) -> dict[str, Any]:
        return {
            "batch_size": self._settings.batch_size,
            # embeddings lie in memory
            "num_workers": 0 if self._cached else self._work.num_workers,
            "pin_memory": self._work.pin_memory,
        }

    def on_fit_start(self) -> None:
        """Start the mean of the weights, and go on where a break was."""
        self._work.averaged(self.device)
        self._work.continue_callbacks(self.trainer)

    def on_train_epoch_start(self) -> None:
        """Set the mode, in which frozen parts stay in evaluation mode, and seed what the epoch draws."""
        self._write_state(over=False)
        self.train()
        freeze_batchnorm_statistics(self.model, self._settings.batch_statistics)
        self._started = time.perf_counter()
        self._seen, self._scores = [], {}
        seed, epoch = self._settings.seed, self._epoch - 1
        rank = self.trainer.global_rank
        # processes draw different changes, and different units that drop out
        self._generator.manual_seed(epoch_seed(seed, epoch, _AUGMENT + 8 * rank))
        torch.manual_seed(epoch_seed(seed, epoch, _GLOBAL + 8 * rank))
        self._targets = [
            _endless(self._work.targets[n], epoch_seed(seed, epoch, _TARGET), self._share, self._loading)
            if self._work.targets[n] is not None
            else iter(())
            for n in self._active
        ]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        batch = self._changed(batch)
        pairs: MixedBatch | None = None
        if self._settings.mixup and batch.images.ndim == 4 and not self._cached:
            images, pairs = mixup(batch.images, self._settings.mixup, self._generator)
            batch = batch._replace(images=images)
        targets = [
            None if self._work.targets[n] is None else self._on_device(next(found))
            for n, found in zip(self._active, self._targets, strict=True)
        ]
        source, sides = self._sides(batch, [target for target in targets if target is not None])
        if pairs is None:
            losses = self.loss(source.logits, batch.labels)
        else:
            losses = pairs.losses(self.loss, source.logits, batch.labels)
        plain: Tensor = losses.mean()
        total = plain
        if self._active:
            rest = iter(sides)
            each = [None if target is None else next(rest) for target in targets]
            terms: Any = [self.terms[n] for n in self._active]
            total, parts = total_loss(terms, losses, source, each, self._progress(batch_idx))
            self._log(parts, len(batch.labels))
        self._seen.append((plain.detach(), (total - plain).detach(), len(batch.labels)))
        if self.device.type == "cpu" or batch_idx % _LOOK_EVERY == 0:
            self._check_finite(total, batch_idx)
        self._lr = float(self.optimizers(use_pl_optimizer=False).param_groups[0]["lr"])  # type: ignore[union-attr]  # one optimizer
        self._log({"train_loss": plain.detach()}, len(batch.labels))
        return total

    def _changed(self, batch: Batch) -> Batch:
        """Augment a batch, and let adaptations have their way with it."""
        work, images = self._work, batch.images
        if self._cached:
            return batch
        if work.augment is not None and (work.always or work.trains_backbone()):
            images = work.augment(images, self._generator)
        for adaptation in work.adaptations:
            images = adaptation.perturb(images, self._loss_of(batch), work.model.preprocess)
        return batch._replace(images=images)

    def _loss_of(self, batch: Batch) -> Any:
        def loss_of(images: Tensor) -> Tensor:
            with hold_statistics(self.model):
                logits = head_logits(self.model.head, self._embedded(self.model, images, batch.mask))
                losses: Tensor = self.loss(logits, batch.labels)
                return losses.mean()

        return loss_of

    def _on_device(self, batch: Batch) -> Batch:
        moved: Batch = self.transfer_batch_to_device(batch, self.device, 0)
        return moved

    def _sides(self, batch: Batch, targets: list[Batch]) -> tuple[Side, list[Side]]:
        """Pass source and targets through the network together, so that all share batch statistics."""
        images, mask = concat_batches([batch, *targets]) if targets else (batch.images, batch.mask)
        embeddings = self._embedded(self.model, images, mask)
        logits = head_logits(self.model.head, embeddings)
        sizes = [len(one.labels) for one in (batch, *targets)]
        rows = list(zip(torch.split(embeddings, sizes), torch.split(logits, sizes), strict=True))
        domains = self._work.domains
        source = Side(
            *rows[0],
            labels=batch.labels,
            domains=None if domains is None else domains[batch.indices.cpu()].to(self.device),
        )
        return source, [Side(*row) for row in rows[1:]]

    def _embedded(self, model: TransferClassifier, images: Tensor, mask: Tensor | None) -> Tensor:
        if self._cached:
            if images.ndim == 2:
                return images
            return pool_embeddings(images, mask, model.pool, model.attention)
        if images.ndim == 4:
            if self._work.channels_last:
                images = images.contiguous(memory_format=torch.channels_last)
            return model.embed(images)
        slices = self._settings.grad_slices if model.training else None
        return model.embed(images, mask, grad_slices=slices)

    def _progress(self, batch_idx: int) -> float:
        """Return how much of the phases that adapt is done, 0 to 1."""
        settings = self._settings
        before = settings.head_epochs if self._place.phase.name != "head" else 0
        total = settings.head_epochs + settings.epochs - before
        step = batch_idx / max(int(self.trainer.num_training_batches), 1)
        return min((self._epoch - 1 - before + step) / total, 1.0)

    def _log(self, values: dict[str, Tensor], size: int) -> None:
        for name, value in values.items():
            self.log(
                name, value, on_step=False, on_epoch=True, prog_bar=True, batch_size=size, sync_dist=True
            )

    def _check_finite(self, loss: Tensor, batch_idx: int) -> None:
        if not bool(torch.isfinite(loss)):
            raise TrainingError(
                f"the loss became {loss.item()} in epoch {self._epoch} ({self._place.phase.name} phase), "
                f"step {batch_idx + 1}: lower lr (now {self._place.phase.lr:g}), pass "
                'trainer_kwargs={"gradient_clip_val": 1.0}, or precision="32-true"; and look for images '
                "that aren't finite. The model holds the weights of the best epoch before, or those it "
                "came with"
            )

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Let the mean of the weights follow each step of the optimizer."""
        if self._work.average is not None and self.trainer.global_step != self._steps:
            self._work.average.update_parameters(self.model)
        self._steps = self.trainer.global_step

    def on_validation_start(self) -> None:
        """Let all processes validate with the same batch statistics, those of the one that saves."""
        if self.trainer.world_size > 1:
            for statistics in self._work.evaluated().buffers():
                torch.distributed.broadcast(statistics, src=0)

    def validation_step(self, batch: Batch, _: int) -> None:
        """Keep the logits of a batch, with which items they belong to."""
        model = self._work.evaluated()
        logits = head_logits(model.head, self._embedded(model, batch.images, batch.mask))
        self._predicted.append((logits.float(), batch.indices))

    def on_validation_epoch_end(self) -> None:
        """Score the whole validation data at once, each item counted once."""
        logits = torch.cat([rows for rows, _ in self._predicted])
        indices = torch.cat([numbers for _, numbers in self._predicted])
        self._predicted = []
        if self.trainer.sanity_checking:
            return
        if self.trainer.world_size > 1:
            # each process has as many rows: items are repeated until that is so
            logits, indices = (self._gathered(t) for t in (logits, indices))
        where, first = np.unique(indices.cpu().numpy(), return_index=True)
        self._scores = self._scored(logits[torch.from_numpy(first).to(logits.device)], where)
        for name, value in self._scores.items():
            if value is not None:
                self.log(name, value, prog_bar=True, sync_dist=True)

    def _scored(self, logits: Tensor, where: NDArray[np.int64]) -> dict[str, float | None]:
        every = self._work.val_labels
        if every is None:
            raise RuntimeError("validation ran without labels")
        labels, task = every[where], self.model.task
        loss = float(self.loss(logits, torch.from_numpy(labels).to(logits.device)).mean())
        if not np.isfinite(loss):
            raise TrainingError(
                f"the validation loss became {loss} in epoch {self._epoch}: lower lr (now "
                f"{self._place.phase.lr:g}), and look for images that aren't finite. The model holds the "
                "weights of the best epoch before, or those it came with"
            )
        return {"val_loss": loss, **validation_scores(labels, probabilities(logits, task), task)}

    def _gathered(self, rows: Tensor) -> Tensor:
        every = [torch.empty_like(rows) for _ in range(self.trainer.world_size)]
        torch.distributed.all_gather(every, rows.contiguous())
        return torch.cat(every)

    def _train_losses(self) -> tuple[float, float]:
        """Means over the items that all processes saw in this epoch: of classification, of the rest."""
        losses = torch.stack([torch.stack([plain.float(), rest.float()]) for plain, rest, _ in self._seen])
        sizes = torch.tensor([size for *_, size in self._seen], device=losses.device, dtype=torch.float32)
        sums = torch.cat([(losses * sizes[:, None]).sum(dim=0), sizes.sum()[None]])
        if self.trainer.world_size > 1:
            torch.distributed.all_reduce(sums)
        return float(sums[0] / sums[2]), float(sums[1] / sums[2])

    def on_train_epoch_end(self) -> None:
        """Hand the epoch's row over."""
        work, phase = self._work, self._place.phase
        loss, rest = self._train_losses()
        self._check_finite(torch.tensor(loss + rest), len(self._seen) - 1)
        row = {
            "epoch": self._epoch,
            "phase": phase.name,
            "train_loss": loss,
            "adapt_loss": rest if self._active else None,
            "val_loss": None,
            **dict.fromkeys(("val_accuracy", "val_balanced_accuracy", "val_f1", "val_auroc")),
            **self._scores,
            "lr": self._lr,
            "seconds": round(time.perf_counter() - self._started, 3),
        }
        write = bool(self.trainer.is_global_zero)
        work.recorder.end_epoch(row, evaluated=work.evaluated(), write=write)
        patience = self._settings.patience
        if patience is not None and work.recorder.waited >= patience:
            self.trainer.should_stop = True
        self._ended = self.current_epoch + 1

    def on_train_end(self) -> None:
        """Write that the phase is over."""
        self._write_state(over=True)

    def _write_state(self, *, over: bool) -> None:
        """Write how far training is, once the callbacks too are done with the epoch before."""
        if self._ended and self.trainer.is_global_zero:
            self._work.save(self.trainer, self._place, self._ended, over=over)

    @property
    def _epoch(self) -> int:
        return self._place.first + self.current_epoch + 1


def _endless(items: LabeledDataset, seed: int, share: Share, loading: dict[str, Any]) -> Iterator[Batch]:
    """Yield batches of a target forever, in another order each time round."""
    # a smaller target gives smaller batches, and one of a single item would have no statistics
    sampler = EpochSampler(len(items), seed, share=share)
    loader = make_training_loader(items, sampler=sampler, **{**loading, "num_workers": 0})
    turn = 0
    while True:
        sampler.set_epoch(turn)
        yield from loader
        turn += 1
