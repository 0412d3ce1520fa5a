"""Gains over training without adaptation, paired by seed, with intervals; choices between methods."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy import stats

from benchmarks.adaptation.methods import BASELINES, METHODS, VARIANTS
from benchmarks.adaptation.runs import Key, Run
from medimg.training.adaptation.choose_adaptation import choose

__all__ = [
    "CRITERIA",
    "Choice",
    "Gain",
    "compute_choices",
    "compute_gains",
    "current_runs",
    "paired_interval",
]

#: Methods between which ``adapt="auto"`` chooses by default, of a network without batch normalization.
CANDIDATES: Final = ("source only", "CORAL", "MMD", "DANN", 'MultiSource, "m3sda"')
#: Rules for a choice; "oracle" knows the labels of the target.
CRITERIA: Final = ("auto", "deep embedded risk", "A-distance", "oracle")


@dataclass(frozen=True, slots=True)
class Gain:
    """Mean AUROC of a method on one shift, and its mean gain with the interval of 95 %."""

    method: str
    seeds: int
    target: float
    source: float
    gain: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """What the interval says."""
        if np.isnan(self.low):
            return "too few seeds"
        if self.low > 0:
            return "gain"
        return "loss" if self.high < 0 else "not firm"


@dataclass(frozen=True, slots=True)
class Choice:
    """How well a rule chooses: mean gain, and how often it is better, or worse, than no adaptation."""

    criterion: str
    trials: int
    gain: float
    better: int
    worse: int


def paired_interval(differences: Sequence[float]) -> tuple[float, float]:
    """
    Return the interval of 95 % of the mean, by Student's t; NaN for fewer than two differences.

    Examples
    --------
    >>> low, high = paired_interval([0.0, 2.0])
    >>> round(low, 2), round(high, 2)
    (-11.71, 13.71)
    """
    values = np.asarray(differences, np.float64)
    if len(values) < 2:
        return float("nan"), float("nan")
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean() - half), float(values.mean() + half)


def current_runs(runs: Sequence[Run], shift: str, *, tuning: bool = False) -> dict[tuple[str, int], Run]:
    """Return the runs of a shift by method and seed, with the settings that the methods have now."""
    methods = METHODS | VARIANTS
    return {
        (key.method, key.seed): run
        for run in runs
        if (key := run.key).shift == shift
        and key.tuning == tuning
        and key.method in methods
        and key == Key.make(shift, key.method, methods[key.method], key.seed, tuning=tuning)
    }


def compute_gains(found: dict[tuple[str, int], Run]) -> list[Gain]:
    """Return a row for each method that has runs, in the order of the methods."""
    rows = []
    for name, method in (METHODS | VARIANTS).items():
        base = BASELINES[method.backbone]
        seeds = sorted(seed for other, seed in found if other == name and (base, seed) in found)
        if not seeds:
            continue
        own = [found[name, seed] for seed in seeds]
        differences = [run.target - found[base, seed].target for run, seed in zip(own, seeds, strict=True)]
        target, source = (
            float(np.mean([getattr(run, part) for run in own])) for part in ("target", "source")
        )
        low, high = paired_interval(differences)
        rows.append(Gain(name, len(seeds), target, source, float(np.mean(differences)), low, high))
    return rows


def compute_choices(shifts: Sequence[dict[tuple[str, int], Run]]) -> list[Choice]:
    """Return how well each rule chooses between the candidates, of all shifts and seeds that have them."""
    gains: dict[str, list[float]] = defaultdict(list)
    for found in shifts:
        names = [name for name in CANDIDATES if any(other == name for other, _ in found)]
        for seed in sorted({seed for _, seed in found}):
            runs = [found[name, seed] for name in names if (name, seed) in found]
            if len(runs) < max(len(names), 2):
                continue
            for criterion in CRITERIA:
                gains[criterion].append(_choose(runs, criterion).target - runs[0].target)
    return [
        Choice(name, len(all_), float(np.mean(all_)), sum(g > 0 for g in all_), sum(g < 0 for g in all_))
        for name, all_ in gains.items()
    ]


def _choose(runs: Sequence[Run], criterion: str) -> Run:
    """Return the run that a rule chooses; the first one is without adaptation."""
    if criterion == "auto":
        return runs[choose([{"val_auroc": r.val, "information": r.information} for r in runs], margin=0.02)]
    if criterion == "oracle":
        return max(runs, key=lambda run: run.target)
    return min(runs, key=lambda run: run.risk if criterion == "deep embedded risk" else run.distance)
