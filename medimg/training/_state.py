"""Inputs of a training, and its state: progress, history, average of the weights."""

from __future__ import annotations

import copy
import reprlib
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from medimg.adapt.base import Adaptation
from medimg.adapt.terms import AdaptationTerms
from medimg.data.identifiers import identifier_digest
from medimg.errors import CheckpointError, MedimgError, TrainingError
from medimg.io.files.regular_file import is_regular_file
from medimg.models.freezing import find_kept_statistics
from medimg.models.low_rank import add_adapters
from medimg.preprocessing.preprocess import UNSTATED_REVISION
from medimg.training import resume
from medimg.training._phases import plan_phases
from medimg.training.optimization.custom import loss_state, restore_loss
from medimg.training.optimization.sharding import Sharding, copy_whole, is_sharded, whole_tensors

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from medimg.data.protocols import LabeledDataset
    from medimg.models.classifier import TransferClassifier
    from medimg.preprocessing.preprocess import Preprocess
    from medimg.training._config import FineTuneConfig
    from medimg.training._phases import Phase
    from medimg.training.epoch_display import EpochDisplay
    from medimg.training.history import HistoryRecorder
    from medimg.training.losses import ClassificationLoss
    from medimg.training.optimization.custom import CustomLoss, CustomParts

__all__ = ["FineTuneInputs", "PhaseProgress", "TrainingState", "WeightAverage", "check_candidates"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FineTuneInputs:
    """Model, data and settings of a training."""

    model: TransferClassifier
    config: FineTuneConfig
    train: LabeledDataset
    val: LabeledDataset | None
    loss: ClassificationLoss | CustomLoss
    #: (n,) sampling weight of each training item; None for each item once per epoch.
    odds: Tensor | None
    augment: Callable[[Tensor, torch.Generator], Tensor] | None
    #: Whether images are also augmented while the backbone is frozen.
    augment_frozen: bool
    adaptations: tuple[Adaptation, ...]
    custom: CustomParts
    workers: int
    pin_memory: bool
    channels_last: bool
    #: Folder for cached embeddings.
    cache: str | os.PathLike[str] | None
    resume_file: Path | None
    #: Further settings that change the result, by name, as JSON values.
    more: dict[str, Any]

    @property
    def phases(self) -> tuple[Phase, ...]:
        """Phases in order."""
        return plan_phases(self.config, self.model.backbone)

    @property
    def datasets(self) -> dict[str, Any]:
        """Training, validation and target data by name."""
        targets = {f"target {n}": one.target for n, one in enumerate(self.adaptations)}
        return {"train": self.train, "val": self.val, **targets}

    @property
    def val_labels(self) -> NDArray[Any] | None:
        """Labels of the validation data."""
        return None if self.val is None else self.val.labels

    @property
    def perturbs(self) -> bool:
        """Whether an adaptation changes the images."""
        return any(type(one).perturb is not Adaptation.perturb for one in self.adaptations)

    def is_backbone_trained(self) -> bool:
        """Return whether any parameter of the backbone is trainable now."""
        return any(parameter.requires_grad for parameter in self.model.backbone.parameters())

    def describe(self, known: dict[int, str | None] | None = None) -> dict[str, Any]:
        """
        Return what identifies a training: settings, adaptations, data, frozen parameters.

        `known` are digests of datasets by their id, of which those that it lacks are added.
        """
        digests = {} if known is None else known
        for data in self.datasets.values():
            if id(data) not in digests:
                digests[id(data)] = resume.data_digest(data)
        frozen = [name for name, p in self.model.named_parameters() if not p.requires_grad]
        return {
            "settings": self.config.to_dict(),
            "adapt": [one.settings() for one in self.adaptations],
            "data": {name: digests[id(data)] for name, data in self.datasets.items()},
            "more": {**self.more, "frozen": frozen, "pool": self.model.pool},
        }


class WeightAverage(AveragedModel):
    """
    Exponential moving average of a model's parameters and buffers.

    Lightning's own callback starts a new average with each fit; this one runs through all phases.
    """

    def __init__(self, model: TransferClassifier, decay: float) -> None:
        super().__init__(model, avg_fn=partial(_average, decay=decay), use_buffers=True)
        self.update_parameters(model)

    @property
    def classifier(self) -> TransferClassifier:
        """Model with the averaged weights."""
        return cast("TransferClassifier", self.module)


def _average(average: Tensor, current: Tensor, count: Tensor | int, *, decay: float) -> Tensor:
    """Return the updated average; it moves faster in the first steps, far from where training ends."""
    share = 1.0 - min(decay, (1.0 + float(count)) / (10.0 + float(count)))
    return average + share * (current - average)


@dataclass(frozen=True, slots=True)
class PhaseProgress:
    """Number of the current phase, and how many of its epochs are done."""

    number: int = 0
    done: int = 0


@dataclass(slots=True)
class TrainingState:
    """What changes during a training; the weights of the model change too."""

    inputs: FineTuneInputs
    history: HistoryRecorder
    terms: AdaptationTerms
    display: EpochDisplay
    average: WeightAverage | None = None
    #: How the processes divide the model in training, if they do.
    sharding: Sharding | None = None
    #: The divided copy of the model that a phase trains; the model itself stays whole, as it was before.
    sharded: TransferClassifier | None = None
    progress: PhaseProgress = PhaseProgress()
    #: BatchNorm layers whose statistics are kept.
    kept_statistics: tuple[str, ...] = ()
    #: What identifies the training, as it was at its start.
    _identity: dict[str, Any] | None = None
    #: Numbers of epochs, without those of the head, after which it had ended before further ones were added.
    ends: tuple[int, ...] = ()
    #: What the next fit starts from, if it continues one that was interrupted.
    fit: resume.FitState | None = None

    @property
    def phases(self) -> tuple[Phase, ...]:
        """Phases in order, further ones included."""
        return plan_phases(self.inputs.config, self.inputs.model.backbone, self.ends)

    @property
    def evaluated_model(self) -> TransferClassifier:
        """Model that is validated and saved: the one being trained, or the average of its weights."""
        return self._trained_model if self.average is None else self.average.classifier

    @property
    def _trained_model(self) -> TransferClassifier:
        return self.inputs.model if self.sharded is None else self.sharded

    def shard_model(self, mesh: Any) -> TransferClassifier:
        """Return a copy of the model that the processes divide, which is trained from now on."""
        assert self.sharding is not None  # else there is nothing to divide
        self.sharded = self.sharding.copy_sharded(self.inputs.model, mesh)
        return self.sharded

    def gather_evaluated(self) -> TransferClassifier:
        """Return the model that is validated and saved, whole; every process takes part."""
        if self.sharded is None:
            return self.evaluated_model
        copy_whole(self.evaluated_model, self.inputs.model)
        return self.inputs.model

    def gather_model(self) -> None:
        """Give the model the weights of its divided copy; every process takes part."""
        if self.sharded is not None:
            copy_whole(self.sharded, self.inputs.model)
            self.sharded = None

    def start_average(self, device: torch.device, mesh: Any = None) -> None:
        """Move the average of the weights to a device, if there is to be one; create it if it's missing."""
        inputs = self.inputs
        if inputs.config.ema is None:
            return
        if self.average is None:
            self.average = WeightAverage(inputs.model, inputs.config.ema)
        if self.sharding is not None and not is_sharded(self.average):
            self.sharding.shard(self.average.classifier, mesh)
        self.average.to(device).eval()
        if inputs.channels_last:
            self.average.classifier.backbone.to(memory_format=torch.channels_last)

    def _describe(self) -> dict[str, Any]:
        """Return what identifies the training, as it was before its first phase."""
        if self._identity is None:
            self._identity = self.inputs.describe()
        return self._identity

    def save(self, trainer: Any = None, *, write: bool = True) -> None:
        """
        Write the resume file, if there is an output folder; `trainer` is that of a phase under way.

        Processes that do not `write` take part if the model is divided between them.
        """
        if self.inputs.resume_file is None or not (write or self.sharding is not None):
            return
        model, average = self._trained_model.state_dict(), {}
        if self.average is not None:
            average = self.average.state_dict()
        fit = None if trainer is None else resume.FitState.capture(trainer)
        if self.sharded is not None:
            model, average = (whole_tensors(one, keep=write) for one in (model, average))
            fit = None if fit is None else fit.gather(keep=write)
        if not write:
            return
        history, best = self.history.state_dict()
        content = resume.ResumeState(
            phase=self.progress.number,
            done=self.progress.done,
            **self._describe(),
            weights=[self.inputs.model.weights_name, self.inputs.model.weights_sha256],
            weights_chain=list(self.inputs.model.weights_chain),
            kept_statistics=list(self.kept_statistics),
            ends=list(self.ends),
            history=history,
            model=model,
            best=best,
            terms=self.terms.state_dict(),
            loss=loss_state(self.inputs.loss),
            average=average,
            fit=fit,
        )
        resume.save(content, self.inputs.resume_file)

    def restore(self, path: Path) -> None:
        """Continue from a resume file; raise TrainingError if it belongs to another training."""
        saved, self.ends = _load_same(self.inputs, self._describe(), path)
        try:
            self._take(saved)
        except MedimgError:
            raise
        # each field is of its type, but may be of another training
        except (KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
            raise CheckpointError(
                f"{path} has no sound state of a training ({type(error).__name__}: {error}): pass "
                "overwrite=True instead of resume to start again"
            ) from error

    def _take(self, saved: resume.ResumeState) -> None:
        """Continue from the content of a resume file."""
        inputs = self.inputs
        if self.ends:
            self.history.add_settings(ended_before_after=list(self.ends))
        inputs.model.load_state_dict(saved.model)
        if saved.weights is not None:
            inputs.model.weights_name, inputs.model.weights_sha256 = saved.weights
        if saved.weights_chain is not None:
            inputs.model.weights_chain = tuple(saved.weights_chain)
        self.kept_statistics = (
            _find_kept_before(inputs) if saved.kept_statistics is None else tuple(saved.kept_statistics)
        )
        for name in self.kept_statistics:
            inputs.model.backbone.get_submodule(name)
        self.terms.load_state_dict(saved.terms)
        restore_loss(inputs.loss, saved.loss)
        self.history.load_state_dict(saved.history, saved.best)
        # a file from before the first step has none
        if inputs.config.ema is not None and saved.average:
            self.average = WeightAverage(inputs.model, inputs.config.ema)
            self.average.load_state_dict(saved.average)
        self.progress = PhaseProgress(saved.phase, saved.done)
        self.fit = saved.fit


def _load_same(
    inputs: FineTuneInputs, own: dict[str, Any], path: Path
) -> tuple[resume.ResumeState, tuple[int, ...]]:
    """Return the content of a resume file, and after how many epochs the training had ended before."""
    saved = resume.load(path)
    ends = tuple(saved.ends)
    if _is_continued(inputs, saved, path):
        ends = (*ends, saved.settings["epochs"])
        saved = replace(saved, settings={**saved.settings, "epochs": inputs.config.epochs})
    _check_same_training(inputs, own, saved, path)
    return saved, ends


def check_candidates(inputs: FineTuneInputs, methods: Mapping[str, Adaptation | None], output: Path) -> None:
    """Raise TrainingError if a resume file of a method's folder belongs to another training."""
    digests: dict[int, str | None] = {}
    # validation data serve the choice alone
    inputs = replace(inputs, val=None)
    if inputs.config.rank is not None:
        inputs = replace(inputs, model=copy.deepcopy(inputs.model))
        add_adapters(inputs.model, inputs.config.rank or 0, inputs.config.seed)
    for name, method in methods.items():
        path = output / name / resume.FILE
        if is_regular_file(path):
            own = replace(inputs, adaptations=() if method is None else (method,))
            _load_same(own, own.describe(digests), path)


def _find_kept_before(inputs: FineTuneInputs) -> tuple[str, ...]:
    """Return the BatchNorm layers whose statistics were kept by versions that wrote schema 1."""
    choice = inputs.config.batch_statistics
    if choice == "auto":
        choice = "update" if inputs.model.weights_name is None else "keep"
    return find_kept_statistics(inputs.model, choice)


def _is_continued(inputs: FineTuneInputs, saved: resume.ResumeState, path: Path) -> bool:
    """Whether a training that has ended goes on for further epochs; one that has not can't have them."""
    config, before = inputs.config, saved.settings.get("epochs")
    if not isinstance(before, int) or config.epochs <= before:
        return False
    planned = len(plan_phases(config, inputs.model.backbone, saved.ends, epochs=before))
    if saved.phase < planned:
        raise TrainingError(
            f"epochs={config.epochs}, before {before}, but the training of {path} has not ended: resume it "
            f"with epochs={before}, and then again with more"
        )
    return True


def _check_same_training(
    inputs: FineTuneInputs, own: dict[str, Any], saved: resume.ResumeState, path: Path
) -> None:
    """Raise TrainingError if a resume file belongs to another network, settings or data."""
    differing = _list_differing_settings(inputs, own, saved)
    if any(one.startswith(("adapter=", "rank=")) for one in differing):
        raise _describe_differences(path, differing)
    shapes = {name: value.shape for name, value in inputs.model.state_dict().items()}
    if shapes != {name: value.shape for name, value in saved.model.items()}:
        raise TrainingError(
            f"{path} belongs to another network than {inputs.model.backbone_name}: create the same model"
        )
    if saved.adapt != own["adapt"]:
        differing.append("adapt")
    if saved.more is not None:
        processes = {"processes": None}  # which count with batch_size
        differing += _list_differences({**own["more"], **processes}, {**saved.more, **processes})
    differing += _list_differing_data(inputs, own["data"], saved)
    if differing:
        raise _describe_differences(path, differing)


def _list_differing_settings(
    inputs: FineTuneInputs, own: Mapping[str, Any], saved: resume.ResumeState
) -> list[str]:
    """Describe settings that differ; batches may be divided between other numbers of processes."""
    differing = [
        one for one in inputs.config.differences(saved.settings) if not one.startswith("batch_size=")
    ]
    before = saved.settings.get("batch_size"), (saved.more or {}).get("processes") or 1
    now = inputs.config.batch_size, (own.get("more") or {}).get("processes") or 1
    if not isinstance(before[0], int) or before[0] * before[1] != now[0] * now[1]:
        differing.insert(0, f"batch_size={now[0]}{_of(now[1])}, before {before[0]}{_of(before[1])}")
    return differing


def _of(processes: int) -> str:
    return f" in each of {processes} processes" if processes > 1 else ""


def _describe_differences(path: Path, differing: list[str]) -> TrainingError:
    return TrainingError(
        f"{path} belongs to another training, which differs in {'; '.join(differing)}: pass the same "
        "arguments as then, or overwrite=True instead of resume to start again"
    )


def _list_differing_data(
    inputs: FineTuneInputs, own: Mapping[str, str | None], saved: resume.ResumeState
) -> list[str]:
    """Name the datasets that differ from those of a resume file, and the recipe if that is the only cause."""
    differing = []
    for name, data in inputs.datasets.items():
        if saved.more is None and name not in ("train", "val"):
            continue
        compute = _compute_old_digest if saved.more is None else resume.data_digest
        before = saved.data.get(name)
        if before == (own[name] if saved.more is not None else compute(data)):
            continue
        cause = _find_revision(data, before, compute)
        differing.append(f"the {name} data" if cause is None else f"the recipe of the {name} data ({cause})")
    return differing


def _compute_old_digest(data: LabeledDataset | None, recipe: Preprocess | None = None) -> str | None:
    """Return the digest of a dataset in resume files of schema 1."""
    return None if data is None else identifier_digest(data, recipe)


def _find_revision(
    data: LabeledDataset | None, before: str | None, compute: Callable[..., str | None]
) -> str | None:
    """Describe an older revision of the recipe with which a dataset has the digest of a resume file."""
    if data is None or before is None or data.preprocess.revision == UNSTATED_REVISION:
        return None
    older = data.preprocess.replace(revision=UNSTATED_REVISION)
    if compute(data, older) != before:
        return None
    return (
        f"revision={data.preprocess.revision}, before {older.revision}, which took 8-bit images between "
        f"percentiles: use preprocess.replace(revision={older.revision})"
    )


def _list_differences(own: dict[str, Any], before: dict[str, Any]) -> list[str]:
    """Describe further settings that differ from those of a resume file."""
    names = [name for name in sorted(own.keys() | before.keys()) if own.get(name) != before.get(name)]
    return [
        f"frozen parameters ({len(own[name])}, before {len(before.get(name) or ())})"
        if name == "frozen"
        else f"{name}={_show(own.get(name))}, before {_show(before.get(name))}"
        for name in names
    ]


def _show(value: object) -> str:
    return reprlib.repr(value)
