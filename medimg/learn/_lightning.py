"""The training steps, for Lightning; imported only when training starts, since Lightning takes seconds."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from medimg.errors import TrainingError
from medimg.learn.schedule import make_optimizer, warm_cosine
from medimg.learn.scores import accuracy, auroc, probabilities

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from medimg.learn.balance import ClassificationLoss
    from medimg.learn.classifier import TransferClassifier
    from medimg.learn.finetune import Phase
    from medimg.learn.history import Recorder
    from medimg.learn.loaders import Batch

__all__ = ["FineTuning"]


class FineTuning(pl.LightningModule):
    """
    One phase of fine-tuning.

    Parameters
    ----------
    model : TransferClassifier
        What is trained.
    phase : Phase
        How.
    loss : ClassificationLoss
        Of training and validation both.
    augment : callable or None
        A function of a batch of images and a generator.
    val_labels : numpy.ndarray or None
        Labels of the validation data.
    recorder : Recorder
        Where the rows go.
    """

    def __init__(
        self,
        model: TransferClassifier,
        phase: Phase,
        *,
        loss: ClassificationLoss,
        augment: Callable[[Tensor, torch.Generator], Tensor] | None,
        val_labels: NDArray[np.generic] | None,
        recorder: Recorder,
    ) -> None:
        super().__init__()
        self.model = model
        self._phase = phase
        self._loss = loss
        self._augment = augment
        self._val_labels = val_labels
        self._recorder = recorder
        self._generator = torch.Generator()
        self._seen: list[tuple[Tensor, int]] = []
        self._predicted: list[tuple[Tensor, Tensor]] = []
        self._scores: dict[str, float | None] = {}
        self._lr = phase.lr
        self._started = 0.0

    def configure_optimizers(self) -> Any:
        """Return AdamW with a warm cosine, step by step."""
        optimizer = make_optimizer(self.model, self._phase.lr, self._phase.backbone_lr)
        total = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warm_cosine(step, total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_fit_start(self) -> None:
        """Seed the augmentation: each process of several draws its own."""
        self._generator.manual_seed(self._phase.seed + self.global_rank)

    def on_train_epoch_start(self) -> None:
        """Set the mode, in which frozen parts stay in evaluation mode."""
        self.train()
        self._started = time.perf_counter()
        self._seen, self._scores = [], {}

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        images = batch.images
        if self._augment is not None:
            images = self._augment(images, self._generator)
        loss: Tensor = self._loss(self.model(images, batch.mask), batch.labels)
        if not bool(torch.isfinite(loss)):
            raise TrainingError(
                f"the loss became {loss.item()} in epoch {self._epoch} ({self._phase.name} phase), step "
                f"{batch_idx + 1}: lower lr (now {self._phase.lr:g}), pass "
                'trainer_kwargs={"gradient_clip_val": 1.0}, or precision="32-true"; and look for images '
                "that aren't finite. The model holds the weights of the best epoch before, or those it "
                "came with"
            )
        self._lr = float(self.optimizers(use_pl_optimizer=False).param_groups[0]["lr"])  # type: ignore[union-attr]  # one optimizer
        self._seen.append((loss.detach(), len(batch.labels)))
        size = len(batch.labels)
        self.log(
            "train_loss", loss, on_step=False, on_epoch=True, prog_bar=True, batch_size=size, sync_dist=True
        )
        return loss

    def on_validation_start(self) -> None:
        """Let all processes validate with the same batch statistics, those of the one that saves."""
        if self.trainer.world_size > 1:
            for statistics in self.model.buffers():
                torch.distributed.broadcast(statistics, src=0)

    def validation_step(self, batch: Batch, _: int) -> None:
        """Keep the logits of a batch, with which items they belong to."""
        self._predicted.append((self.model(batch.images, batch.mask).float(), batch.indices))

    def on_validation_epoch_end(self) -> None:
        """Score the whole validation data at once, each item counted once."""
        logits = torch.cat([rows for rows, _ in self._predicted])
        indices = torch.cat([numbers for _, numbers in self._predicted])
        self._predicted = []
        if self.trainer.sanity_checking:
            return
        if self.trainer.world_size > 1:
            # each process has as many rows: distributed sampling repeats items until that is so
            logits, indices = (self._gathered(t) for t in (logits, indices))
        where, first = np.unique(indices.cpu().numpy(), return_index=True)
        self._scores = self._scored(logits[torch.from_numpy(first).to(logits.device)], where)
        for name, value in self._scores.items():
            if value is not None:
                self.log(name, value, prog_bar=True, sync_dist=True)

    def _scored(self, logits: Tensor, where: NDArray[np.int64]) -> dict[str, float | None]:
        if self._val_labels is None:
            raise RuntimeError("validation ran without labels")
        labels, task = self._val_labels[where], self.model.task
        loss = float(self._loss(logits, torch.from_numpy(labels).to(logits.device)))
        if not np.isfinite(loss):
            raise TrainingError(
                f"the validation loss became {loss} in epoch {self._epoch}: lower lr (now "
                f"{self._phase.lr:g}), and look for images that aren't finite. The model holds the weights "
                "of the best epoch before, or those it came with"
            )
        proba = probabilities(logits, task)
        return {
            "val_loss": loss,
            "val_accuracy": accuracy(labels, proba, task),
            "val_auroc": auroc(labels, proba, task),
        }

    def _gathered(self, rows: Tensor) -> Tensor:
        every = [torch.empty_like(rows) for _ in range(self.trainer.world_size)]
        torch.distributed.all_gather(every, rows.contiguous())
        return torch.cat(every)

    def _train_loss(self) -> float:
        """Mean over the items that all processes saw in this epoch."""
        losses = torch.stack([loss.float() for loss, _ in self._seen])
        sizes = torch.tensor([size for _, size in self._seen], device=losses.device, dtype=torch.float32)
        sums = torch.stack([(losses * sizes).sum(), sizes.sum()])
        if self.trainer.world_size > 1:
            torch.distributed.all_reduce(sums)
        return float(sums[0] / sums[1])

    def on_train_epoch_end(self) -> None:
        """Hand the epoch's row over."""
        row = {
            "epoch": self._epoch,
            "phase": self._phase.name,
            "train_loss": self._train_loss(),
            "val_loss": self._scores.get("val_loss"),
            "val_accuracy": self._scores.get("val_accuracy"),
            "val_auroc": self._scores.get("val_auroc"),
            "lr": self._lr,
            "seconds": round(time.perf_counter() - self._started, 3),
        }
        self._recorder.end_epoch(row, write=self.trainer.is_global_zero)

    @property
    def _epoch(self) -> int:
        return self._phase.epochs_before + self.current_epoch + 1
