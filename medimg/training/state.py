"""What the phases of one training share."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, cast

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from medimg.adapt.base import Adaptation
from medimg.data.dataloader import epoch_seed
from medimg.training.phases import Phase
from medimg.training.resume import ResumeState, from_jsonable, jsonable, part

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from medimg.data.protocols import LabeledDataset
    from medimg.models.classifier import TransferClassifier
    from medimg.training.config import FineTuneConfig
    from medimg.training.history import HistoryRecorder
    from medimg.training.losses import ClassificationLoss

__all__ = ["PhaseProgress", "TrainingState"]

#: What is drawn, besides what an epoch draws: see the training steps.
_TERMS: Final = 4


@dataclass(frozen=True, slots=True)
class PhaseProgress:
    """
    Where in the training a phase begins, or goes on.

    Parameters
    ----------
    phase : Phase
        Which one.
    number : int
        Of the phase, from 0.
    done : int
        Epochs of it that have ended before.
    """

    phase: Phase
    number: int
    done: int = 0

    @property
    def first(self) -> int:
        """Number of the next epoch, from 0 through all phases."""
        return self.phase.epochs_before + self.done


@dataclass(slots=True, kw_only=True)
class TrainingState:
    """
    Model, data, loss, and where the training stands.

    Parameters
    ----------
    model : TransferClassifier
        What is trained.
    settings : FineTuneConfig
        How.
    train, val : LabeledDataset
        Images with labels; the second may be None.
    loss : ClassificationLoss
        Of training and validation both.
    augment : callable or None
        A function of a batch of images and a generator.
    always : bool
        Whether the augmentation is for phases of a frozen backbone too.
    odds : Tensor or None
        How likely each training item is to be drawn.
    adaptations : sequence of Adaptation
        What is done about another domain.
    recorder : HistoryRecorder
        Where the rows go.
    num_workers : int
        Processes that read.
    pin_memory : bool
        Whether batches go to a GPU.
    channels_last : bool
        Whether pictures lie in memory channel by channel.
    state_file : Path or None
        Where to write how far training is.
    digests : mapping
        What tells the data sets from others.
    cache : path-like or None
        Where embeddings are kept.
    """

    model: TransferClassifier
    settings: FineTuneConfig
    train: LabeledDataset
    val: LabeledDataset | None
    loss: ClassificationLoss
    augment: Callable[[Tensor, torch.Generator], Tensor] | None
    always: bool
    odds: Tensor | None
    adaptations: Sequence[Adaptation]
    recorder: HistoryRecorder
    num_workers: int
    pin_memory: bool
    channels_last: bool
    state_file: Path | None
    digests: Mapping[str, str | None]
    cache: str | os.PathLike[str] | None = None
    domains: Tensor | None = None
    terms: nn.ModuleList = field(default_factory=nn.ModuleList)
    #: Of each term: the images that it takes without labels.
    targets: list[Any] = field(default_factory=list)
    _on_frozen: list[bool] = field(default_factory=list)
    average: AveragedModel | None = None
    resumed: ResumeState | None = None

    def __post_init__(self) -> None:
        head = self.model.head
        features = head.in_channels if isinstance(head, nn.Conv2d) else head.in_features
        with torch.random.fork_rng(devices=[]):
            # discriminators start at random, and the same seed gives the same ones
            torch.manual_seed(epoch_seed(self.settings.seed, 0, _TERMS))
            self._make_terms(features)

    def _make_terms(self, features: int) -> None:
        for adaptation in self.adaptations:
            domains = adaptation.source_domains(self.train)
            if domains is not None:
                self.domains = domains
            count = 1 if domains is None else int(domains.max()) + 1
            term = adaptation.make_term(features, len(self.model.classes), count)
            if term is not None:
                self.terms.append(term)
                self.targets.append(adaptation.target)
                self._on_frozen.append(not adaptation.moves_backbone)

    @property
    def val_labels(self) -> NDArray[Any] | None:
        """Labels of the validation data."""
        return None if self.val is None else self.val.labels

    @property
    def perturbs(self) -> bool:
        """Whether an adaptation changes the images."""
        return any(type(a).perturb is not Adaptation.perturb for a in self.adaptations)

    def trains_backbone(self) -> bool:
        """Tell whether a gradient goes into the backbone now."""
        return any(p.requires_grad for p in self.model.backbone.parameters())

    def active_terms(self) -> list[int]:
        """Return which terms have an effect now: most have none on a frozen backbone."""
        trained = self.trains_backbone()
        return [n for n, always in enumerate(self._on_frozen) if always or trained]

    def can_cache(self) -> bool:
        """Tell whether what the head sees is the same in every epoch of a phase that begins now."""
        augmented = self.augment is not None and self.always
        changing = augmented or self.perturbs or bool(self.settings.mixup)
        return not (changing or self.trains_backbone() or self.active_terms())

    def embedded(self, data: LabeledDataset) -> LabeledDataset:
        """Return a data set of what the head sees of another one, each image passed through once."""
        from medimg.features.dataset_features import EmbeddedDataset, item_features

        features = item_features(
            self.model,
            data,
            cache=self.cache,
            batch_size=self.settings.batch_size,
            num_workers=self.num_workers,
        )
        return EmbeddedDataset(data, features.embeddings, features.offsets)

    def averaged(self, device: torch.device) -> AveragedModel | None:
        """Return the mean of the weights so far, on a device; None where there is to be none."""
        if self.settings.ema is None:
            return None
        if self.average is None:
            decay = self.settings.ema

            def mean(before: Tensor, now: Tensor, count: Tensor | int) -> Tensor:
                # young means move faster: the first steps are far from where training ends
                share = 1.0 - min(decay, (1.0 + float(count)) / (10.0 + float(count)))
                return before + share * (now - before)

            self.average = AveragedModel(self.model, avg_fn=mean, use_buffers=True)
            self.average.update_parameters(self.model)
            if self.resumed is not None:
                self.average.load_state_dict(part(self.resumed.tensors, "ema"))
        return self.average.to(device).eval()

    def evaluated(self) -> TransferClassifier:
        """Return the model that is validated: the one in training, or the mean of its weights."""
        if self.average is None:
            return self.model
        return cast("TransferClassifier", self.average.module)

    def save(self, trainer: Any, place: PhaseProgress, epochs: int, *, over: bool) -> None:
        """
        Write how far training is.

        Parameters
        ----------
        trainer : pytorch_lightning.Trainer
            Whose optimizer, schedule, scaling and callbacks are written.
        place : PhaseProgress
            Where this fit began.
        epochs : int
            That have ended since.
        over : bool
            Whether the phase ends with this epoch.
        """
        if self.state_file is None:
            return
        header, tensors = self._state(place.number + 1 if over else place.number)
        header["done"] = 0 if over else place.done + epochs
        if not over:
            optimizer = trainer.optimizers[0].state_dict()
            for number, values in optimizer["state"].items():
                tensors |= {f"optimizer.{number}.{name}": value for name, value in values.items()}
            header["groups"] = optimizer["param_groups"]
            header["schedule"] = trainer.lr_scheduler_configs[0].scheduler.state_dict()
            header["precision"] = trainer.precision_plugin.state_dict()
            header["callbacks"] = {
                key: jsonable(callback.state_dict(), type(callback).__name__)
                for key, callback in _keyed(trainer.callbacks)
            }
        ResumeState(header, tensors).save(self.state_file)

    def save_start(self) -> None:
        """Write that nothing is done yet: the new head was drawn at random, and is not drawn again."""
        if self.state_file is not None:
            header, tensors = self._state(0)
            ResumeState({**header, "done": 0}, tensors).save(self.state_file)

    def _state(self, phase: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return header and tensors, but for what belongs to a phase that has not ended."""
        recorder, best = self.recorder.state()
        tensors = {f"model.{n}": v for n, v in self.model.state_dict().items()}
        tensors |= {f"best.{n}": v for n, v in best.items()}
        tensors |= {f"terms.{n}": v for n, v in self.terms.state_dict().items()}
        if self.average is not None:
            tensors |= {f"ema.{n}": v for n, v in self.average.state_dict().items()}
        header = {
            "phase": phase,
            "settings": self.settings.to_dict(),
            "adapt": [a.settings() for a in self.adaptations],
            "data": dict(self.digests),
            "recorder": recorder,
        }
        return header, tensors

    def continue_from(self, optimizer: torch.optim.Optimizer, schedule: Any) -> None:
        """Give optimizer and schedule the state they had before the break."""
        if self.resumed is None or "groups" not in self.resumed.header:
            return
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in part(self.resumed.tensors, "optimizer").items():
            number, _, key = name.partition(".")
            state.setdefault(int(number), {})[key] = value
        optimizer.load_state_dict({"state": state, "param_groups": self.resumed.header["groups"]})
        schedule.load_state_dict(self.resumed.header["schedule"])

    def continue_callbacks(self, trainer: Any) -> None:
        """Give scaling and callbacks the state they had before the break, and forget it."""
        resumed, self.resumed = self.resumed, None
        if resumed is None or "groups" not in resumed.header:
            return
        trainer.precision_plugin.load_state_dict(resumed.header["precision"])
        for key, callback in _keyed(trainer.callbacks):
            state = from_jsonable(resumed.header["callbacks"].get(key))
            if state:
                callback.load_state_dict(state)


def _keyed(callbacks: Sequence[Any]) -> list[tuple[str, Any]]:
    """Return callbacks with names that another process gives them too, whatever stands between them."""
    seen: Counter[str] = Counter()
    found = []
    for callback in callbacks:
        key = str(callback.state_key)
        found.append((f"{key} {seen[key]}", callback))
        seen[key] += 1
    return found
