"""Training and validation steps; imported only when training starts, since Lightning takes seconds."""

from __future__ import annotations

import time
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from medimg.adapt.base import Side
from medimg.adapt.terms import total_loss
from medimg.data.augmentation.mixup import MixedBatch, mixup
from medimg.data.dataloader import (
    Batch,
    EpochSampler,
    Share,
    concat_batches,
    epoch_seed,
    find_stream,
    make_evaluation_loader,
    make_training_loader,
    normalize_stored,
    repeat_epochs,
)
from medimg.errors import TrainingError
from medimg.metrics.validation_scores import validation_scores
from medimg.models.backbones.heads import head_logits
from medimg.models.freezing import freeze_batchnorm_statistics
from medimg.models.module_mode import module_mode
from medimg.models.pooling import pool_embeddings
from medimg.models.probabilities import probabilities
from medimg.training._state import PhaseProgress
from medimg.training.optimization.custom import naming, run_step
from medimg.training.optimization.lr_scheduler import make_schedule
from medimg.training.optimization.optimizer import make_optimizer
from medimg.training.optimization.sharding import gathered, reshard

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from medimg.data.protocols import LabeledDataset
    from medimg.models.classifier import TransferClassifier
    from medimg.training._phases import Phase
    from medimg.training._state import TrainingState

__all__ = ["FineTuneModule"]

#: Seed purposes of an epoch: order of the items (the sampler's), augmentation, dropout, order of the target.
_ORDER, _AUGMENT, _GLOBAL, _TARGET = range(4)
#: On a GPU each check of a loss waits for it.
_CHECK_EVERY: Final = 16


