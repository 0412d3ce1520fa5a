"""
How often 95 % intervals contain the true value if patients are few: the worst of several simulated designs.

``python -m benchmarks.simulations.interval_coverage`` prints the table of
``medimg/metrics/interval_coverage.py``. Scores are normal, with a part that the images of a patient share.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from itertools import product
from statistics import NormalDist
from typing import TYPE_CHECKING, Final

import numpy as np

from medimg.metrics.classification import Support
from medimg.metrics.interval_coverage import METRICS
from medimg.metrics.intervals import estimate_metrics
from medimg.metrics.patient_counts import compute_metrics
from medimg.metrics.units import ScoredUnits

if TYPE_CHECKING:
    from collections.abc import Iterator

SMALLER: Final = (3, 5, 10, 20, 40)
_AREAS: Final = (0.7, 0.95)
_RATIOS: Final = (1, 4)
_IMAGES: Final = (1, 5)
_CLASSES: Final = ("well", "ill")
_TRUTH_PATIENTS: Final = 20_000


@dataclass(frozen=True)
class Design:
    """A study: ill patients, well ones for each of them, images of a patient, and the true AUROC."""

    ill: int
    ratio: int
    images: int
    area: float

    def draw(self, generator: np.random.Generator, ill: int) -> ScoredUnits:
        """Draw so many ill patients; their images share 64 % of the variance of the scores."""
        n = ill * (1 + self.ratio)
        patient = np.repeat(np.arange(n), self.images)
        positive = patient < ill
        distance = NormalDist().inv_cdf(self.area) * np.sqrt(2)
        noise = generator.normal(scale=0.8, size=n)[patient] + generator.normal(scale=0.6, size=len(patient))
        score = distance * (positive - 0.5) + noise
        p = 1 / (1 + self.ratio * np.exp(-distance * score))
        proba = np.column_stack([1 - p, p])
        # the threshold is the prevalence: both classes are predicted
        called = p > 1 / (1 + self.ratio)
        return ScoredUnits(
            truth=np.column_stack([~positive, positive]),
            predicted=np.column_stack([~called, called]),
            probabilities=proba,
            patient=patient,
            item_unit=np.arange(len(patient)),
            item_probabilities=proba,
            patient_names=tuple(map(str, range(n))),
        )


def simulate(design: Design, n_studies: int, n_resamples: int, seed: int) -> dict[str, float]:
    """Return the share of the intervals that are given which contain the truth, by metric."""
    generator = np.random.default_rng(seed)
    many = design.draw(generator, _TRUTH_PATIENTS // (1 + design.ratio))
    support = Support.count(many.truth, "multiclass", _CLASSES)
    truth = compute_metrics(many.truth, many.predicted, many.probabilities, support)
    held: dict[str, list[bool]] = {name: [] for name in METRICS}
    for study in range(n_studies):
        units = design.draw(generator, design.ill)
        support = Support.count(units.truth, "multiclass", _CLASSES)
        found = estimate_metrics(units, support, ci=0.95, n_resamples=n_resamples, seed=study)
        for name, results in held.items():
            if not np.isnan(found[name].low):
                results.append(found[name].low <= truth[name] <= found[name].high)
    return {name: float(np.mean(results)) for name, results in held.items()}


def find_worst(n_studies: int, n_resamples: int) -> Iterator[tuple[int, dict[str, float]]]:
    """Yield the lowest share of all designs, by metric, for each size of the smaller class."""
    for ill in SMALLER:
        designs = [Design(ill, *rest) for rest in product(_RATIOS, _IMAGES, _AREAS)]
        shares = [simulate(design, n_studies, n_resamples, seed) for seed, design in enumerate(designs)]
        yield ill, {name: min(share[name] for share in shares) for name in METRICS}


if __name__ == "__main__":
    studies, resamples = (int(value) for value in sys.argv[1:3]) if len(sys.argv) > 2 else (200, 300)
    for smaller, worst in find_worst(studies, resamples):
        print(f"    {smaller}:", "(" + ", ".join(f"{worst[name]:.2f}" for name in METRICS) + "),", flush=True)
