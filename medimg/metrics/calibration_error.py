"""Expected calibration error (ECE) in bins of equal width (Naeini et al., AAAI 2015)."""

import numpy as np

from medimg.metrics._arrays import Floats, Integers

__all__ = ["N_BINS", "bin_probabilities", "expected_calibration_error"]

#: Bins of the expected calibration error.
N_BINS = 15


def bin_probabilities(probabilities: Floats, bins: int = N_BINS) -> Integers:
    """
    Return the bin of equal width of each probability; a bin includes its upper end, the first also 0.

    >>> bin_probabilities(np.array([0.0, 0.2, 0.21, 1.0]), 5)
    array([0, 0, 1, 4])
    """
    edges = np.linspace(0, 1, bins + 1)[1:-1]
    return np.searchsorted(edges, probabilities, side="left").astype(np.int64)


def expected_calibration_error(excess: Floats, total: Floats | Integers) -> Floats:
    """
    Return the ECE (...) of sums of truth minus probability in each bin (..., bins), of so many units (...).

    >>> expected_calibration_error(np.array([0.5, -0.5]), np.array(4))
    array(0.25)
    """
    return np.asarray(np.abs(excess).sum(axis=-1) / total)
