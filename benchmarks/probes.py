"""
Heads on real embeddings, patient-wise: ``python -m benchmarks.probes``.

SqueezeNet's ImageNet weights on 2,547 chest radiographs of 1,364 patients, five folds: medimg's logistic
regression and neighbors, and the same regression by torchvision and scikit-learn alone, on the same folds.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision.models import get_model
from torchvision.transforms.v2 import functional

import medimg
from benchmarks.environment import made_with
from benchmarks.pages import FEATURES, list_table, write_part

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["by_hand", "dataset", "main", "plain_features"]


def dataset(root: Path, size: int = 224) -> medimg.ImageDataset:
    """Return all of the radiographs."""
    return medimg.ImageDataset.from_csv(
        root / "cls" / "kermany_cxr224_dev" / "labels.csv",
        path="file",
        label="label",
        patient="patient_id",
        preprocess=medimg.Preprocess(size=size),
        progress=False,
    )


def plain_features(files: Sequence[str], weights: Path, size: int = 224) -> NDArray[np.float32]:
    """Return what torchvision's SqueezeNet makes of pictures, averaged over positions: (n, 512)."""
    network: Any = get_model("squeezenet1_1", weights=None)
    network.load_state_dict(torch.load(weights, weights_only=True))
    body = network.features.eval()
    rows = []
    with torch.no_grad():
        for start in range(0, len(files), 32):
            some = [_picture(file, size) for file in files[start : start + 32]]
            rows.append(body(torch.stack(some)).mean(dim=(2, 3)).numpy())
    return np.concatenate(rows)


def _picture(file: str, size: int) -> torch.Tensor:
    with Image.open(file) as opened:
        picture = functional.to_image(opened.convert("RGB"))
    resized = functional.resize(picture, [size, size], antialias=True)
    scaled = functional.to_dtype(resized, torch.float32, scale=True)
    return functional.normalize(scaled, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


def by_hand(x: NDArray[Any], labels: NDArray[Any], patients: Sequence[str], C: float) -> float:
    """Return the AUROC of out-of-fold probabilities, by scikit-learn alone."""
    from sklearn import config_context
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    # importing other libraries may have turned routing on, with which groups are not taken
    with config_context(enable_metadata_routing=False):
        found = cross_val_predict(
            make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=5000)),
            x.astype(np.float64),
            labels,
            groups=patients,
            cv=StratifiedGroupKFold(5, shuffle=True, random_state=0),
            method="predict_proba",
        )
    return float(roc_auc_score(labels, found[:, 1]))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print a table, and write it to the documentation if asked."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.probes", description=__doc__)
    parser.add_argument("--data", type=Path, default=os.environ.get("MEDIMG_TEST_DATA"))
    parser.add_argument("--write", action="store_true", help="write docs/features.rst")
    options = parser.parse_args(arguments)
    if options.data is None:
        parser.error("--data, or the variable MEDIMG_TEST_DATA, names the folder of the test data")
    root = Path(options.data)
    weights = next((root / "weights" / "squeezenet1_1").glob("*.pth"))
    data = dataset(root)
    model = medimg.TransferClassifier(
        "squeezenet1_1", classes=data.classes, weights=weights, preprocess=data.preprocess
    )
    rows = [["Method", "AUROC", "95 % interval over patients"]]
    ways: dict[str, dict[str, Any]] = {
        "``cross_validate(balance=None, C=0.01)``": {"balance": None, "C": 0.01},
        "``cross_validate()``: C selected by inner folds": {},
        '``cross_validate(method="knn")``': {"method": "knn"},
    }
    with tempfile.TemporaryDirectory() as cache:
        began = time.perf_counter()
        medimg.embed(model, data, cache=cache)
        embedded = time.perf_counter() - began
        for title, chosen in ways.items():
            found = medimg.cross_validate(model, data, cache=cache, **chosen)
            score = found.metrics["auroc"]
            ends = f"{score.low:.4f} to {score.high:.4f}"
            rows.append([title, f"{score.value:.4f}", ends])
    began = time.perf_counter()
    x = plain_features(data.sources, weights)
    by_torchvision = time.perf_counter() - began
    hand = by_hand(x, data.labels, data.patients, 0.01)
    rows.append(["torchvision and scikit-learn by hand, C=0.01", f"{hand:.4f}", "none"])
    made = made_with()
    text = (
        f"{list_table(rows)}\n\nReading and embedding {len(data):,} images took {embedded:.0f} seconds, by "
        f"hand {by_torchvision:.0f}; {torch.get_num_threads()} threads, {made['machine']}, {made['date']}."
    )
    print(text)
    if options.write:
        write_part(FEATURES, "probes", text)


if __name__ == "__main__":
    main()
