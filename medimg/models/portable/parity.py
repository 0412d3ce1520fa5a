"""Comparison of an exported network with the model it was made of, on images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from medimg.core.volume import Volume
from medimg.errors import CheckpointError, TrainingError
from medimg.models.backbones.heads import head_logits
from medimg.models.pooling import slice_weights
from medimg.models.prediction.scored_source import list_sources, resolve_sources
from medimg.models.probabilities import model_probabilities
from medimg.preprocessing.array_output import ArrayOutput
from medimg.preprocessing.preprocess import Preprocess

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from medimg.models.classifier import TransferClassifier

__all__ = ["Run", "check_parity", "compute_outputs", "list_check_images"]

#: Runs an exported network on images, and returns its outputs by their names.
Run = Callable[["NDArray[np.float32]"], Mapping[str, "NDArray[Any]"]]

_MOST_SOURCES: Final = 5
_MOST_SLICES: Final = 40
#: Largest difference of a percentile: where images are dense, a distance that is off by little passes many.
_PERCENTILES: Final = 0.01
#: Largest difference of a weight of maximum pooling, which jumps if two slices have nearly the same maximum.
_MAXIMA: Final = 0.05


def list_check_images(model: TransferClassifier, check: Any) -> list[NDArray[np.float32]]:
    """Return the images (N, C, H, W), 0 to 1, of sources or of a dataset; by default of a phantom."""
    if check is None:
        return [_render_phantom(model.preprocess)]
    series = getattr(check, "series", None)
    given = list_sources(check if series is None else list({id(one): one for one in series}.values()))
    step = max(1, len(given) // _MOST_SOURCES)
    found = []
    for _, planes in islice(resolve_sources(model, given[::step], "raise", ArrayOutput()), _MOST_SOURCES):
        some = planes[:_MOST_SLICES]
        shape = (len(some), *model.preprocess.image_shape)
        # a copy: torch takes no read-only arrays
        found.append(np.array(np.broadcast_to(some, shape)))
    if not found:
        raise TrainingError("check= has no images; expected at least one, or None")
    return found


def _render_phantom(recipe: Preprocess) -> NDArray[np.float32]:
    """Return images of a synthetic CT, whatever windows the recipe asks for; every second one is inverted."""
    from medimg.phantom.ct import chest_ct

    ct = chest_ct(0, slices=7, size=64)
    window: Any = ("percentile",) * 3 if recipe.channels == "windows" else "percentile"
    plain = recipe.replace(window=window, slices="all", spacing=None)
    images = np.array(plain.render_array(Volume.from_array(ct.array)))
    # slices of one scan are so much alike that the weights of a pooling would hardly matter
    images[1::2] = 1 - images[1::2]
    return images


def check_parity(
    model: TransferClassifier, run: Run, images: list[NDArray[np.float32]], tolerance: float
) -> dict[str, Any]:
    """
    Return how many images were compared, and the largest difference of each output.

    Logits may differ by the tolerance, times the largest of all if that is above 1, and probabilities and the
    weights of slices by the tolerance; CheckpointError if they differ by more.
    """
    worst: dict[str, float] = {}
    compared = [(compute_outputs(model, batch), run(batch)) for batch in _make_batches(images, model.pool)]
    # of all images: a small logit can be the difference of large numbers, and is no more exact than they are
    largest = max(1.0, *(float(np.abs(expected["logits"]).max()) for expected, _ in compared))
    for expected, found in compared:
        for name, values in expected.items():
            if found[name].shape != values.shape:
                raise CheckpointError(
                    f"the exported network gives {name} of shape {found[name].shape}, the model "
                    f"{values.shape}: its axes are not of any length"
                )
            scale = largest if name == "logits" else 1.0
            difference = float(np.abs(found[name].astype(np.float64) - values).max()) / scale
            worst[name] = max(worst.get(name, 0.0), difference)
            most = {"ood": _PERCENTILES, "weights": _MAXIMA if model.pool == "max" else tolerance}.get(
                name, tolerance
            )
            hint = ", or a larger tolerance=" if most == tolerance else ""
            # not a number is no agreement either
            if not difference <= most:
                raise CheckpointError(
                    f"the exported network does not predict what the model does: {name} differ by up to "
                    f"{difference:.3g}; expected at most {most:g}{hint}; nothing was written"
                )
    return {"images": sum(map(len, images)), "differences": worst, "tolerance": tolerance}


def _make_batches(images: list[NDArray[np.float32]], pool: str) -> Iterator[NDArray[np.float32]]:
    """Yield batches of several sizes: single images and all of a source, or bags of several lengths."""
    for one in images:
        if pool == "none":
            yield one
            yield one[:1]
            continue
        yield one[None]
        yield one[None, :1]
        yield np.stack([one[: len(one) // 2 or 1], one[-(len(one) // 2 or 1) :]])


def compute_outputs(model: TransferClassifier, batch: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
    """Return what the model itself computes of images or bags of intensities, by the names of the outputs."""
    flat = torch.from_numpy(batch.reshape(-1, *batch.shape[-3:]))
    inputs = model.preprocess.normalize(flat).reshape(batch.shape)
    with torch.inference_mode():
        embeddings = model.embed(inputs)
        logits = head_logits(model.head, embeddings)
    found: dict[str, NDArray[Any]] = {
        "logits": logits.double().numpy(),
        "probabilities": model_probabilities(model, logits),
    }
    detector = model.calibration.outliers if model.calibration is not None else None
    if detector is not None:
        found["ood"] = detector.percentiles(embeddings.float().numpy())
    if model.pool != "none":
        with torch.inference_mode():
            slices = model.embed(inputs.flatten(0, 1)).reshape(*batch.shape[:2], -1)
            weights = [slice_weights(bag, model.pool, model.attention) for bag in slices]
        found["weights"] = torch.stack(weights).numpy()
    return found
