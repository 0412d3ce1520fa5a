"""
How often intervals hold the truth, by simulation; ``python -m tests.metrics.coverage`` prints the table.

Scores are normal, with a part that the images of a patient share: 100 patients with 10 slices each, half of
them ill. The truth is that of 80,000 patients, or as stated, drawn in the same way.
"""

from dataclasses import dataclass, replace

import numpy as np

from medimg.metrics.bootstrap import resample_metrics
from medimg.metrics.classification import Support, name_metrics
from medimg.metrics.intervals import compute_intervals, estimate_metrics
from medimg.metrics.patient_counts import PatientCounts, compute_metrics
from medimg.metrics.units import ScoredUnits

__all__ = ["NAMES", "Design", "coverage"]

NAMES = (
    "accuracy",
    "balanced_accuracy",
    "sensitivity",
    "specificity",
    "precision[ill]",
    "f1[ill]",
    "auroc",
    "auprc",
    "mcc",
    "kappa",
    "brier",
    "ece",
)
_CLASSES = ("well", "ill")


@dataclass(frozen=True)
class Design:
    """A study; a sharpness above 1 makes probabilities that are too sure."""

    n_patients: int = 100
    per_patient: int = 10
    sharpness: float = 1.0
    fixed_mix: bool = True

    def draw(self, generator: np.random.Generator, n_patients: int | None = None) -> ScoredUnits:
        """Draw patients: the shared part of the variance of their scores is 0.64, the other 0.36."""
        n = n_patients or self.n_patients
        n_ill = n // 2 if self.fixed_mix else int(generator.binomial(n, 0.5))
        patient = np.repeat(np.arange(n), self.per_patient)
        ill = patient < n_ill
        shared, own = (
            generator.normal(scale=0.8, size=n)[patient],
            generator.normal(scale=0.6, size=len(patient)),
        )
        score = 1.2 * (ill - 0.5) + shared + own
        p = 1 / (1 + np.exp(-1.2 * self.sharpness * score))
        probabilities = np.column_stack([1 - p, p])
        return ScoredUnits(
            truth=np.column_stack([~ill, ill]),
            predicted=np.column_stack([p <= 0.5, p > 0.5]),
            probabilities=probabilities,
            patient=patient,
            item_unit=np.arange(len(patient)),
            item_probabilities=probabilities,
            patient_names=tuple(map(str, range(n))),
        )


def coverage(
    design: Design,
    n_studies: int,
    *,
    n_resamples: int = 1000,
    seed: int = 0,
    n_true: int = 80_000,
    slices_are_patients: bool = False,
) -> dict[str, float]:
    """Return the share of studies whose 95 % interval holds the truth, by metric."""
    generator = np.random.default_rng(seed)
    many = design.draw(generator, n_true)
    truth = compute_metrics(many.truth, many.predicted, many.probabilities, _support(many))
    held = dict.fromkeys(NAMES, 0)
    for study in range(n_studies):
        units = design.draw(generator)
        if slices_are_patients:
            every = np.arange(len(units))
            units = replace(units, patient=every, patient_names=tuple(map(str, every)))
        support = _support(units)
        if design.per_patient == 1:
            found = estimate_metrics(units, support, ci=0.95, n_resamples=n_resamples, seed=study)
        else:
            # the same values as scikit-learn's, in less time
            values = name_metrics(
                PatientCounts.of(units, support).scores(np.ones((units.n_patients, 1))), support
            )
            samples = resample_metrics(units, support, n_resamples=n_resamples, seed=study)
            one = {name: float(value[0]) for name, value in values.items()}
            found = compute_intervals(one, samples, units, support, 0.95)
        for name in NAMES:
            held[name] += found[name].low <= truth[name] <= found[name].high
    return {name: n / n_studies for name, n in held.items()}


def _support(units: ScoredUnits) -> Support:
    return Support.count(units.truth, "multiclass", _CLASSES)


if __name__ == "__main__":
    designs = (
        Design(),
        Design(sharpness=2.0),
        Design(n_patients=400),
        Design(n_patients=30),
        Design(per_patient=1),
        Design(fixed_mix=False),
    )
    columns = [coverage(design, 1000) for design in designs]
    print(*designs, sep="\n")
    for metric in NAMES:
        print(f"{metric:<20}", *(f"{100 * column[metric]:6.1f}" for column in columns))
