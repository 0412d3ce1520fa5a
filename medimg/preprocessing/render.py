"""Rendering: from a source to images, normalized or in the range 0 to 1."""

from __future__ import annotations

import re
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np

from medimg.core.geometry import display_code
from medimg.core.resample import plan_axes
from medimg.core.volume import Volume
from medimg.errors import PreprocessError
from medimg.io.read import Source, resolve_source
from medimg.io.series import PieceReader, Policies, Series
from medimg.preprocessing._array_source import as_source
from medimg.preprocessing._slice_renderer import SliceRenderer, count_channels
from medimg.preprocessing._slice_selection import (
    SliceSelection,
    choose_slices,
    depends_on_all,
    find_needed_slices,
)
from medimg.preprocessing.display_orientation import DisplayOrientation
from medimg.preprocessing.volume_fit import VolumeFit, reorient_upright

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    import numpy.typing as npt
    import torch

    from medimg.core.read_report import ReadReport
    from medimg.preprocessing.array_output import ArrayOutput
    from medimg.preprocessing.output_buffer import Output
    from medimg.preprocessing.preprocess import Preprocess

__all__ = ["AnyOutput", "ImageSource", "Rendered", "count_images", "join_reports", "render", "render_series"]

#: All that a recipe takes: what :func:`medimg.read` takes, a volume, or an array or tensor without geometry.
ImageSource: TypeAlias = "Source | Volume | npt.NDArray[Any] | torch.Tensor"

#: Where to render: tensors of torch, or arrays of NumPy.
AnyOutput: TypeAlias = "Output | ArrayOutput"

_SOME_READ: Final = re.compile(r"\d+ of \d+ slices read")


def join_reports(reports: Sequence[ReadReport], part: SliceSelection) -> ReadReport:
    """Join the reports of consecutive pieces into one."""
    if len(reports) == 1:
        return reports[0]
    steps = [t for t in _deduplicate(r.transforms for r in reports) if not _SOME_READ.fullmatch(t)]
    if not part.is_whole:
        steps.append(f"{len(part.stored)} of {part.depth} slices read")
    numbers = tuple(chain.from_iterable(r.frame_numbers for r in reports))
    return replace(
        reports[0],
        files=_deduplicate(r.files for r in reports),
        sop_instance_uids=tuple(chain.from_iterable(r.sop_instance_uids for r in reports)),
        frame_numbers=numbers if len(numbers) == len(part.stored) else (),
        transforms=tuple(steps),
        warnings=_deduplicate(r.warnings for r in reports),
    )


def _deduplicate(texts: Iterable[Iterable[str]]) -> tuple[str, ...]:
    """Return each text once, in order of first appearance."""
    return tuple(dict.fromkeys(chain.from_iterable(texts)))


# stored bytes read at once: enough that reading and computing alternate rarely, and memory stays small
_PIECE_CPU: Final = 3 * 2**22
_PIECE_DEVICE: Final = 2**26


@dataclass(frozen=True, slots=True, eq=False)
class Rendered:
    """
    Rendered images and their origin.

    Attributes
    ----------
    planes : torch.Tensor
        (N, 1 or 3, H, W) float32, 0 (black) to 1 (white); all channels if normalized; in 3-D (1, C, D, H, W).
        An array if rendered without torch.
    slices : tuple of int
        Index of each image's slice in the volume as read; the nearest one if it was resampled; in 3-D the
        middle one.
    sop_instance_uids : tuple of str
        SOP Instance UID of each image's slice; "" if there is none.
    report : ReadReport
        How the volume was read and preprocessed.
    normalized : bool
        Whether the images are normalized.
    """

    planes: torch.Tensor = field(repr=False)
    slices: tuple[int, ...]
    sop_instance_uids: tuple[str, ...] = field(repr=False)
    report: ReadReport
    normalized: bool = False

    @property
    def series_uid(self) -> str:
        """Series Instance UID; "" if there is none."""
        return self.report.series_uid


def count_images(recipe: Preprocess, image: Volume | Series) -> int:
    """Return the number of images a recipe makes of an image; PreprocessError if unreasonably many."""
    if recipe.dims == 3:
        return 1
    channels, depth = image.shape[:2]
    if recipe.spacing is not None:
        size, spacing = DisplayOrientation.of(image, recipe).grid(image)
        shape = (channels, depth, *size)
        depth = plan_axes(shape, (image.spacing[0], *spacing), recipe.spacing)[0].new_size
    return len(choose_slices(depth, recipe.slices))


