"""Checks of model and data before training."""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from medimg.data.dataloader import find_stream
from medimg.data.items import ItemFacts
from medimg.data.leakage.check_leaks import check_splits
from medimg.data.patients import patient_key
from medimg.errors import LeakageError, MedimgWarning, TrainingError
from medimg.models.backbones.heads import feature_count
from medimg.models.data_checks import check_dataset, check_same_unit
from medimg.models.freezing import freeze_batchnorm_statistics
from medimg.models.module_mode import module_mode
from medimg.training.class_weights import check_labels

if TYPE_CHECKING:
    from collections.abc import Sequence

    from medimg.data.protocols import LabeledDataset
    from medimg.models.classifier import TransferClassifier
    from medimg.training._config import FineTuneConfig

__all__ = ["check_data", "check_disjoint", "check_forward", "check_unit"]

#: Share of the items of one class above which shards of that class alone are no surprise.
_COMMON: Final = 0.9


def check_data(model: TransferClassifier, train: LabeledDataset, val: LabeledDataset | None) -> None:
    """Raise TrainingError if data don't match the model or each other, LeakageError if they overlap."""
    check_dataset("fine_tune", model, train, "the training dataset")
    check_labels(train.labels, model.classes, model.task)
    if val is None:
        return
    check_dataset("fine_tune", model, val, "the validation dataset")
    check_same_unit(train, val, ("the training data", "the validation data"))
    check_disjoint(train, val)


def check_unit(config: FineTuneConfig, train: LabeledDataset) -> None:
    """Raise TrainingError if a setting would have no effect on these data; warn of shards that are sorted."""
    _warn_of_sorted_shards(train)
    if config.mixup and train.unit == "series":
        raise TrainingError(
            f'mixup={config.mixup:g} mixes single images, and the training dataset has bags (unit="series"): '
            'use mixup=0, or unit="image"'
        )
    if config.mixup and config.batch_size == 1:
        raise TrainingError(
            f"mixup={config.mixup:g} mixes the images of a batch, and batch_size is 1: raise it, or use "
            "mixup=0"
        )
    if config.grad_slices is not None and train.unit != "series":
        raise TrainingError(
            f"grad_slices={config.grad_slices} limits the slices of a bag, and the training dataset has "
            'single images (unit="image"): use grad_slices=None, or unit="series"'
        )


def _warn_of_sorted_shards(train: LabeledDataset) -> None:
    """Warn if the images that are shuffled together, as not all shards have room, are of few classes."""
    stream = find_stream(train)
    if stream is None or stream.window is None or train.labels.ndim != 1:
        return
    pure, count = stream.count_pure(train.labels)
    most = np.unique(train.labels, return_counts=True)[1].max() / len(train)
    if pure > count / 2 and most < _COMMON:
        warnings.warn(
            f"{pure} of {count} shards have images of one class only, and {stream.window} are shuffled at a "
            "time, so that batches are of few classes: raise cache_bytes=, or prepare the sources in random "
            "order in another folder",
            MedimgWarning,
            stacklevel=4,
        )


def check_forward(
    model: TransferClassifier, train: LabeledDataset, config: FineTuneConfig, kept: Sequence[str]
) -> None:
    """Raise TrainingError if the backbone fails in training mode on as few images as a batch may have."""
    if not any(parameter.requires_grad for parameter in model.backbone.parameters()):
        return
    count = _count_fewest(train, config)
    device = next(model.parameters()).device
    images = torch.zeros(count, *model.preprocess.image_shape, device=device)
    statistics = {name: value.clone() for name, value in model.backbone.named_buffers()}
    gpus = [device] if device.type == "cuda" else []
    try:
        with module_mode(model, training=True), torch.random.fork_rng(devices=gpus), torch.no_grad():
            freeze_batchnorm_statistics(model, kept)
            found: object = model.backbone(images.to(model.head.weight.dtype))
    except Exception as error:  # of torch's layers, or of a registered network
        raise TrainingError(
            f"{model.backbone_name} can't be trained on {count} image{'s' if count > 1 else ''} of "
            f"{images.shape[2]}×{images.shape[3]} at a time: {type(error).__name__}: {error}; use a larger "
            'batch_size or larger images, or batch_statistics="keep" if the statistics of a batch can\'t be '
            "computed"
        ) from error
    finally:
        with torch.no_grad():
            for name, value in model.backbone.named_buffers():
                value.copy_(statistics[name])
    if not isinstance(found, torch.Tensor) or found.shape != (count, feature_count(model)):
        shape = tuple(found.shape) if isinstance(found, torch.Tensor) else f"a {type(found).__name__}"
        raise TrainingError(
            f"in training mode {model.backbone_name} returns {shape} for {count} images, expected embeddings "
            f"({count}, {feature_count(model)}): build it without auxiliary outputs"
        )


def _count_fewest(train: LabeledDataset, config: FineTuneConfig) -> int:
    """Return the fewest images that a batch may have; a last batch of one is left out of longer epochs."""
    items = 1 if min(config.batch_size, len(train)) == 1 else 2
    if train.unit != "series":
        return items
    series = list({id(one): one for one in getattr(train, "series", ())}.values())
    fewest = min(map(train.preprocess.count, series), default=2)
    return items * max(1, min(fewest, config.grad_slices or fewest))


def check_disjoint(train: LabeledDataset, val: LabeledDataset) -> None:
    """Raise LeakageError if a patient, study, series, file, instance or known image is in both datasets."""
    _check_sources_disjoint(train, val)
    first, second = ({patient_key(patient) for patient in set(data.patients)} for data in (train, val))
    shared = first & second - {""}
    if shared:
        raise LeakageError(
            f"{len(shared)} of {len(set(val.patients))} patients of the validation data are also in the "
            "training data, which would invalidate the validation scores; split with medimg.split(dataset)"
        )
    if isinstance(train, ItemFacts) and isinstance(val, ItemFacts):
        check_splits(train, val)


def _check_sources_disjoint(train: LabeledDataset, val: LabeledDataset) -> None:
    """Raise LeakageError if a series or file is in both datasets, whichever patients are given."""
    for name in ("series_uids", "sources"):
        first, second = (
            {os.path.realpath(value) for value in getattr(data, name, ()) if value} for data in (train, val)
        )
        shared = first & second
        if shared:
            raise LeakageError(
                f"{len(shared)} of {len(second)} series or files of the validation data are also in the "
                "training data, which would invalidate the validation scores; split with "
                "medimg.split(dataset)"
            )
