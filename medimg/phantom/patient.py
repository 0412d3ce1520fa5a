"""The patients: a few dozen numbers from which all of the anatomy follows."""

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from medimg.errors import DatasetError

__all__ = ["Habitus", "Patient"]


@dataclass(frozen=True)
class Habitus:
    """
    Where a patient stands in the population.

    A data set gives each of its classes the same habitus, so that body size and lung density, which move
    the mean gray level far more than a lesion does, can't tell the classes apart.

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
            raise DatasetError(
                f"size {self.size} and density {self.density} are no quantiles; give values from 0 to 1"
            )


@dataclass(frozen=True)
class Patient:
    """
    The measures of one chest, in mm and HU, about an origin in the middle of it (axes LPS).

    Parameters
    ----------
    seed : int
        What the patient was drawn from; the vessel tree follows from it too.
    half_width, half_depth : float
        Half axes of the thoracic cavity.
    apex, dome : float
        z of the top of the lungs and of the right dome of the diaphragm.
    fat, muscle : float
        Thickness of the subcutaneous fat and of the muscle over the ribs.
    lung_hu, gradient, dependent : float
        Mean of the lung parenchyma, its rise from front to back, and the subpleural haze at the back.
    soft_hu, bone_hu : float
        Muscle and trabecular bone.
    heart : float
        Size of the heart, 1 being average.
    shift : float
        How far the spine curves to the left.
    rib_pitch, rib_phase : float
        Distance of the ribs along z, and where they start.
    scan_center : tuple of 3 floats
        LPS position of the origin in the coordinates of the scanner.
    """

    seed: int
    half_width: float
    half_depth: float
    apex: float
    dome: float
    fat: float
    muscle: float
    lung_hu: float
    gradient: float
    dependent: float
    soft_hu: float
    bone_hu: float
    heart: float
    shift: float
    rib_pitch: float
    rib_phase: float
    scan_center: tuple[float, float, float]

    @classmethod
    def draw(cls, seed: int, habitus: Habitus | None = None) -> "Patient":
        """
        Draw a patient.

        Parameters
        ----------
        seed : int
            Non-negative; the same seed and habitus give the same patient.
        habitus : Habitus, optional
            Body size and lung density; None draws them too.
        """
        rng = np.random.default_rng([seed, 1])
        size, density = rng.uniform(size=2)
        if habitus is not None:
            size, density = habitus.size, habitus.density
        big, dense = _normal(size), _normal(density)

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


def _normal(quantile: float) -> float:
    """Standard normal value of a quantile, held within two standard deviations."""
    return float(np.clip(NormalDist().inv_cdf(min(max(quantile, 0.01), 0.99)), -2, 2))
