"""Prediction: on data sets, and on raw images by the model's own recipe."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias, cast

import numpy as np
import torch

from medimg.core.volume import Volume
from medimg.errors import MedimgError, PreprocessError, TrainingError
from medimg.io.series import Series
from medimg.io.sources import is_buffer
from medimg.learn.backbones import head_logits
from medimg.learn.loaders import evaluation_loader
from medimg.learn.pooling import pool_embeddings
from medimg.learn.scores import probabilities

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray
    from torch import Tensor

    from medimg.learn.classifier import TransferClassifier
    from medimg.learn.loaders import LabeledImages

__all__ = ["PredictSource", "predict", "predict_proba"]

#: One image or series to predict on.
PredictSource: TypeAlias = (
    str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | Series | Volume
)


@dataclass(frozen=True, slots=True)
class _Picture:
    """One slice that waits for its probabilities."""

    name: str
    series_uid: str
    sop_instance_uid: str
    slice: int


def predict_proba(
    model: TransferClassifier,
    dataset: LabeledImages,
    *,
    batch_size: int = 32,
    num_workers: int = 0,
    progress: bool = False,
) -> NDArray[np.float64]:
    """Predict on every item of a data set; see :meth:`medimg.TransferClassifier.predict_proba`."""
    from tqdm import tqdm

    if dataset.preprocess.fingerprint != model.preprocess.fingerprint:
        raise PreprocessError(
            f"the data set is made by recipe {dataset.preprocess.fingerprint}, the model was trained on "
            f"{model.preprocess.fingerprint}: use dataset.with_preprocess(model.preprocess)"
        )
    _check_batch_size(batch_size)
    bags = dataset.unit == "series"
    loader = evaluation_loader(dataset, batch_size=1 if bags else batch_size, num_workers=num_workers)
    with evaluating(model) as device:
        rows = []
        for batch in tqdm(loader, desc="predicting", unit="batch", disable=not progress):
            if bags:
                rows.append(_bag_probabilities(model, batch.images[0], device, batch_size)[None])
            else:
                rows.append(probabilities(model(batch.images.to(device)), model.task))
    return np.concatenate(rows)


def _bag_probabilities(
    model: TransferClassifier, bag: Tensor, device: torch.device, batch_size: int
) -> NDArray[np.float64]:
    """Pass the slices (N, 3, H, W) of one series in parts that fit into memory, then pool: (K,)."""
    embeddings = torch.cat([model.embed(part.to(device)) for part in torch.split(bag, batch_size)])
    if model.pool == "none":
        # without pooling, the mean of the slices' probabilities stands for the series
        rows = probabilities(head_logits(model.head, embeddings), model.task)
    else:
        pooled = pool_embeddings(embeddings[None], None, model.pool, model.attention)
        rows = probabilities(head_logits(model.head, pooled), model.task)
    mean: NDArray[np.float64] = rows.mean(axis=0)
    return mean


def predict(
    model: TransferClassifier,
    sources: PredictSource | Iterable[PredictSource],
    *,
    unit: str = "series",
    batch_size: int = 32,
    progress: bool = False,
) -> pd.DataFrame:
    """Predict on raw images; see :meth:`medimg.TransferClassifier.predict`."""
    import pandas as pd
    from tqdm import tqdm

    if unit not in ("series", "slice"):
        raise TrainingError(f'unit is "series" or "slice"; found {unit!r}')
    _check_batch_size(batch_size)
    named = tqdm(_as_list(sources), desc="predicting", unit="source", disable=not progress)
    with evaluating(model) as device:
        rendered = _rendered(model, named)
        if unit == "series":
            found = [(p[0], _bag_probabilities(model, bag, device, batch_size)) for p, bag in rendered]
        else:
            found = list(_by_slice(model, rendered, device, batch_size))
    return pd.DataFrame(
        [_row(model, picture, p, unit) for picture, p in found], columns=_columns(model, unit)
    )


@contextmanager
def evaluating(model: TransferClassifier) -> Iterator[torch.device]:
    """Put a model into evaluation mode without gradients, give its device, and set the mode back."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.inference_mode():
            yield next(model.parameters()).device
    finally:
        for module, mode in modes.items():
            module.training = mode


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise TrainingError(f"batch_size is a positive number; found {batch_size!r}")


def _as_list(sources: PredictSource | Iterable[PredictSource]) -> list[PredictSource]:
    if isinstance(sources, str | os.PathLike | Series | Volume) or is_buffer(sources):
        return [cast("PredictSource", sources)]
    given: object = sources
    if not isinstance(given, Iterable):
        raise TrainingError(
            f"can't predict on a {type(given).__name__}; expected a path, bytes, a file object, a Series, "
            "a Volume, or several"
        )
    return list(cast("Iterable[PredictSource]", sources))


def _rendered(
    model: TransferClassifier, sources: Iterable[PredictSource]
) -> Iterator[tuple[list[_Picture], Tensor]]:
    for number, source in enumerate(sources):
        name = _name(source, number)
        try:
            rendered = model.preprocess.render(source)
        except MedimgError as error:
            error.add_note(f"while predicting on source {number}, counted from 0")
            raise
        uids = rendered.sop_instance_uids
        pictures = [
            _Picture(name, rendered.series_uid, uid, index)
            for uid, index in zip(uids, rendered.slices, strict=True)
        ]
        yield pictures, model.preprocess.normalize(rendered.planes)


def _name(source: PredictSource, number: int) -> str:
    if isinstance(source, str | os.PathLike):
        return os.fspath(source)
    if isinstance(source, Series):
        return source.path
    return f"<bytes {number}>" if is_buffer(source) else f"volume {number}"


def _by_slice(
    model: TransferClassifier,
    rendered: Iterable[tuple[list[_Picture], Tensor]],
    device: torch.device,
    batch_size: int,
) -> Iterator[tuple[_Picture, NDArray[np.float64]]]:
    """Fill batches across sources, so that single pictures don't pass one by one."""
    waiting: list[_Picture] = []
    planes: list[Tensor] = []
    for pictures, tensor in rendered:
        waiting += pictures
        planes += tensor
        while len(waiting) >= batch_size:
            yield from _computed(model, waiting[:batch_size], planes[:batch_size], device)
            waiting, planes = waiting[batch_size:], planes[batch_size:]
    if waiting:
        yield from _computed(model, waiting, planes, device)


def _computed(
    model: TransferClassifier, pictures: list[_Picture], planes: list[Tensor], device: torch.device
) -> Iterator[tuple[_Picture, NDArray[np.float64]]]:
    rows = probabilities(model(torch.stack(planes).to(device)), model.task)
    return zip(pictures, rows, strict=True)


def _columns(model: TransferClassifier, unit: str) -> list[str]:
    where = ["sop_instance_uid", "slice"] if unit == "slice" else []
    return ["source", "series_uid", *where, "predicted", *(f"p_{name}" for name in model.classes)]


def _row(
    model: TransferClassifier, picture: _Picture, proba: NDArray[np.float64], unit: str
) -> dict[str, Any]:
    if model.task == "multiclass":
        predicted = model.classes[int(proba.argmax())]
    else:
        predicted = ";".join(name for name, p in zip(model.classes, proba, strict=True) if p >= 0.5)
    where = {"sop_instance_uid": picture.sop_instance_uid, "slice": picture.slice} if unit == "slice" else {}
    scores = {f"p_{name}": float(p) for name, p in zip(model.classes, proba, strict=True)}
    return {
        "source": picture.name,
        "series_uid": picture.series_uid,
        **where,
        "predicted": predicted,
        **scores,
    }
