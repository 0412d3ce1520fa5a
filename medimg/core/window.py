"""Windows and lookup tables: from modality values to display intensities."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import numpy as np

from medimg._public import set_module
from medimg._validation import did_you_mean
from medimg.errors import PreprocessError, also

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

__all__ = ["PRESETS", "LookupTable", "Voi", "VoiFunction", "Window"]

VoiFunction: TypeAlias = Literal["LINEAR", "LINEAR_EXACT", "SIGMOID"]

_FUNCTIONS: Final[tuple[VoiFunction, ...]] = ("LINEAR", "LINEAR_EXACT", "SIGMOID")

#: Window presets in Hounsfield units: name → (center, width).
PRESETS: Final[Mapping[str, tuple[float, float]]] = MappingProxyType(
    {
        "lung": (-600.0, 1500.0),
        "mediastinum": (50.0, 350.0),
        "abdomen": (50.0, 400.0),
        "soft_tissue": (40.0, 400.0),
        "liver": (30.0, 150.0),
        "brain": (40.0, 80.0),
        "subdural": (75.0, 200.0),
        "stroke": (40.0, 40.0),
        "stroke_narrow": (32.0, 8.0),
        "temporal_bone": (600.0, 2800.0),
        "bone": (480.0, 2500.0),
        "spine": (50.0, 250.0),
        "pe": (100.0, 700.0),
    }
)


@set_module("medimg")
@dataclass(frozen=True, slots=True)
class Window:
    """
    A window: the range of values displayed from black to white.

    Parameters
    ----------
    center : float
        Window Center (0028,1050), in modality units (for CT: HU).
    width : float
        Window Width (0028,1051), in modality units; at least 1 for ``LINEAR``, above 0 for the others.
    function : {"LINEAR", "LINEAR_EXACT", "SIGMOID"}
        VOI LUT Function (0028,1056), DICOM PS3.3 C.11.2.1.2 and C.11.2.1.3.
    explanation : str
        Window Center & Width Explanation (0028,1055).

    Raises
    ------
    PreprocessError
        If center or width is not finite, the width is too small or the function unknown.

    Examples
    --------
    >>> Window(center=-600, width=1500)
    Window(center=-600.0, width=1500.0, function='LINEAR')
    >>> Window.preset("lung") == Window(-600, 1500)
    True
    >>> Window(40, 400).apply([-200, 39.5, 300]).tolist()
    [0.0, 0.5, 1.0]
    """

    center: float
    width: float
    function: VoiFunction = "LINEAR"
    explanation: str = field(default="", compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "center", float(self.center))
        object.__setattr__(self, "width", float(self.width))
        if self.function not in _FUNCTIONS:
            raise PreprocessError(
                f"unknown VOI LUT function {self.function!r}; expected one of {', '.join(_FUNCTIONS)}"
                f"{did_you_mean(self.function, _FUNCTIONS)}"
            )
        least = "at least 1" if self.function == "LINEAR" else "above 0"
        wide_enough = self.width >= 1 if self.function == "LINEAR" else self.width > 0
        if not (math.isfinite(self.center) and math.isfinite(self.width) and wide_enough):
            raise PreprocessError(
                f"a {self.function} window needs a finite center and a width {least}; "
                f"found center {self.center:g}, width {self.width:g}"
            )

    @classmethod
    def preset(cls, name: str) -> Window:
        """
        Return a preset by name.

        Parameters
        ----------
        name : str
            Name of the preset, such as "lung".

        Returns
        -------
        Window

        Raises
        ------
        PreprocessError
            If there is no such preset; the message lists all.
        """
        try:
            center, width = PRESETS[name]
        except KeyError:
            known = ", ".join(PRESETS)
            raise also(PreprocessError, KeyError)(
                f"unknown window preset {name!r}; expected one of {known}{did_you_mean(name, PRESETS)}"
            ) from None
        return cls(center, width, explanation=name)

    @classmethod
    def from_range(cls, low: float, high: float) -> Window:
        """
        Return the window that maps `low` to black and `high` to white, exactly.

        An empty range, of a constant image, gets a width of 1.
        """
        width = high - low
        return cls((low + high) / 2, width if width > 0 else 1.0, "LINEAR_EXACT")

    def ramp(self) -> tuple[float, float]:
        """
        Return slope and intercept of the linear functions: ``clip(slope * x + intercept, 0, 1)``.

        Clipping the ramp gives the three branches of C.11.2.1.2.1 (LINEAR, width above 1) and of
        C.11.2.1.3.2 (LINEAR_EXACT). The step of a LINEAR window of width 1 and SIGMOID have no ramp.
        """
        if self.function == "SIGMOID" or self.is_step:
            raise PreprocessError(f"{self!r} has no linear ramp")
        if self.function == "LINEAR":
            slope = 1.0 / (self.width - 1.0)
            return slope, 0.5 - (self.center - 0.5) * slope
        slope = 1.0 / self.width
        return slope, 0.5 - self.center * slope

    @property
    def is_step(self) -> bool:
        """Whether the window is a threshold: LINEAR with a width of 1."""
        return self.function == "LINEAR" and self.width == 1

    @property
    def threshold(self) -> float:
        """Value at and below which a step window is black (C.11.2.1.2.1)."""
        return self.center - 0.5

    def apply(self, values: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """
        Map modality values to the range 0 to 1.

        Parameters
        ----------
        values : array_like
            Modality values, any shape.

        Returns
        -------
        numpy.ndarray
            float64, the shape of `values`.
        """
        x = np.asarray(values, dtype=np.float64)
        if self.is_step:
            return (x > self.threshold).astype(np.float64)
        if self.function == "SIGMOID":
            # beyond ±700 the exponential would overflow, and the result is 0 or 1 to the last bit
            exponent = np.clip(-4.0 * (x - self.center) / self.width, -700.0, 700.0)
            return np.asarray(1.0 / (1.0 + np.exp(exponent)))
        slope, intercept = self.ramp()
        return np.clip(x * slope + intercept, 0.0, 1.0)

    def to_dict(self) -> dict[str, Any]:
        """Return center, width and function as JSON-compatible values."""
        return {"center": self.center, "width": self.width, "function": self.function}


@dataclass(frozen=True, slots=True, eq=False)
class LookupTable:
    """
    A VOI LUT: a table from integer modality values to display values (DICOM PS3.3 C.11.2.1.1).

    Parameters
    ----------
    first : int
        Modality value of the first entry.
    entries : numpy.ndarray
        (n,) unsigned integers.
    bits : int
        Bits of each entry, from the LUT Descriptor.
    explanation : str
        LUT Explanation (0028,3003).

    Examples
    --------
    >>> table = LookupTable(first=10, entries=np.array([0, 64, 255]), bits=8)
    >>> table.apply([0, 10, 11, 99]).round(3).tolist()
    [0.0, 0.0, 0.251, 1.0]
    """

    first: int
    entries: npt.NDArray[np.integer[Any]]
    bits: int = 16
    explanation: str = ""

    def __post_init__(self) -> None:
        entries = np.array(self.entries)
        if entries.ndim != 1 or entries.size == 0 or not np.issubdtype(entries.dtype, np.integer):
            raise PreprocessError(
                f"a lookup table must be a row of integers; found {entries.dtype} of shape {entries.shape}"
            )
        entries.setflags(write=False)
        object.__setattr__(self, "entries", entries)

    @property
    def maximum(self) -> int:
        """Output value of white: by `bits`, or the largest entry if files declare too few bits."""
        return int(max((1 << self.bits) - 1, int(self.entries.max())))

    def normalized(self) -> npt.NDArray[np.float64]:
        """Return the entries scaled to 0..1, float64."""
        return self.entries.astype(np.float64) / self.maximum

    def apply(self, values: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """
        Map modality values of any shape to 0..1, float64; values outside the table take its end entries.

        Fractions are rounded down, as the table has integer inputs.
        """
        index = np.floor(np.asarray(values, dtype=np.float64)) - self.first
        table = self.normalized()
        return np.asarray(table[np.clip(index, 0, table.size - 1).astype(np.int64)])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, LookupTable):
            return NotImplemented
        same_table = np.array_equal(self.entries, other.entries)
        return (self.first, self.bits, self.explanation) == (
            other.first,
            other.bits,
            other.explanation,
        ) and same_table

    def __hash__(self) -> int:
        return hash((self.first, self.bits, self.explanation, self.entries.tobytes()))


Voi: TypeAlias = Window | LookupTable
