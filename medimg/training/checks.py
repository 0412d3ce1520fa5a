"""Checks of model and data before training."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np
import torch

from medimg.data.items import ItemFacts
from medimg.data.leakage.check_leaks import check_splits
from medimg.errors import LeakageError, TrainingError
from medimg.models.backbones.heads import feature_count
from medimg.models.classifier import TransferClassifier
from medimg.models.freezing import freeze_batchnorm_statistics
from medimg.models.module_mode import module_mode
from medimg.preprocessing.preprocess import check_same_preprocessing
from medimg.training.class_weights import check_labels

if TYPE_CHECKING:
    from collections.abc import Sequence

    from medimg.data.protocols import LabeledDataset
    from medimg.training._config import FineTuneConfig

__all__ = ["check_classes", "check_data", "check_disjoint", "check_forward", "check_unit"]


def check_data(model: TransferClassifier, train: LabeledDataset, val: LabeledDataset | None) -> None:
    """Raise TrainingError if data don't match the model or each other, LeakageError if they overlap."""
    if not isinstance(model, TransferClassifier):
        raise TrainingError(
            f"the model is a {type(model).__name__}; expected a TransferClassifier: medimg.load reads "
            "one, and a network of your own is registered by medimg.register_backbone"
        )
    _check_dataset(model, train, "training")
    check_labels(train.labels, model.classes, model.task)
    if val is None:
        return
    _check_dataset(model, val, "validation")
    if train.unit != val.unit:
        raise TrainingError(
            f"the training data have unit={train.unit!r}, the validation data {val.unit!r}; expected the same"
        )
    check_disjoint(train, val)


def check_unit(config: FineTuneConfig, train: LabeledDataset) -> None:
    """Raise TrainingError if a setting would have no effect on these data."""
    if config.mixup and train.unit == "series":
        raise TrainingError(
            f'mixup={config.mixup:g} mixes single images, and the training dataset has bags (unit="series"): '
            'use mixup=0, or unit="slice"'
        )
    if config.mixup and config.batch_size == 1:
        raise TrainingError(
            f"mixup={config.mixup:g} mixes the images of a batch, and batch_size is 1: raise it, or use "
            "mixup=0"
        )
    if config.grad_slices is not None and train.unit != "series":
        raise TrainingError(
            f"grad_slices={config.grad_slices} limits the slices of a bag, and the training dataset has "
            'single images (unit="slice"): use grad_slices=None, or unit="series"'
        )


def check_forward(
    model: TransferClassifier, train: LabeledDataset, config: FineTuneConfig, kept: Sequence[str]
) -> None:
    """Raise TrainingError if the backbone fails in training mode on as few images as a batch may have."""
    if not any(parameter.requires_grad for parameter in model.backbone.parameters()):
        return
    count = _count_fewest(train, config)
    device = next(model.parameters()).device
    images = torch.zeros(count, 3, *model.preprocess.hw, device=device)
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
    shared = set(train.patients) & set(val.patients) - {""}
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


def check_classes(model: TransferClassifier, data: LabeledDataset, which: str) -> None:
    """Raise TrainingError unless `data` is a dataset with items and the model's classes and task."""
    if not hasattr(data, "preprocess") or not hasattr(data, "patients"):
        raise TrainingError(
            f"the {which} data are a {type(data).__name__}; expected an ImageDataset: select a part of one "
            "with dataset.subset(indices) or medimg.split(dataset)"
        )
    if len(data) == 0:
        raise TrainingError(f"the {which} dataset is empty; expected at least one item")
    for name, found, expected in (
        ("classes", tuple(data.classes), model.classes),
        ("task", data.task, model.task),
    ):
        if found != expected:
            raise TrainingError(
                f"the {which} dataset has {name}={found!r}, the model {expected!r}; expected the same"
            )


def _check_dataset(model: TransferClassifier, data: LabeledDataset, which: str) -> None:
    """Raise TrainingError if a dataset doesn't match the model, or its labels the classes."""
    check_classes(model, data, which)
    check_same_preprocessing(
        data.preprocess, model.preprocess, name=f"the {which} dataset", error=TrainingError
    )
    if data.unit == "series" and model.pool == "none":
        raise TrainingError(
            f'the {which} dataset has bags (unit="series"), and a model with pool="none" takes images: use '
            'unit="slice", or pool="mean", "max" or "attention"'
        )
    if data.unit == "slice" and model.pool == "attention":
        raise TrainingError(
            f'pool="attention" needs whole series, and the {which} dataset has single images, with which its '
            'attention would stay random: use unit="series", or pool="mean" or "max"'
        )
    labels = np.asarray(data.labels)
    expected_shape = (len(data),) if model.task == "multiclass" else (len(data), len(model.classes))
    if labels.shape != expected_shape:
        raise TrainingError(
            f"the labels of the {which} dataset have shape {labels.shape}; expected {expected_shape}"
        )
    top = len(model.classes) - 1 if model.task == "multiclass" else 1
    if not np.isfinite(labels).all() or labels.min() < 0 or labels.max() > top:
        raise TrainingError(
            f"the labels of the {which} dataset range from {labels.min()} to {labels.max()}; expected values "
            f"from 0 to {top}"
        )
