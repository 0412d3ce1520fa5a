"""The preprocessing recipe: all steps from a volume to a tensor, as one frozen, serializable object."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, TypeAlias, TypedDict, Unpack, get_args

import numpy as np

from medimg._public import set_module
from medimg._validation import check_choice, did_you_mean
from medimg.core.content_hash import content_hash, json_text
from medimg.core.display import DECLARED
from medimg.core.resample import check_spacing
from medimg.core.window import PRESETS, Window
from medimg.errors import PreprocessError, also
from medimg.preprocessing._slice_selection import list_windows
from medimg.preprocessing.array_output import ArrayOutput
from medimg.preprocessing.render import Rendered, count_images, render
from medimg.preprocessing.resize_plan import Fit

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from medimg.errors import MedimgError
    from medimg.io.series import Series
    from medimg.preprocessing._slice_selection import SliceChoice
    from medimg.preprocessing.render import ImageSource


__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "UNSTATED_REVISION",
    "Preprocess",
    "RecipeFields",
    "check_same_preprocessing",
    "to_tensor",
]

IMAGENET_MEAN: Final = (0.485, 0.456, 0.406)
IMAGENET_STD: Final = (0.229, 0.224, 0.225)

#: Incremented whenever the same fields would give other tensors than before. Older revisions that are listed
#: still give the tensors that they gave: models saved with them predict what they predicted.
_REVISION: Final = 4
_REVISIONS: Final = (3, _REVISION)
#: Revision of recipes that were saved without one.
UNSTATED_REVISION: Final = 3
#: The first revision in which "auto" takes images of 8 bits at their full range, not between percentiles.
_FULL_RANGE: Final = 4

#: Beyond this, single precision overflows.
_MOST_DEVIATIONS: Final = 1e30

#: Most voxels of an output in 3-D: 4 GiB.
_MOST_VOXELS: Final = 2**30

OneWindow: TypeAlias = str | Window
WindowOrPair: TypeAlias = OneWindow | tuple[float, float]
Channels: TypeAlias = Literal["repeat", "windows", "adjacent", "single"]
Orientation: TypeAlias = Literal["display", "stored"]
#: Fields that recipes written before do not have, with the value that recipes without them mean.
_ADDED: Final[dict[str, Any]] = {"dims": 2}


class RecipeFields(TypedDict, total=False):
    """Fields of :class:`medimg.Preprocess` as keyword arguments, each optional."""

    window: WindowOrPair | tuple[WindowOrPair, WindowOrPair, WindowOrPair]
    channels: Channels
    slices: SliceChoice
    spacing: float | tuple[float, float, float] | None
    size: int | tuple[int, int] | tuple[int, int, int]
    fit: Fit
    fill: Literal["background"] | float
    mean: float | tuple[float, ...] | None
    std: float | tuple[float, ...] | None
    percentiles: tuple[float, float]
    orientation: Orientation
    revision: int
    dims: Literal[2, 3]


@set_module("medimg")
@dataclass(frozen=True, slots=True)
class Preprocess:
    """
    A preprocessing recipe: all steps from an image to normalized tensors.

    The order of operations follows PS3.4 N.2: modality values, resampling in modality units, window or VOI
    LUT, inversion for MONOCHROME1, then resizing and normalization. Color images are not windowed.

    Parameters
    ----------
    window : str, Window, pair of floats, or three of these
        "auto": CT: soft_tissue; images of 8 bits (PNG, JPEG, DICOM): the window the file declares, else the
        full range; CR, DX, MG: the window the file declares, else percentiles; all others: percentiles.
        "dicom": the first window or table that the file declares; "dicom:1": another
        alternative, by index from 0; "dicom:BONE": the one with this explanation. "percentile". The name of a
        preset, in Hounsfield units. A :class:`Window`, or its ``(center, width)``. Three of these make the
        three channels.
    channels : {"repeat", "windows", "adjacent", "single"}
        "repeat": one image in three equal channels. "windows": one channel for each of three windows.
        "adjacent": the previous slice, the slice, the next slice (2.5-D). "single": one channel; colors
        become their luma (ITU-R BT.601). In 3-D, "repeat" means "single".
    slices : "all", "middle" or int
        Slices to render; an int takes that many, evenly spaced. In 3-D, all.
    spacing : float, tuple of 3 floats, or None
        Spacing (D, H, W) to resample to before windowing, in millimeters; None to keep that of the image.
    size : int, tuple of 2 ints, or in 3-D of 3 ints
        Rows and columns of the output; in 3-D slices, rows and columns.
    fit : {"pad", "crop", "stretch"}
        How an image of another aspect ratio is fitted, in physical units: padded with `fill`, cropped about
        the center, or distorted.
    fill : "background" or float
        Intensity of padding, 0 (black) to 1 (white); "background" is black.
    mean, std : tuple of 3 floats, float, or None
        Mean and standard deviation for normalization: of each of three channels, or of the one. None leaves
        intensities from 0 to 1. By default ImageNet's for three channels, None for one.
    percentiles : tuple of 2 floats
        Low and high percentile of "percentile" windows; padding and non-finite values are ignored.
    orientation : {"display", "stored"}
        "display": the standard radiological view, whatever the array order, if the orientation in the patient
        is known; in 3-D that of axial slices, from the feet to the head, for every volume. "stored": the
        array order.
    revision : int
        Revision of the rules above, the current one by default. 3: "auto" also takes images of 8 bits between
        percentiles, as models that were saved with it do.
    dims : {2, 3}
        2: images of slices, (N, 3, H, W) or (N, 1, H, W). 3: a volume, (1, D, H, W), or (3, D, H, W) for
        three windows.

    Raises
    ------
    PreprocessError
        If a field is invalid or two contradict each other.

    Examples
    --------
    >>> recipe = Preprocess(window="lung", slices=8)
    >>> recipe == Preprocess.from_dict(recipe.to_dict())
    True
    >>> recipe.fingerprint == Preprocess(window="bone", slices=8).fingerprint
    False
    >>> Preprocess(dims=3, size=(64, 96, 96), window=(-600, 1500)).image_shape
    (1, 64, 96, 96)
    """

    window: WindowOrPair | tuple[WindowOrPair, WindowOrPair, WindowOrPair] = "auto"
    channels: Channels = "repeat"
    slices: SliceChoice = "all"
    spacing: float | tuple[float, float, float] | None = None
    size: int | tuple[int, int] | tuple[int, int, int] = 224
    fit: Fit = "pad"
    fill: Literal["background"] | float = "background"
    mean: float | tuple[float, ...] | None = IMAGENET_MEAN
    std: float | tuple[float, ...] | None = IMAGENET_STD
    percentiles: tuple[float, float] = (0.5, 99.5)
    orientation: Orientation = "display"
    revision: int = _REVISION
    dims: Literal[2, 3] = 2

    def __post_init__(self) -> None:
        for name in ("window", "size", "spacing", "mean", "std", "percentiles"):
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        numeric = ("size", "slices", "spacing", "fill", "mean", "std", "percentiles", "revision", "dims")
        for name in numeric:
            object.__setattr__(self, name, _to_python_numbers(getattr(self, name)))
        object.__setattr__(self, "window", _to_windows(self.window))
        if self.channels == "repeat" and isinstance(self.window, tuple):
            object.__setattr__(self, "channels", "windows")
        elif self.channels == "repeat" and self.dims == 3:
            object.__setattr__(self, "channels", "single")
        _check_choices(self)
        _check_windows(self)
        mean, std = _complete_normalization(self.mean, self.std, self.n_channels)
        object.__setattr__(self, "mean", mean)
        object.__setattr__(self, "std", std)
        _check_numbers(self)

    @property
    def n_channels(self) -> int:
        """Number of channels of an image: 3, or 1."""
        return 1 if self.channels == "single" else 3

    @property
    def hw(self) -> tuple[int, int]:
        """Rows and columns of the output."""
        return self.image_shape[-2], self.image_shape[-1]

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape of an image of the output: (C, H, W), or (C, D, H, W) in 3-D."""
        size = (self.size,) * self.dims if isinstance(self.size, int) else self.size
        return (self.n_channels, *size)

    @property
    def normalization(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each channel; 0 and 1 if intensities stay from 0 to 1."""
        mean, std = self.mean, self.std
        if not isinstance(mean, tuple) or not isinstance(std, tuple):
            return (0.0,) * self.n_channels, (1.0,) * self.n_channels
        return mean, std

    @property
    def fill_value(self) -> float:
        """Intensity of padding, 0 to 1."""
        return 0.0 if self.fill == "background" else float(self.fill)

    @property
    def background(self) -> torch.Tensor:
        """Normalized value of padding: (C, 1, 1) float32, in 3-D (C, 1, 1, 1)."""
        import torch

        fill = torch.full((1, 1, *(1,) * self.dims), self.fill_value, dtype=torch.float32)
        return self.normalize(fill)[0]

    @property
    def has_full_range(self) -> bool:
        """Whether "auto" takes images of 8 bits at their full range."""
        return self.revision >= _FULL_RANGE

    @property
    def fingerprint(self) -> str:
        """Hash of the recipe, 16 hexadecimal digits: equal only if the tensors are."""
        settings = self.to_dict()
        return content_hash(json_text([settings.pop("revision"), settings], compact=True))[:16]

    def _repr_html_(self) -> str:
        from medimg.plotting.html_repr import facts_html

        return facts_html("Preprocess", {field.name: getattr(self, field.name) for field in fields(self)})

    def replace(self, **changes: Unpack[RecipeFields]) -> Preprocess:
        """Return a copy of the recipe with some fields changed."""
        return replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-compatible values; `dims` only in 3-D, as recipes written before."""

        def to_plain(value: Any) -> Any:
            if isinstance(value, Window):
                return value.to_dict()
            if isinstance(value, tuple):
                return [to_plain(v) for v in value]
            return value

        values = {f.name: to_plain(getattr(self, f.name)) for f in fields(self)}
        return {name: v for name, v in values.items() if name not in _ADDED or v != _ADDED[name]}

    @classmethod
    def from_dict(cls, recipe: dict[str, Any]) -> Preprocess:
        """
        Make a recipe from the values of :meth:`to_dict`.

        Raises
        ------
        PreprocessError
            If a field is unknown or invalid.
        """

        def from_plain(value: Any) -> Any:
            if isinstance(value, dict):
                return Window(**value)
            return tuple(from_plain(v) for v in value) if isinstance(value, list) else value

        unknown = set(recipe) - {f.name for f in fields(cls)}
        if unknown:
            first = min(map(str, unknown))
            hint = did_you_mean(first, [f.name for f in fields(cls)])
            raise also(PreprocessError, KeyError)(
                f"unknown fields of a recipe: {', '.join(sorted(map(repr, unknown)))}{hint}"
            )
        try:
            return cls(**{name: from_plain(value) for name, value in recipe.items()})
        except PreprocessError:
            raise
        except (TypeError, ValueError) as error:
            raise also(PreprocessError, TypeError)(
                f"a recipe has a field of the wrong type: {error}"
            ) from None

    def count(self, series: Series) -> int:
        """
        Return the number of images the recipe makes of a series, without reading its pixels.

        Raises
        ------
        PreprocessError
            If there would be unreasonably many.
        """
        return count_images(self, series)

    def render(self, source: ImageSource, *, device: str | torch.device | None = None) -> Rendered:
        """
        Render images without normalization.

        A series is read a few slices at a time, and only the slices needed, unless its windows depend on all
        of it, as percentiles do.

        Parameters
        ----------
        source : str, Path, list of these, Series, Volume, array, tensor, or image of another library
            Image; see :func:`medimg.read`. Arrays and tensors are (H, W), (D, H, W) or (C, D, H, W), without
            geometry, or images of ``torchvision.tv_tensors``.
        device : str or torch.device, optional
            Device for computation; the CPU by default.

        Returns
        -------
        Rendered
            Its ``planes`` are (N, 1 or 3, H, W) float32, 0 (black) to 1 (white); in 3-D (1, C, D, H, W).

        Raises
        ------
        PreprocessError
            If the recipe does not fit the image, or there is no such device.
        ReadError, SeriesError
            If the source can't be read.
        """
        from medimg.preprocessing.output_buffer import Output

        return render(self, source, Output.of(device))

    def render_array(self, source: ImageSource) -> NDArray[np.float32]:
        """
        Render images without normalization, and without torch: the input of exported models.

        Parameters
        ----------
        source : str, Path, list of these, Series, Volume, array, or image of another library
            Image; see :meth:`render`.

        Returns
        -------
        numpy.ndarray
            (N, C, H, W) float32, 0 (black) to 1 (white), with all channels of the recipe; read-only. The same
            as those of :meth:`render`, bit-for-bit unless they are rendered by torch there (then within
            1e-6).

        Raises
        ------
        PreprocessError
            If the recipe does not fit the image, or is in 3-D.
        ReadError, SeriesError
            If the source can't be read.

        Examples
        --------
        >>> from medimg.core.geometry import image_affine
        >>> from medimg.core.volume import Volume
        >>> volume = Volume(np.zeros((1, 4, 64, 64), np.int16), image_affine(), "CT", "HU")
        >>> Preprocess(window="lung", slices=2).render_array(volume).shape
        (2, 3, 224, 224)
        """
        planes: Any = render(self, source, ArrayOutput()).planes
        shape = (len(planes), self.n_channels, *planes.shape[2:])
        return np.broadcast_to(planes, shape)

    def normalize(self, planes: torch.Tensor) -> torch.Tensor:
        """
        Normalize images.

        Parameters
        ----------
        planes : torch.Tensor
            (N, 1 or C, H, W) float32, 0 to 1; in 3-D (N, 1 or C, D, H, W).

        Returns
        -------
        torch.Tensor
            (N, C, H, W) float32: ``(planes - mean) / std``, as one multiply-add; in 3-D (N, C, D, H, W).
        """
        from medimg.preprocessing.intensity import normalize_into

        if planes.requires_grad:
            shape = (1, -1, *(1,) * self.dims)
            mean, std = (planes.new_tensor(v).view(shape) for v in self.normalization)
            return (planes - mean) / std
        out = planes.new_empty((len(planes), self.n_channels, *planes.shape[2:]))
        normalize_into(out, planes, *self.normalization)
        return out

    def __call__(
        self,
        source: ImageSource,
        *,
        device: str | torch.device | None = None,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """
        Render and normalize images.

        A series is read a few slices at a time, and only the slices needed, unless its windows depend on all
        of it, as percentiles do.

        Parameters
        ----------
        source : str, Path, list of these, Series, Volume, array, tensor, or image of another library
            Image; see :func:`medimg.read`. Arrays and tensors are (H, W), (D, H, W) or (C, D, H, W), without
            geometry, or images of ``torchvision.tv_tensors``.
        device : str or torch.device, optional
            Device for computation, to which stored values are copied; by default that of `out`, or the CPU.
        out : torch.Tensor, optional
            Output buffer, (at least N, C, H, W) float32, in 3-D (C, D, H, W), contiguous; reusing one avoids
            reallocation. Its content after an error is undefined.

        Returns
        -------
        torch.Tensor
            (N, C, H, W) float32, N slices in display order; a view of the first N of `out`, if given.
            Bit-for-bit identical to ``normalize(render(source).planes)``. In 3-D the volume alone,
            (C, D, H, W).

        Raises
        ------
        PreprocessError
            If the recipe does not fit the image, there is no such device, or `out` has another shape, dtype
            or device; nothing is read then.
        ReadError, SeriesError
            If the source can't be read.

        Examples
        --------
        >>> from medimg.core.geometry import image_affine
        >>> from medimg.core.volume import Volume
        >>> volume = Volume(np.zeros((1, 4, 64, 64), np.int16), image_affine(), "CT", "HU")
        >>> import torch
        >>> buffer = torch.empty(10, 3, 224, 224)
        >>> Preprocess(window="lung")(volume, out=buffer).shape
        torch.Size([4, 3, 224, 224])
        """
        import torch

        from medimg.preprocessing.output_buffer import Output

        if self.dims == 2:
            return render(self, source, Output.of(device, out, normalized=True)).planes
        buffer = out.unsqueeze(0) if isinstance(out, torch.Tensor) else out
        return render(self, source, Output.of(device, buffer, normalized=True)).planes[0]


class _Recipe(Protocol):
    """The part of :class:`Preprocess` that is compared."""

    @property
    def fingerprint(self) -> str: ...

    def to_dict(self) -> dict[str, Any]: ...


def check_same_preprocessing(
    found: _Recipe,
    expected: _Recipe,
    *,
    name: str = "the dataset",
    other: str = "the model",
    hint: str = "use dataset.with_preprocess(model.preprocess)",
    error: type[MedimgError] = PreprocessError,
) -> None:
    """Raise an error naming the fields in which two recipes differ."""
    if found.fingerprint == expected.fingerprint:
        return
    here, there = ({**_ADDED, **recipe.to_dict()} for recipe in (found, expected))
    fields = [f"{n}={here.get(n)!r}, not {there[n]!r}" for n in there if here.get(n) != there[n]]
    raise error(
        f"{name} and {other} differ in preprocessing ({'; '.join(fields) or 'another version'}): {hint}"
    )


def _check_choices(recipe: Preprocess) -> None:
    choices = {"channels": get_args(Channels), "fit": get_args(Fit), "orientation": get_args(Orientation)}
    for name, known in choices.items():
        check_choice(name, getattr(recipe, name), known, error=PreprocessError)
    slices = recipe.slices
    if slices not in ("all", "middle") and (not isinstance(slices, int) or slices < 1):
        raise PreprocessError(f'slices must be "all", "middle" or a positive number; found {slices!r}')
    if recipe.dims not in (2, 3) or isinstance(recipe.dims, bool):
        raise PreprocessError(
            f"dims must be 2, for images of slices, or 3, for volumes; found {recipe.dims!r}"
        )
    if recipe.dims == 3 and (slices != "all" or recipe.channels == "adjacent"):
        raise PreprocessError(
            f'dims=3 takes the whole volume: expected slices="all" and channels "single" or "windows"; found '
            f"slices={slices!r} and channels={recipe.channels!r}; size=(D, H, W) sets the number of slices"
        )
    if recipe.revision not in _REVISIONS or isinstance(recipe.revision, bool):
        raise PreprocessError(
            f"revision must be one of {', '.join(map(str, _REVISIONS))}; found {recipe.revision!r}: a newer "
            "one needs a newer medimg, an older one the medimg that wrote it"
        )


def _check_windows(recipe: Preprocess) -> None:
    windows = list_windows(recipe)
    if (len(windows) == 3) != (recipe.channels == "windows"):
        raise PreprocessError(
            f'channels="windows" takes three windows, the others one; '
            f"found {len(windows)} with channels={recipe.channels!r}"
        )
    named = {"auto", "dicom", "percentile", *PRESETS}
    for window in windows:
        if isinstance(window, Window) or window in named:
            continue
        if not (isinstance(window, str) and window.startswith(DECLARED) and window[len(DECLARED) :].strip()):
            raise also(PreprocessError, KeyError)(
                f"unknown window {window!r}; expected a Window, {DECLARED!r} with an index or explanation, "
                f"or one of {', '.join(sorted(named))}{did_you_mean(window, named)}"
            )


def _to_windows(value: Any) -> Any:
    """Make Windows of pairs (center, width), alone or among three."""
    if isinstance(value, tuple | list) and len(value) == 2 and all(isinstance(v, Real) for v in value):
        return Window(*value)
    return tuple(map(_to_windows, value)) if isinstance(value, tuple) else value


def _complete_normalization(mean: Any, std: Any, channels: int) -> tuple[Any, Any]:
    """Return mean and std of each channel, or None for both; ImageNet's apply to three channels."""
    if mean is None and std == IMAGENET_STD:
        std = None
    if std is None and mean == IMAGENET_MEAN:
        mean = None
    if channels == 1 and (mean, std) == (IMAGENET_MEAN, IMAGENET_STD):
        return None, None
    if channels == 1:
        mean, std = ((v,) if isinstance(v, float | int) else v for v in (mean, std))
    return mean, std


def _to_python_numbers(value: Any) -> Any:
    """Convert numbers, alone or in a tuple, to Python's, the only ones JSON accepts."""
    if isinstance(value, tuple):
        return tuple(_to_python_numbers(v) for v in value)
    if isinstance(value, Integral):
        return int(value)
    return float(value) if isinstance(value, Real) else value


def _are_numbers(values: object, count: int) -> bool:
    return (
        isinstance(values, tuple)
        and len(values) == count
        and all(isinstance(v, Real) and math.isfinite(v) for v in values)
    )


def _check_numbers(recipe: Preprocess) -> None:
    fill: Any = recipe.fill
    _check_size(recipe)
    if fill != "background" and not (isinstance(fill, Real) and 0 <= float(fill) <= 1):
        raise PreprocessError(f'fill must be "background" or an intensity from 0 to 1; found {recipe.fill!r}')
    _check_normalization(recipe)
    percentiles = recipe.percentiles
    if not _are_numbers(percentiles, 2) or not 0 <= percentiles[0] < percentiles[1] <= 100:
        raise PreprocessError(f"percentiles must be two ascending numbers, 0 to 100; found {percentiles!r}")
    if recipe.spacing is not None:
        check_spacing(recipe.spacing)
        if not isinstance(recipe.spacing, Real) and not _are_numbers(recipe.spacing, 3):
            raise PreprocessError(f"spacing must be a number or a tuple of three; found {recipe.spacing!r}")


def _check_size(recipe: Preprocess) -> None:
    sizes: tuple[Any, ...] = recipe.size if isinstance(recipe.size, tuple) else (recipe.size,) * recipe.dims
    whole = all(isinstance(n, Integral) and 1 <= int(n) <= 16384 for n in sizes)
    if len(sizes) != recipe.dims or not whole:
        expected = "one or two positive numbers of pixels"
        if recipe.dims == 3:
            expected = "one positive number of voxels, or three, (D, H, W)"
        raise PreprocessError(f"size must be {expected}; found {recipe.size!r}")
    if math.prod(sizes) > _MOST_VOXELS:
        raise PreprocessError(f"size must have at most 2**30 voxels; found {recipe.size!r}")


def _check_normalization(recipe: Preprocess) -> None:
    mean, std, channels = recipe.mean, recipe.std, recipe.n_channels
    if mean is None and std is None:
        return
    if mean is None or std is None:
        raise PreprocessError(
            "mean and std must both be None, for intensities from 0 to 1, or numbers; "
            f"found {mean!r} and {std!r}"
        )
    for name, values in (("mean", mean), ("std", std)):
        if not _are_numbers(values, channels):
            expected = (
                "three finite numbers" if channels == 3 else "one finite number, as there is one channel"
            )
            raise PreprocessError(f"{name} must be {expected}; found {values!r}")
    means, deviations = recipe.normalization
    if min(deviations) <= 0:
        raise PreprocessError(f"std must be positive; found {std!r}")
    if max(max(1.0, abs(m)) / s for m, s in zip(means, deviations, strict=True)) > _MOST_DEVIATIONS:
        raise PreprocessError(
            f"mean {mean!r} and std {std!r} are out of all proportion to intensities, 0 to 1"
        )


@set_module("medimg")
def to_tensor(
    source: ImageSource,
    *,
    device: str | torch.device | None = None,
    out: torch.Tensor | None = None,
    **recipe_fields: Unpack[RecipeFields],
) -> torch.Tensor:
    """
    Read an image and make normalized tensors of its slices, or of the volume.

    Parameters
    ----------
    source : str, Path, list of these, Series, Volume, array, tensor, or image of another library
        Image; see :class:`medimg.Preprocess`.
    device : str or torch.device, optional
        Device for computation; by default that of `out`, or the CPU.
    out : torch.Tensor, optional
        Output buffer, (at least N, C, H, W) float32, contiguous; see :class:`medimg.Preprocess`.
    **recipe_fields
        Fields of :class:`medimg.Preprocess`, such as ``window="lung"``.

    Returns
    -------
    torch.Tensor
        (N, 3, H, W) float32, 224×224 by default; (N, 1, H, W) with ``channels="single"``, (1, D, H, W) with
        ``dims=3``.

    Raises
    ------
    PreprocessError
        If a field is unknown or invalid, or the recipe does not fit the image.
    ReadError, SeriesError
        If the source can't be read.

    Examples
    --------
    >>> import numpy as np
    >>> from medimg.core.geometry import image_affine
    >>> from medimg.core.volume import Volume
    >>> volume = Volume(np.zeros((1, 4, 64, 64), np.int16), image_affine((2.0, 1.0, 1.0)), "CT", "HU")
    >>> to_tensor(volume, window="lung", slices=2).shape
    torch.Size([2, 3, 224, 224])
    """
    return Preprocess.from_dict({**recipe_fields})(source, device=device, out=out)
