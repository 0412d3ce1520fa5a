"""A recipe carried out: from a source to pictures in the range 0 to 1."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from medimg.core.display import choose_voi
from medimg.core.geometry import display_code
from medimg.core.report import ReadReport
from medimg.core.resample import resampled_size
from medimg.core.volume import Volume
from medimg.errors import PreprocessError
from medimg.io.read import Source, opened
from medimg.io.series import Policies, Series
from medimg.prep.needs import Part, needed_slices
from medimg.prep.resizing import resize
from medimg.prep.slices import choose_slices, neighbors
from medimg.prep.windowing import apply_voi

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from medimg.core.window import Voi
    from medimg.prep.recipe import Preprocess

__all__ = ["Rendered", "count_pictures", "render", "render_series"]

# torch computes little with these, and windows are applied in float32 anyway
_TORCH_TYPES: Final = {
    np.dtype(np.uint16): np.int32,
    np.dtype(np.uint32): np.float32,
    np.dtype(np.uint64): np.float32,
    np.dtype(np.int64): np.float32,
    np.dtype(np.float64): np.float32,
    np.dtype(np.float16): np.float32,
}


@dataclass(frozen=True, slots=True, eq=False)
class Rendered:
    """
    Pictures, and where they come from.

    Attributes
    ----------
    planes : torch.Tensor
        (N, 1 or 3, H, W) float32, 0 (black) to 1 (white), not normalized.
    slices : tuple of int
        For each picture, the index of its slice in the volume as it was read; the nearest one where the
        volume was resampled.
    sop_instance_uids : tuple of str
        Of the slice of each picture; "" where there is none.
    report : ReadReport
        How the volume came about, the recipe's steps included.
    """

    planes: torch.Tensor = field(repr=False)
    slices: tuple[int, ...]
    sop_instance_uids: tuple[str, ...] = field(repr=False)
    report: ReadReport

    @property
    def series_uid(self) -> str:
        """Series Instance UID, or "" where there is none."""
        return self.report.series_uid


def count_pictures(recipe: Preprocess, depth: int, slice_spacing: float) -> int:
    """Return how many pictures a recipe makes of that many slices at that distance, in millimeters."""
    if recipe.spacing is not None:
        wanted = recipe.spacing if isinstance(recipe.spacing, int | float) else recipe.spacing[0]
        depth = resampled_size(depth, wanted / slice_spacing)
    return len(choose_slices(depth, recipe.slices))


def render(recipe: Preprocess, source: Source | Volume, device: str | torch.device | None) -> Rendered:
    """Carry out a recipe; see :meth:`medimg.Preprocess.render`."""
    if isinstance(source, Volume):
        return _rendered(recipe, source, device)
    series, finish = opened(source)
    return render_series(recipe, series, Policies(), device, finish)


def render_series(
    recipe: Preprocess,
    series: Series,
    policies: Policies,
    device: str | torch.device | None = None,
    finish: Callable[[Volume], Volume] = lambda volume: volume,
) -> Rendered:
    """
    Carry out a recipe on a series; only the slices that it takes are read, if nothing depends on the others.

    Parameters
    ----------
    recipe : Preprocess
        What to do.
    series : Series
        What to read.
    policies : Policies
        How to read it.
    device : str or torch.device, optional
        Where to compute.
    finish : callable
        What is done with the volume after it is read.

    Returns
    -------
    Rendered
    """
    options = asdict(policies)
    needed = needed_slices(recipe, series, policies)
    if needed is not None:
        volume = series.read(needed.stored, **options)
        if not _depends_on_all(recipe, volume):
            return _rendered(recipe, finish(volume), device, needed)
    return _rendered(recipe, finish(series.read(**options)), device)


def _depends_on_all(recipe: Preprocess, volume: Volume) -> bool:
    """Whether "auto" turns out to mean percentiles of the whole volume."""
    windows = recipe.window if isinstance(recipe.window, tuple) else (recipe.window,)
    return "auto" in windows and not volume.is_color and volume.units != "HU"


def _rendered(
    recipe: Preprocess, original: Volume, device: str | torch.device | None, part: Part | None = None
) -> Rendered:
    if original.shape[0] != 1 and not original.is_color:
        raise PreprocessError(
            f"this image has {original.shape[0]} channels (time points or echoes); choose one: "
            "recipe(medimg.read(source).select(0))"
        )
    volume, flipped = _upright(original, recipe)
    if recipe.spacing is not None:
        volume = volume.resample(recipe.spacing)
    part = part or Part.whole(volume.shape[1])
    chosen = choose_slices(part.depth, recipe.slices)
    windows = () if volume.is_color else _windows(recipe, volume)
    batches = _batches([part.place_of(d) for d in chosen], windows)
    planes = torch.cat([_pictures(recipe, volume, batch, voi, device, part=part) for batch, voi in batches])
    # volume and original cover the same extent along D, from one outer edge on
    scale = volume.spacing[0] / original.spacing[0] if recipe.spacing else 1.0
    depth = original.shape[1] if recipe.spacing else part.depth
    read = [_original_index(part.place_of(d), scale, original.shape[1], flipped) for d in chosen]
    uids = original.report.sop_instance_uids
    return Rendered(
        planes=planes,
        slices=tuple(_original_index(d, scale, depth, flipped) for d in chosen),
        sop_instance_uids=tuple(uids[i] if len(uids) == original.shape[1] else "" for i in read),
        report=volume.report.then(f"preprocessed by recipe {recipe.fingerprint}"),
    )


def _upright(volume: Volume, recipe: Preprocess) -> tuple[Volume, bool]:
    """Return the volume as it is displayed, and whether its slices are in reverse order now."""
    if recipe.orientation == "stored" or volume.space != "patient":
        return volume, False
    code = display_code(volume.affine)
    return volume.reorient(code), code[0] != volume.orientation[0]


def _original_index(d: int, scale: float, depth: int, flipped: bool) -> int:
    nearest = min(depth - 1, int((d + 0.5) * scale))
    return depth - 1 - nearest if flipped else nearest


def _windows(recipe: Preprocess, volume: Volume) -> tuple[tuple[Voi, ...], ...]:
    """Return for each channel its window of all slices (one), or of each."""
    wanted = recipe.window if isinstance(recipe.window, tuple) else (recipe.window,)
    return tuple(choose_voi(volume, window, recipe.percentiles) for window in wanted)


def _batches(
    chosen: Sequence[int], windows: tuple[tuple[Voi, ...], ...]
) -> list[tuple[tuple[int, ...], tuple[Voi, ...]]]:
    """Group neighboring slices that share their windows: (slices, a window for each channel)."""
    batches: list[tuple[list[int], tuple[Voi, ...]]] = []
    for d in chosen:
        voi = tuple(w[d if len(w) > 1 else 0] for w in windows)
        if batches and batches[-1][1] == voi and len(batches[-1][0]) < 8:
            batches[-1][0].append(d)
        else:
            batches.append(([d], voi))
    return [(tuple(slices), voi) for slices, voi in batches]


def _pictures(
    recipe: Preprocess,
    volume: Volume,
    slices: tuple[int, ...],
    voi: tuple[Voi, ...],
    device: str | torch.device | None,
    *,
    part: Part,
) -> torch.Tensor:
    """(n, 1 or 3, H, W) pictures of some slices that share their windows."""
    if volume.is_color:
        colors = _tensor(volume.array[:, list(slices)], device)
        planes = colors.transpose(0, 1).to(torch.float32) / volume.white
    elif recipe.channels == "adjacent":
        sets = [[part.place_of(n) for n in neighbors(part.displayed[i], part.depth)] for i in slices]
        shown = [_shown(volume, three, voi, device)[:, 0] for three in sets]
        planes = torch.stack(shown)
    else:
        planes = _shown(volume, list(slices), voi, device)
    _, *spacing = volume.spacing
    return resize(planes, spacing, recipe.hw, recipe.fit, recipe.fill_value)


def _shown(
    volume: Volume, slices: list[int], voi: tuple[Voi, ...], device: str | torch.device | None
) -> torch.Tensor:
    """(n, windows, H, W): windowed, inverted where the file says so, black where no value is."""
    values = _tensor(volume.array[0, slices], device)
    finite = torch.isfinite(values) if values.is_floating_point() else None
    if finite is not None:
        values = torch.nan_to_num(values.to(torch.float32))
    planes = torch.stack([apply_voi(values, v) for v in voi], dim=1)
    if volume.inverted:
        planes = 1.0 - planes
    if finite is not None:
        planes = planes.masked_fill(~finite[:, None], 0.0)
    if volume.padding is not None:
        padded = _tensor(volume.padding[0, slices], device)
        planes = planes.masked_fill(padded[:, None], 0.0)
    return planes


def _tensor(array: np.ndarray[Any, Any], device: str | torch.device | None) -> torch.Tensor:
    plain = np.ascontiguousarray(array, dtype=_TORCH_TYPES.get(array.dtype.newbyteorder("="), None))
    if not plain.dtype.isnative:
        plain = plain.astype(plain.dtype.newbyteorder("="))
    return torch.from_numpy(plain if plain.flags.writeable else plain.copy()).to(device or "cpu")
