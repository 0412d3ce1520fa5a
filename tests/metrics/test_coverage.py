"""Intervals hold the truth about as often as they say; docs/evaluation.rst has the table of the long run."""

import os

import pytest

from tests.metrics.coverage import Design, coverage


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("MEDIMG_SLOW"), reason="a long simulation: set MEDIMG_SLOW=1")
def test_95_percent_intervals_hold_the_truth_in_93_to_97_percent() -> None:
    found = coverage(Design(), 400, n_resamples=500)
    for name in ("accuracy", "sensitivity", "specificity", "auroc", "auprc", "f1[ill]", "mcc", "brier"):
        # 400 studies tell it to about one percent
        assert 0.92 <= found[name] <= 0.98, (name, found[name])
    assert found["ece"] > 0.8


def test_the_simulation_can_tell() -> None:
    """Slices taken for patients give intervals that hold the truth far too seldom."""
    naive = coverage(Design(n_patients=60), 40, n_resamples=200, n_true=5000, slices_are_patients=True)
    sound = coverage(Design(n_patients=60), 40, n_resamples=200, n_true=5000)
    assert naive["auroc"] < 0.75
    assert sound["auroc"] > 0.85
