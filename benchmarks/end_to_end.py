"""
Fine-tuning against a probe, patient-wise: ``python -m benchmarks.end_to_end``.

SqueezeNet with ImageNet weights on chest radiographs of 1,364 patients. In each of five folds a logistic
regression is fitted on embeddings, and all of the network is fine-tuned from there; both are scored on the
patients of the fold. A tenth of the training patients choose the best epoch.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import medimg
from benchmarks.probes import dataset

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

__all__ = ["folds", "main"]


def folds(data: medimg.ImageDataset) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yield items to train on and to score on, five times, by patient and stratified."""
    from sklearn.model_selection import StratifiedGroupKFold

    cut = StratifiedGroupKFold(5, shuffle=True, random_state=0)
    yield from cut.split(np.zeros(len(data)), data.labels, groups=data.patients)


def main(arguments: Sequence[str] | None = None) -> None:
    """Score the folds that are asked for, and print a line for each."""
    from sklearn.metrics import roc_auc_score

    parser = argparse.ArgumentParser(prog="python -m benchmarks.end_to_end", description=__doc__)
    parser.add_argument("--data", type=Path, default=os.environ.get("MEDIMG_TEST_DATA"))
    parser.add_argument("--folds", default="0,1,2,3,4", help="which, from 0")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--lr", type=float, default=2e-4)
    options = parser.parse_args(arguments)
    if options.data is None:
        parser.error("--data, or the variable MEDIMG_TEST_DATA, names the folder of the test data")
    weights = next((Path(options.data) / "weights" / "squeezenet1_1").glob("*.pth"))
    data = dataset(Path(options.data))
    wanted = [int(n) for n in options.folds.split(",")]
    for number, (rest, scored) in enumerate(folds(data)):
        if number not in wanted:
            continue
        test = data.subset(scored)
        train, val = medimg.split(data.subset(rest), fractions=(0.9, 0.1), seed=0)
        model = medimg.TransferClassifier(
            "squeezenet1_1", classes=data.classes, weights=weights, preprocess=data.preprocess
        )
        began = time.perf_counter()
        medimg.fit_head(model, train)
        probe = roc_auc_score(test.labels, model.predict_proba(test)[:, 1])
        between = time.perf_counter()
        result = medimg.fine_tune(
            model,
            train,
            val,
            head_epochs=0,
            epochs=options.epochs,
            lr=options.lr,
            backbone_lr_scale=1.0,
            progress=False,
        )
        tuned = roc_auc_score(test.labels, model.predict_proba(test)[:, 1])
        print(
            f"fold {number}: {len(train)} + {len(val)} items, scored on {len(test)}: probe {probe:.4f} "
            f"({between - began:.0f} s), end to end {tuned:.4f} ({result.seconds:.0f} s, best epoch "
            f"{result.best_epoch} of {len(result.history)})",
            flush=True,
        )


if __name__ == "__main__":
    main()
