"""Synthetic chest X-rays as arrays."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medimg.errors import DatasetError
from medimg.phantom._projection import project_attenuation
from medimg.phantom._shapes import Array
from medimg.phantom.lesions import Lesion, check_classes, plan_lesions
from medimg.phantom.patient import Habitus, Patient
from medimg.phantom.scanner import XRAY_SCANNERS, XrayScanner, find_xray_scanner

__all__ = ["PhantomXray", "chest_xray"]


@dataclass(frozen=True)
class PhantomXray:
    """
    A synthetic frontal chest X-ray.

    Parameters
    ----------
    seed : int
        Seed of the patient.
    label : str
        Class of the patient.
    scanner : XrayScanner
        X-ray unit.
    view : str
        "PA" or "AP".
    array : numpy.ndarray
        (H, W) float32, read-only: the processed image, 0 to 1, bright where the body attenuates strongly;
        rows run from head to feet, columns from the patient's right to left.
    lesion_mask : numpy.ndarray
        (H, W) bool, read-only: pixels that lesions project to.
    spacing : tuple of 2 floats
        Pixel size in mm between rows and columns, at the detector.
    window : tuple of 2 floats
        Values of `array` to display as black and white.
    lesions : tuple of Lesion
        Lesions of the patient.
    """

    seed: int
    label: str
    scanner: XrayScanner
    view: str
    array: NDArray[np.float32] = field(repr=False)
    lesion_mask: NDArray[np.bool_] = field(repr=False)
    spacing: tuple[float, float]
    window: tuple[float, float]
    lesions: tuple[Lesion, ...] = field(repr=False)


def chest_xray(
    seed: int = 0,
    *,
    label: str = "normal",
    scanner: str | XrayScanner = XRAY_SCANNERS[0],
    size: tuple[int, int] = (512, 448),
    habitus: Habitus | None = None,
    exposure: int = 0,
) -> PhantomXray:
    """
    Make a synthetic chest X-ray.

    It is a projection of the chest that :func:`chest_ct` images for the same seed and label.

    Parameters
    ----------
    seed : int
        Seed of the patient, 0 or more.
    label : str
        "normal", "nodule", "ground_glass" or "consolidation".
    scanner : str or XrayScanner
        One of `XRAY_SCANNERS`, its name, or a custom unit.
    size : tuple of 2 ints
        Rows and columns.
    habitus : Habitus, optional
        Body size and lung density; drawn from `seed` by default.
    exposure : int
        Index of the image among several of the same patient; position, exposure and noise depend on it.

    Returns
    -------
    PhantomXray
        Arrays (H, W) of shape `size`.

    Raises
    ------
    DatasetError
        If the class or unit is unknown, a number negative, or the size not positive.

    Examples
    --------
    >>> xray = chest_xray(3, scanner="plate-10", size=(64, 56))
    >>> xray.array.shape, xray.view, bool(xray.lesion_mask.any())
    ((64, 56), 'AP', False)
    """
    check_classes((label,))
    unit = find_xray_scanner(scanner) if isinstance(scanner, str) else scanner
    if min(seed, exposure) < 0 or min(size) < 32:
        raise DatasetError(
            f"seed {seed}, exposure {exposure}, size {size}: seed and exposure must not be negative, "
            "with at least 32 rows and columns; change the one that is out of range"
        )
    patient = Patient.draw(seed, habitus)
    lesions = plan_lesions(patient, label, (patient.dome - 5, patient.apex - 26))
    rng = np.random.default_rng([seed, 5, exposure])
    view = unit.view if unit.view != "both" else ("PA", "AP")[int(rng.integers(2))]
    pixel = unit.field_of_view / size[0]
    magnification = 1.16 if view == "AP" else 1.05
    integrals, mask = project_attenuation(patient, lesions, size, pixel / magnification)
    array, window = _process_image(integrals, unit, rng)
    for result in (array, mask):
        result.setflags(write=False)
    return PhantomXray(seed, label, unit, view, array, mask, (pixel, pixel), window, lesions)


def _process_image(
    integrals: Array, unit: XrayScanner, rng: np.random.Generator
) -> tuple[Array, tuple[float, float]]:
    """Add blur, quantum noise and exposure, and choose the window from the histogram."""
    image = ndimage.gaussian_filter(integrals, unit.blur, truncate=3)
    noise = rng.standard_normal(image.shape, dtype=np.float32) * (unit.noise * np.exp(image / 2 - 0.7))
    gain, offset = float(rng.uniform(0.115, 0.145)), float(rng.uniform(0.04, 0.1))
    array = np.clip((image + noise) * gain + offset, 0, 1).astype(np.float32)
    low, high = (float(v) for v in np.quantile(array[array > offset + gain * 0.6], [0.005, 0.93]))
    return array, (round(low, 4), round(high + 0.03, 4))