def render(recipe: Preprocess, source: ImageSource, output: AnyOutput | None = None) -> Rendered:
    """Render a source, a volume or an array; see :meth:`medimg.Preprocess.render`."""
    output = output or _make_tensor_output()
    source = as_source(source)
    if not isinstance(source, Volume):
        series, finish = resolve_source(source)
        return render_series(recipe, series, Policies(), output, finish)
    output.check(recipe, count_images(recipe, source))
    with _guard_memory(output):
        return _render_whole(recipe, source, output)


def render_series(
    recipe: Preprocess,
    series: Series,
    policies: Policies,
    output: AnyOutput | None = None,
    finish: Callable[[Volume], Volume] = lambda volume: volume,
) -> Rendered:
    """
    Render a series; `finish` completes the report of its volume.

    Only the slices needed are read, a few at a time, unless an image depends on the other slices.
    """
    output = output or _make_tensor_output()
    output.check(recipe, count_images(recipe, series))
    part = find_needed_slices(recipe, series, policies)
    with _guard_memory(output):
        if part is not None:
            pieces = _read_pieces(series, part, policies, output)
            if recipe.dims == 3:
                fit = VolumeFit.of(series, recipe)
                planes = _render_pieces(fit.slices, pieces, part, output.unnormalized(), finish)
                rendered = None if planes is None else _stack_slices(recipe, planes, fit, output)
            else:
                rendered = _render_pieces(recipe, pieces, part, output, finish)
            if rendered is not None:
                return rendered
        return _render_whole(recipe, finish(series.read(**asdict(policies))), output)


def _make_tensor_output() -> Output:
    from medimg.preprocessing.output_buffer import Output

    return Output()


@contextmanager
def _guard_memory(output: AnyOutput) -> Iterator[None]:
    with output.guard():
        try:
            yield
        except MemoryError:
            raise PreprocessError(
                "no memory for these images; choose fewer by slices=, a smaller size or a coarser spacing"
            ) from None