class FineTuneModule(pl.LightningModule):
    """One phase of fine-tuning, from where it was interrupted; `cached` datasets hold embeddings."""

    def __init__(
        self,
        state: TrainingState,
        phase: Phase,
        *,
        train: LabeledDataset,
        val: LabeledDataset | None,
        cached: bool,
    ) -> None:
        super().__init__()
        inputs = state.inputs
        self.model = inputs.model
        self.loss = inputs.loss
        self.terms = state.terms
        self._state, self._inputs, self._config, self._phase = state, inputs, inputs.config, phase
        self._train, self._val, self._cached = train, val, cached
        self._start = state.progress
        trained = inputs.is_backbone_trained()
        self._active = state.terms.find_active(backbone_trained=trained)
        self._augments = inputs.augment is not None and (inputs.augment_frozen or trained)
        self._generator = torch.Generator()
        self._targets: list[Iterator[Batch]] = []
        self._losses: list[tuple[Tensor, Tensor, int]] = []
        self._predicted: list[tuple[Tensor, Tensor]] = []
        self._scores: dict[str, float | None] = {}
        self._lr = phase.lr
        self._started = 0.0
        self._steps = 0
        self._epoch_ended = False
        self._checked = False

    def configure_model(self) -> None:
        """Train a divided copy of the model, if the processes divide it."""
        if self._state.sharding is not None and self._state.sharded is None:
            self.model = self._state.shard_model(self._mesh)

    @property
    def _mesh(self) -> Any:
        """Devices between which a model is divided."""
        return None if self.device_mesh is None else self.device_mesh["data_parallel"]

    def configure_optimizers(self) -> Any:
        """Return the optimizer and its schedule, which is stepped after every step."""
        config, phase, custom = self._config, self._phase, self._inputs.custom
        optimizer = make_optimizer(
            self.model,
            phase.lr,
            phase.backbone_lr,
            layer_decay=config.layer_decay,
            weight_decay=config.weight_decay,
            others=self.terms if self._active else None,
            factory=None if custom.optimizer is None else custom.make_optimizer,
        )
        left = phase.epochs - self._start.done
        steps = int(self.trainer.estimated_stepping_batches) * phase.epochs // left
        if custom.schedule is not None:
            schedule = custom.make_schedule(optimizer, steps)
        else:
            # the momentum of an optimizer of the user's own stays as it is
            schedule = make_schedule(
                optimizer, config.schedule, steps, cycles_momentum=custom.optimizer is None
            )
        if self._state.fit is not None:
            self._state.fit.restore_optimizer(optimizer, schedule)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None
    ) -> None:
        """Step; errors of the user's optimizer are named."""
        run_step(
            partial(super().optimizer_step, epoch, batch_idx, optimizer),
            optimizer_closure,
            self._inputs.custom.optimizer,
            on=f"step {batch_idx + 1} of an epoch",
        )

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Step the schedule; an error of the user's own is named."""
        own = self._inputs.custom.schedule
        with nullcontext() if own is None else naming("schedule", own, on="a step"):
            super().lr_scheduler_step(scheduler, metric)

    def train_dataloader(self) -> DataLoader[Any]:
        """Return shuffled batches; Lightning asks once it knows how many processes there are."""
        sampler = EpochSampler(
            len(self._train),
            self._config.seed,
            odds=self._inputs.odds,
            share=self._share,
            offset=self._phase.epochs_before + self._start.done,
            stream=find_stream(self._train),
        )
        return make_training_loader(self._train, sampler=sampler, **self._loader_options)

    def val_dataloader(self) -> Any:
        """Return batches in order, if there are validation data."""
        if self._val is None:
            return []
        return make_evaluation_loader(self._val, share=self._share, **self._loader_options)

    @property
    def _share(self) -> Share:
        return Share(self.trainer.global_rank, self.trainer.world_size)

    @property
    def _loader_options(self) -> dict[str, Any]:
        return {
            "batch_size": self._config.batch_size,
            # embeddings are in memory
            "workers": 0 if self._cached else self._inputs.workers,
            "pin_memory": self._inputs.pin_memory,
            # a GPU normalizes faster than it takes three channels of float32
            "stored": self._inputs.pin_memory,
        }

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Normalize stored images on their device."""
        return normalize_stored(batch, self._inputs.model.preprocess)

    def on_fit_start(self) -> None:
        """Start the average of the weights, and continue callbacks that were interrupted."""
        self._state.start_average(self.device, self._mesh)
        if self._state.fit is not None:
            self._state.fit.restore_callbacks(self.trainer)
            self._state.fit = None

    def on_train_epoch_start(self) -> None:
        """Write the resume file, set the mode of each layer, and seed the random numbers of the epoch."""
        if self._epoch_ended:
            # only now, because callbacks change their state at the end of an epoch too
            self._state.save(self.trainer, write=bool(self.trainer.is_global_zero))
        self.train()
        freeze_batchnorm_statistics(self.model, self._state.kept_statistics)
        self._started = time.perf_counter()
        self._losses, self._scores = [], {}
        seed, epoch = self._config.seed, self._epoch - 1
        rank = self.trainer.global_rank
        # processes draw different augmentations and different dropout
        self._generator.manual_seed(epoch_seed(seed, epoch, _AUGMENT + 8 * rank))
        torch.manual_seed(epoch_seed(seed, epoch, _GLOBAL + 8 * rank))
        self._targets = [self._load_target(n, epoch_seed(seed, epoch, _TARGET)) for n in self._active]
        if self.trainer.is_global_zero:
            self._state.display.start_epoch(self._phase.name, self._epoch, self._count_steps())

    def _count_steps(self) -> int:
        """Return the number of batches of an epoch, those of validation included."""
        return int(self.trainer.num_training_batches) + sum(map(int, self.trainer.num_val_batches))

    def _load_target(self, term: int, seed: int) -> Iterator[Batch]:
        """Yield batches of a term's target forever; none if it has no target."""
        target = self.terms.targets[term]
        if target is None:
            return iter(())
        sampler = EpochSampler(len(target), seed, share=self._share, stream=find_stream(target))
        # a last batch of a single item is left out: it would have no batch statistics
        loader = make_training_loader(target, sampler=sampler, **{**self._loader_options, "workers": 0})
        return repeat_epochs(loader, sampler)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        batch = self._augment(batch)
        pairs: MixedBatch | None = None
        if self._config.mixup and batch.images.ndim == 4 and not self._cached:
            images, pairs = mixup(batch.images, self._config.mixup, self._generator)
            batch = batch._replace(images=images)
        targets = [
            None if self.terms.targets[n] is None else self._move_to_device(next(batches))
            for n, batches in zip(self._active, self._targets, strict=True)
        ]
        source, sides = self._embed_sides(batch, [target for target in targets if target is not None])
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
            total, parts = total_loss(terms, losses, source, each, self._adaptation_progress(batch_idx))
            self._log(parts, len(batch.labels))
        self._losses.append((plain.detach(), (total - plain).detach(), len(batch.labels)))
        if self.device.type == "cpu" or batch_idx % _CHECK_EVERY == 0:
            self._check_finite(total, batch_idx)
        self._lr = float(self.optimizers(use_pl_optimizer=False).param_groups[0]["lr"])  # type: ignore[union-attr]  # one optimizer
        self._log({"train_loss": plain.detach()}, len(batch.labels))
        return total

    def _augment(self, batch: Batch) -> Batch:
        """Augment a batch, then let adaptations perturb it."""
        inputs, images = self._inputs, batch.images
        if self._cached:
            return batch
        if self._augments and inputs.augment is not None:
            images = inputs.augment(images, self._generator)
        for adaptation in inputs.adaptations:
            with naming("adapt", adaptation, on=f"images {tuple(images.shape)}"):
                images = adaptation.perturb(images, self._make_loss(batch), inputs.model.preprocess)
        return batch._replace(images=images)

    def _make_loss(self, batch: Batch) -> Any:
        """Return a function from images to their mean loss, which leaves batch statistics unchanged."""

        def loss_of(images: Tensor) -> Tensor:
            with module_mode(self.model, training=False):
                logits = head_logits(self.model.head, self._embed(self.model, images, batch.mask))
                losses: Tensor = self.loss(logits, batch.labels)
                return losses.mean()

        return loss_of

    def _move_to_device(self, batch: Batch) -> Batch:
        moved: Batch = self.transfer_batch_to_device(batch, self.device, 0)
        return self.on_after_batch_transfer(moved, 0)

    def _embed_sides(self, batch: Batch, targets: list[Batch]) -> tuple[Side, list[Side]]:
        """Pass source and targets through the network together, so that they share batch statistics."""
        images, mask = concat_batches([batch, *targets]) if targets else (batch.images, batch.mask)
        sizes = [len(one.labels) for one in (batch, *targets)]
        embeddings = torch.split(self._embed(self.model, images, mask), sizes)
        # of the parts: a term may ask for the gradient of the loss with respect to those of the source
        logits = head_logits(self.model.head, torch.cat(embeddings))
        rows = list(zip(embeddings, torch.split(logits, sizes), strict=True))
        domains = self.terms.domains
        source = Side(
            *rows[0],
            labels=batch.labels,
            domains=None if domains is None else domains[batch.indices.cpu()].to(self.device),
        )
        return source, [Side(*row) for row in rows[1:]]

    def _embed(self, model: TransferClassifier, images: Tensor, mask: Tensor | None) -> Tensor:
        """Return embeddings (B, F) of images (B, C, H, W), bags (B, N, C, H, W) or cached embeddings."""
        if self._cached:
            if images.ndim == 2:
                return images
            return pool_embeddings(images, mask, model.pool, model.attention)
        if images.ndim == 4:
            if self._inputs.channels_last:
                images = images.contiguous(memory_format=torch.channels_last)
            return model.embed(images)
        slices = self._config.grad_slices if model.training else None
        # slices without a gradient pass a few at a time, in each process as often as its bags are long
        alone = not (model.backbone.training and torch.is_grad_enabled())
        with gathered(model.backbone) if alone and self._state.sharding is not None else nullcontext():
            return model.embed(images, mask, grad_slices=slices)

    def _adaptation_progress(self, batch_idx: int) -> float:
        """Return the completed share, 0 to 1, of the phases that adapt."""
        config = self._config
        before = config.head_epochs if self._phase.name != "head" else 0
        total = config.head_epochs + config.epochs - before
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
                f"the loss became {loss.item()} in epoch {self._epoch} ({self._phase.name} phase), step "
                f"{batch_idx + 1}: lower lr (now {self._phase.lr:g}), pass "
                'trainer_kwargs={"gradient_clip_val": 1.0} or precision="32-true", or check for images with '
                "non-finite values. The model has the weights of the best epoch so far, or its initial ones"
            )

    def on_before_backward(self, loss: Tensor) -> None:
        """Raise TrainingError if nothing that is trained takes part in the loss."""
        if not loss.requires_grad:
            self._refuse_without_gradients()

    def on_after_backward(self) -> None:
        """Raise TrainingError if a backbone that is trained has no gradients, once."""
        if self._checked or not self._inputs.is_backbone_trained():
            return
        self._checked = True
        # shards of several processes need not have any
        if self.trainer.world_size > 1 or all(p.grad is None for p in self.model.head.parameters()):
            return
        trained = [p for p in self.model.backbone.parameters() if p.requires_grad]
        if all(p.grad is None for p in trained):
            self._refuse_without_gradients()

    def _refuse_without_gradients(self) -> None:
        raise TrainingError(
            f"no parameter of {self.model.backbone_name} has a gradient, so that it would stay as it is: its "
            "forward method runs under torch.no_grad, or detaches its result. Remove that, or train the head "
            "alone, with epochs=0"
        )

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Update the average of the weights after each step of the optimizer."""
        if self._state.average is not None and self.trainer.global_step != self._steps:
            self._state.average.update_parameters(self.model)
        self._steps = self.trainer.global_step
        if self.trainer.is_global_zero:
            self._state.display.step()

    def on_validation_start(self) -> None:
        """Let all processes validate with the buffers of the main one."""
        self._share_buffers()

    def _share_buffers(self) -> None:
        """Give all processes the buffers of the main one, such as batch statistics: its model is saved."""
        if self.trainer.world_size == 1:
            return
        average = self._state.average
        for buffer in (*self.buffers(), *(() if average is None else average.buffers())):
            torch.distributed.broadcast(buffer, src=0)

    def validation_step(self, batch: Batch, _: int) -> None:
        """Store the logits of a batch with the indices of its items."""
        model = self._state.evaluated_model
        logits = head_logits(model.head, self._embed(model, batch.images, batch.mask))
        self._predicted.append((logits.float(), batch.indices))
        if self.trainer.is_global_zero and not self.trainer.sanity_checking:
            self._state.display.step()

    def on_validation_epoch_end(self) -> None:
        """Score all validation data at once, each item counted once."""
        if self._state.sharding is not None:
            reshard(self._state.evaluated_model)
        logits = torch.cat([rows for rows, _ in self._predicted])
        indices = torch.cat([numbers for _, numbers in self._predicted])
        self._predicted = []
        if self.trainer.sanity_checking:
            return
        if self.trainer.world_size > 1:
            # each process has the same number of rows, because items are repeated
            logits, indices = (self._gather(t) for t in (logits, indices))
        items, first = np.unique(indices.cpu().numpy(), return_index=True)
        scores = self._score(logits[torch.from_numpy(first).to(logits.device)], items)
        # a metric of the user's own may draw random numbers, and the best epoch has to be one for all
        self._scores = self.trainer.strategy.broadcast(scores)
        for name, value in self._scores.items():
            if value is not None:
                self.log(name, value, prog_bar=True, sync_dist=True)

    def _score(self, logits: Tensor, items: NDArray[np.int64]) -> dict[str, float | None]:
        """Return loss and scores of logits (n, K)."""
        labels = self._inputs.val_labels
        if labels is None:
            raise RuntimeError("validation ran without labels")
        labels, task = labels[items], self.model.task
        # a loss of the user's own may change its arguments
        loss = float(self.loss(logits.clone(), torch.tensor(labels, device=logits.device)).mean())
        if not np.isfinite(loss):
            raise TrainingError(
                f"the validation loss became {loss} in epoch {self._epoch}: lower lr (now "
                f"{self._phase.lr:g}), or check for images with non-finite values. The model has the weights "
                "of the best epoch so far, or its initial ones"
            )
        predicted = probabilities(logits, task)
        scores = validation_scores(labels, predicted, task)
        return {"val_loss": loss, **scores, **self._inputs.custom.score(labels, predicted)}

    def _gather(self, rows: Tensor) -> Tensor:
        """Return the rows (n, ...) of all processes."""
        every = [torch.empty_like(rows) for _ in range(self.trainer.world_size)]
        torch.distributed.all_gather(every, rows.contiguous())
        return torch.cat(every)

    def _mean_losses(self) -> tuple[float, float]:
        """Return the epoch's mean losses over the items of all processes: classification, adaptation."""
        losses = torch.stack([torch.stack([plain.float(), rest.float()]) for plain, rest, _ in self._losses])
        sizes = torch.tensor([size for *_, size in self._losses], device=losses.device, dtype=torch.float32)
        sums = torch.cat([(losses * sizes[:, None]).sum(dim=0), sizes.sum()[None]])
        if self.trainer.world_size > 1:
            torch.distributed.all_reduce(sums)
        return float(sums[0] / sums[2]), float(sums[1] / sums[2])

    def on_train_epoch_end(self) -> None:
        """Add the epoch to the history, and stop the phase if patience has run out."""
        state, history = self._state, self._state.history
        self._share_buffers()
        loss, rest = self._mean_losses()
        self._check_finite(torch.tensor(loss + rest), len(self._losses) - 1)
        row = {
            "epoch": self._epoch,
            "phase": self._phase.name,
            "train_loss": loss,
            "adapt_loss": rest if self._active else None,
            "val_loss": None,
            **dict.fromkeys(("val_accuracy", "val_balanced_accuracy", "val_f1", "val_auroc")),
            **dict.fromkeys(self._inputs.custom.columns),
            **self._scores,
            "lr": self._lr,
            "seconds": round(time.perf_counter() - self._started, 3),
        }
        history.end_epoch(row, evaluated=state.gather_evaluated(), write=bool(self.trainer.is_global_zero))
        if self.trainer.is_global_zero:
            state.display.end_epoch(history.rows, history.best_epoch)
        if history.early_stopping.is_due:
            self.trainer.should_stop = True
        state.progress = PhaseProgress(self._start.number, self._start.done + self.current_epoch + 1)
        self._epoch_ended = True

    def on_train_end(self) -> None:
        """Write the resume file, and make a divided model whole: the phase is done."""
        if self._epoch_ended:
            self._state.progress = PhaseProgress(self._start.number + 1)
            self._state.save(write=bool(self.trainer.is_global_zero))
        self._state.gather_model()

    @property
    def _epoch(self) -> int:
        """Number of the current epoch, from 1 through all phases."""
        return self._phase.epochs_before + self._start.done + self.current_epoch + 1
