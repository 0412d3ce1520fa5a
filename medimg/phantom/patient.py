"""Patients: the parameters that determine the anatomy."""

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from medimg.errors import DatasetError

__all__ = ["Habitus", "Patient"]


@dataclass(frozen=True)
class Habitus:
    """
    Body size and lung density of a patient, as quantiles of the population.

    A dataset gives each of its classes the same habitus, so that body size and lung density, which affect the
    mean gray level far more than a lesion does, can't distinguish the classes.

    Parameters
    ----------
    size : float
        Quantile of body size, from 0 (slight) to 1 (heavy).
    density : float
        Quantile of lung density, from 0 (full inspiration) to 1 (shallow breath).

    Raises
    ------
    DatasetError
        If one is not between 0 and 1.
    """

    size: float
    density: float

    def __post_init__(self) -> None:
        if not (0 <= self.size <= 1 and 0 <= self.density <= 1):
            raise DatasetError(f"size {self.size} and density {self.density} must be quantiles from 0 to 1")


@dataclass(frozen=True)
class Patient:
    """The parameters of one chest, in mm and HU, about an origin in its middle (axes LPS)."""

    seed: int  # also of the vessel tree
    half_width: float  # half axes of the thoracic cavity
    half_depth: float
    apex: float  # z of the top of the lungs
    dome: float  # z of the right dome of the diaphragm
    fat: float  # thickness of the subcutaneous fat
    muscle: float  # thickness of the muscle over the ribs
    lung_hu: float  # mean of the lung parenchyma
    gradient: float  # its rise from front to back
    dependent: float  # subpleural haze at the back
    soft_hu: float  # muscle
    bone_hu: float  # trabecular bone
    heart: float  # size of the heart, 1 being average
    shift: float  # curvature of the spine to the left
    rib_pitch: float  # distance of the ribs along z
    rib_phase: float  # their offset along z
    scan_center: tuple[float, float, float]  # LPS position of the origin in the coordinates of the scanner

    @classmethod
    def draw(cls, seed: int, habitus: Habitus | None = None) -> "Patient":
        """Draw a patient; the same seed and habitus give the same patient."""
        rng = np.random.default_rng([seed, 1])
        size, density = rng.uniform(size=2)
        if habitus is not None:
            size, density = habitus.size, habitus.density
        big, dense = _invert_normal(size), _invert_normal(density)

        def around(mean: float, spread: float) -> float:
            return float(mean + spread * np.clip(rng.standard_normal(), -2, 2))

        return cls(
            seed=seed,
            half_width=around(131 + 5 * big, 2),
            half_depth=around(86 + 5 * big, 2),
            apex=around(108, 3),
            dome=around(-74 + 5 * dense, 3),
            fat=float(np.clip(around(15 + 7.5 * big, 1.5), 3, 40)),
            muscle=around(19 + 1.5 * big, 1),
            lung_hu=around(-852 + 26 * dense, 5),
            gradient=float(rng.uniform(15, 60)),
            dependent=float(rng.uniform(0, 120)),
            soft_hu=around(52, 4),
            bone_hu=around(175, 35),
            heart=around(1.0, 0.05),
            shift=around(0, 4),
            rib_pitch=around(27, 1),
            rib_phase=float(rng.uniform(0, 27)),
            scan_center=(around(0, 6), around(-150, 12), around(-420, 60)),
        )


def _invert_normal(quantile: float) -> float:
    """Return the standard normal value of a quantile, clipped at two standard deviations."""
    return float(np.clip(NormalDist().inv_cdf(min(max(quantile, 0.01), 0.99)), -2, 2))