def _read_pieces(
    series: Series, part: SliceSelection, policies: Policies, output: AnyOutput
) -> Iterator[Volume]:
    """Yield the selected slices, a few at a time if that does not read any file twice."""
    channels, _, height, width = series.shape
    most = _PIECE_CPU if output.is_cpu else _PIECE_DEVICE
    at_once = max(1, most // (2 * channels * height * width))
    slices = None if part.is_whole else part.stored
    apart = isinstance(series.reader, PieceReader) or (series.format == "DICOM" and len(series.files) > 1)
    if apart and len(part.stored) > at_once:
        yield from series.pieces(at_once, slices, policies=policies)
    else:
        yield series.read(slices, **asdict(policies))


def _render_pieces(
    recipe: Preprocess,
    pieces: Iterator[Volume],
    part: SliceSelection,
    output: AnyOutput,
    finish: Callable[[Volume], Volume],
) -> Rendered | None:
    """Render selected slices; None if a piece shows that the whole volume is needed."""
    piece: Volume | None = next(pieces)
    assert piece is not None  # there is no series without slices
    _check_channels(piece)
    # a copy, so that the memory of the piece is free before the next is read
    first = piece if piece.shape[1] == 1 else piece.take([0])
    orientation = DisplayOrientation.of(piece, recipe)
    chosen = choose_slices(part.depth, recipe.slices)
    images = output.allocate(recipe, len(chosen), count_channels(recipe, first))
    renderer = SliceRenderer(recipe, images, part.depth, orientation, first)
    reports: list[ReadReport] = []
    done = 0
    while piece is not None:
        if depends_on_all(recipe, piece) or not _is_uniform(piece, first, recipe, orientation):
            return None
        renderer.render(piece, part.stored[done : done + piece.shape[1]])
        done += piece.shape[1]
        reports.append(piece.report)
        piece = None
        piece = next(pieces, None)
    if done != len(part.stored):
        return None
    renderer.check_content()
    report = join_reports(reports, part)
    shown = _to_stored_indices(chosen, orientation, part.depth)
    uids = dict(zip(part.stored, report.sop_instance_uids, strict=False))
    return Rendered(
        planes=images.images,
        slices=shown,
        sop_instance_uids=tuple(uids.get(d, "") for d in shown),
        report=_complete_report(finish(replace(first, report=report)), recipe),
        normalized=output.normalized,
    )


def _render_whole(recipe: Preprocess, volume: Volume, output: AnyOutput) -> Rendered:
    """Render a volume that is in memory."""
    if recipe.dims == 2:
        return _render_volume(recipe, volume, output)
    _check_channels(volume)
    depth, uids = volume.shape[1], volume.report.sop_instance_uids
    if recipe.spacing is not None:
        volume = reorient_upright(volume, recipe).resample(recipe.spacing)
    fit = VolumeFit.of(volume, recipe)
    planes = _render_volume(fit.slices, volume, output.unnormalized())
    rendered = _stack_slices(recipe, planes, fit, output)
    middle = depth // 2
    named = (uids[middle],) if len(uids) == depth else ("",)
    return replace(rendered, slices=(middle,), sop_instance_uids=named)


def _stack_slices(recipe: Preprocess, planes: Rendered, fit: VolumeFit, output: AnyOutput) -> Rendered:
    """Make a volume of rendered slices, of which the middle one in stored order is named."""
    volume = fit.stack(planes.planes)
    images = output.allocate(recipe, 1, volume.shape[1])
    images.write(volume, 0)
    middle = planes.slices.index(len(planes.slices) // 2)
    # the last step names the recipe of the slices
    report = replace(planes.report, transforms=planes.report.transforms[:-1])
    return Rendered(
        planes=images.images,
        slices=(planes.slices[middle],),
        sop_instance_uids=(planes.sop_instance_uids[middle],),
        report=report.then(f"preprocessed by recipe {recipe.fingerprint}"),
        normalized=output.normalized,
    )


def _render_volume(recipe: Preprocess, original: Volume, output: AnyOutput) -> Rendered:
    _check_channels(original)
    orientation, depth = DisplayOrientation.of(original, recipe), original.shape[1]
    # both cover the same extent along D, from the same outer edge
    volume = original if recipe.spacing is None else orientation.reorient(original).resample(recipe.spacing)
    scale = volume.spacing[0] / original.spacing[0] if recipe.spacing is not None else 1.0
    chosen = choose_slices(volume.shape[1], recipe.slices)
    images = output.allocate(recipe, len(chosen), count_channels(recipe, volume))
    renderer = SliceRenderer(recipe, images, volume.shape[1], DisplayOrientation.of(volume, recipe), volume)
    renderer.render(volume, range(volume.shape[1]))
    renderer.check_content()
    shown = _to_stored_indices([min(depth - 1, int((d + 0.5) * scale)) for d in chosen], orientation, depth)
    uids = original.report.sop_instance_uids
    return Rendered(
        planes=images.images,
        slices=shown,
        sop_instance_uids=tuple(uids[d] if len(uids) == depth else "" for d in shown),
        report=_complete_report(volume, recipe),
        normalized=output.normalized,
    )


def _check_channels(volume: Volume) -> None:
    if volume.shape[0] != 1 and not volume.is_color:
        raise PreprocessError(
            f"this image has {volume.shape[0]} channels (time points or echoes); choose one: "
            "recipe(medimg.read(source).select(0))"
        )


def _is_uniform(piece: Volume, first: Volume, recipe: Preprocess, orientation: DisplayOrientation) -> bool:
    """Whether a piece has the format of the first one; reading the whole volume reports what differs."""
    facts = [(v.shape[0], v.shape[2:], v.units, v.photometric, v.inverted) for v in (piece, first)]
    if facts[0] != facts[1]:
        return False
    return (
        np.array_equal(piece.affine[:3, :3], first.affine[:3, :3])
        or DisplayOrientation.of(piece, recipe) == orientation
    )


def _to_stored_indices(
    displayed: Sequence[int], orientation: DisplayOrientation, depth: int
) -> tuple[int, ...]:
    """Return the array indices of slices given by display indices."""
    return tuple(depth - 1 - d if orientation.turned else d for d in displayed)


def _complete_report(volume: Volume, recipe: Preprocess) -> ReadReport:
    report, orientation = volume.report, DisplayOrientation.of(volume, recipe)
    if orientation != DisplayOrientation():
        report = report.then(f"reoriented from {volume.orientation} to {display_code(volume.affine)}")
    return report.then(f"preprocessed by recipe {recipe.fingerprint}")
