"""Reading of image sources to predict on, and what is found of each."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol, TypeAlias, cast

import numpy as np

from medimg.core.volume import Volume
from medimg.data.resolved_source import ResolvedSource
from medimg.errors import MedimgError, MedimgWarning, TrainingError, also
from medimg.io.files.object_storage import is_remote_url, name_url
from medimg.io.series import Policies, Series
from medimg.io.sources import is_buffer, is_one_source
from medimg.models.data_checks import check_source
from medimg.models.training_distribution import ImageFacts
from medimg.preprocessing.render import render, render_series

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from medimg.calibration.result import Calibration
    from medimg.interop.image_object import AnyImage
    from medimg.models.training_distribution import TrainingDistribution
    from medimg.preprocessing.array_output import ArrayOutput
    from medimg.preprocessing.preprocess import Preprocess
    from medimg.preprocessing.render import Rendered

__all__ = ["PredictSource", "Predictor", "ScoredSource", "list_sources", "lose_source", "resolve_sources"]


class Predictor(Protocol):
    """What a table of predictions has to know of a model."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""

    @property
    def task(self) -> str:
        """``"multiclass"`` or ``"multilabel"``."""

    @property
    def pool(self) -> str:
        """Pooling of the slices of a series."""

    @property
    def preprocess(self) -> Preprocess:
        """Preprocessing of its images."""

    @property
    def calibration(self) -> Calibration | None:
        """Thresholds and prediction sets, if it is calibrated."""

    @property
    def training_ranges(self) -> TrainingDistribution | None:
        """What it was trained on, if that is known."""


#: One image or series to predict on.
PredictSource: TypeAlias = (
    "str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | Series | Volume | AnyImage"
)


@dataclass(slots=True, eq=False)
class ScoredSource:
    """
    Results of one source: per image UID and slice, and in parts probabilities (n, K) and OOD scores (n,).

    There is one row of probabilities per image, or one for the whole source; `weights` (images,) are the
    contributions of the images; `unlike` has the out-of-distribution facts by name; `error` is "" if none.
    """

    name: str
    series_uid: str = ""
    uids: tuple[str, ...] = ()
    slices: tuple[int, ...] = ()
    error: str = ""
    proba: list[NDArray[np.float64]] = field(default_factory=list)
    weights: NDArray[np.float64] | None = None
    ood: list[NDArray[np.float64]] = field(default_factory=list)
    unlike: dict[str, str] = field(default_factory=dict)
    embeddings: list[Tensor] = field(default_factory=list)

    @property
    def is_complete(self) -> bool:
        """Whether every image has its probabilities."""
        return sum(map(len, self.proba)) == len(self.slices)

    def add(self, embeddings: Tensor, proba: NDArray[np.float64], ood: NDArray[np.float64] | None) -> None:
        """Add the results of the next images."""
        self.embeddings.append(embeddings)
        self.proba.append(proba)
        if ood is not None:
            self.ood.append(ood)


def resolve_sources(
    model: Predictor,
    sources: Iterable[PredictSource],
    on_error: str,
    output: ArrayOutput | None = None,
    *,
    first: int = 0,
) -> Iterator[tuple[ScoredSource, Any]]:
    """
    Yield the series of sources one after another with their images (N, 1 or 3, H, W), not normalized.

    Images are tensors, or arrays if there is such an output. With ``on_error="collect"`` a source or series
    that can't be read has an error and no images. `first` is the number of the first source, for messages.
    """
    for number, source in enumerate(sources, first):
        name = _source_name(source, number)
        try:
            images, lost = ResolvedSource.resolve_all(source)
        except MedimgError as error:
            yield _fail(name, error, number, on_error)
            continue
        for image in images:
            if len(images) > 1 and isinstance(image.image, Series):
                name = image.image.path
            try:
                rendered, unlike = _render_source(model, image, output)
            except MedimgError as error:
                yield _fail(name, error, number, on_error)
                continue
            scored = ScoredSource(
                name, rendered.series_uid, rendered.sop_instance_uids, rendered.slices, unlike=unlike
            )
            yield scored, rendered.planes
            del rendered  # free its images before the next ones are rendered
        yield from _report_lost(_source_name(source, number), lost, on_error)


def _report_lost(
    name: str, lost: list[tuple[str, MedimgError]], on_error: str
) -> Iterator[tuple[ScoredSource, Any]]:
    """Yield the files of a folder that can't be read, or warn of them, as reading a series does."""
    if on_error == "collect":
        yield from (_fail(path, error, 0, on_error) for path, error in lost)
    elif lost:
        warnings.warn(
            f"{len(lost)} unreadable file(s) of {name} skipped, the first: {lost[0][1]}",
            MedimgWarning,
            stacklevel=2,
        )


def lose_source(task: tuple[int, PredictSource], error: MedimgError, *, on_error: str) -> list[ScoredSource]:
    """Return a numbered source that could not be scored; raise its error unless they are collected."""
    number, source = task
    return [_fail(_source_name(source, number), error, number, on_error)[0]]


def _fail(name: str, error: MedimgError, number: int, on_error: str) -> tuple[ScoredSource, Any]:
    """Return a source with its error and no images; raise the error unless errors are collected."""
    if on_error == "raise":
        error.add_note(f"while predicting on source {number}, counted from 0")
        raise error
    return ScoredSource(name, error=f"{type(error).__name__}: {error}"), np.empty(0)


def _render_source(
    model: Predictor, source: ResolvedSource, output: ArrayOutput | None
) -> tuple[Rendered, dict[str, str]]:
    """Return the images of a source, and its out-of-distribution facts."""
    ranges = model.training_ranges
    facts = None if ranges is None else ImageFacts.of(source.image, tags=bool(ranges.body_parts))
    unlike = {} if ranges is None or facts is None else ranges.unlike(facts)
    if isinstance(source.image, Volume):
        recipe = model.preprocess
        return recipe.render(source.image) if output is None else render(recipe, source.image, output), unlike
    return render_series(model.preprocess, source.image, Policies(), output, source.finish), unlike


def _source_name(source: PredictSource, number: int) -> str:
    if is_remote_url(source):
        return name_url(source)
    if isinstance(source, str | os.PathLike):
        return os.fspath(source)
    if isinstance(source, Series):
        return source.path
    if isinstance(source, Volume):
        return f"volume {number}"
    return f"<bytes {number}>" if is_buffer(source) else f"source {number}"


def list_sources(
    sources: PredictSource | Iterable[PredictSource], *, error: type[MedimgError] = TrainingError
) -> list[PredictSource]:
    """Return one source or several as a list."""
    if is_one_source(sources):
        return [cast("PredictSource", sources)]
    given: object = sources
    check_source(given, "predict", error=error)
    if not isinstance(given, Iterable):
        raise also(error, TypeError)(
            f"can't predict on a {type(given).__name__}; expected a path, bytes, a file object, a Series, a "
            "Volume, an image of another library, or several"
        )
    return list(cast("Iterable[PredictSource]", sources))
