"""
Make the figure of docs/saliency.rst from synthetic chest X-rays.

    python docs/make_saliency.py squeezenet1_1-b8a52dc0.pth

The argument is a file with weights of SqueezeNet 1.1, or DEFAULT to download them.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

import medimg

IMAGES = Path(__file__).parent / "images"
SHOWN = (1001, 1002, 1003, 1005)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("weights", nargs="?", default="DEFAULT")
    torch.manual_seed(0)
    model = train_classifier(parser.parse_args().weights)
    figure = Figure(figsize=(3 * len(SHOWN), 6.6), layout="constrained")
    grid = figure.subplots(2, len(SHOWN))
    for seed, (above, below) in zip(SHOWN, grid.T, strict=True):
        phantom, volume = make_image(seed)
        found = medimg.explain(model, volume, "consolidation")
        inside = found.heat[0][phantom.lesion_mask].sum() / found.heat.sum()
        above.imshow(found.overlay(alpha=0.0))
        above.contour(phantom.lesion_mask, levels=[0.5], colors="white", linewidths=0.7)
        above.set_title("consolidation (outline)", fontsize=10)
        below.imshow(found.overlay())
        below.set_title(f"probability {found.probability:.2f}, {inside:.0%} of the heat inside", fontsize=10)
        print(seed, found, f"{inside:.0%} inside, which is {phantom.lesion_mask.mean():.0%} of the image")
    for axes in grid.flat:
        axes.set_axis_off()
    IMAGES.mkdir(exist_ok=True)
    figure.savefig(IMAGES / "saliency.png", dpi=80, pil_kwargs={"optimize": True})


def train_classifier(weights: str) -> medimg.TransferClassifier:
    with tempfile.TemporaryDirectory() as folder:
        table = medimg.phantom.write_xray_dataset(
            Path(folder, "data"), patients=160, classes=("normal", "consolidation"), size=(256, 224)
        )
        data = medimg.ImageDataset.from_csv(table, path="file", patient="patient_id")
        model = medimg.TransferClassifier("squeezenet1_1", classes=data.classes, weights=weights)
        train, val = medimg.split(data.with_preprocess(model.preprocess), fractions=(0.8, 0.2))
        print(medimg.fine_tune(model, train, val, epochs=6))
    return model


def make_image(seed: int) -> tuple[medimg.phantom.PhantomXray, medimg.Volume]:
    phantom = medimg.phantom.chest_xray(seed, label="consolidation", size=(512, 448))
    identity = medimg.phantom.Identity.derive("documentation", seed)
    with tempfile.TemporaryDirectory() as folder:
        volume = medimg.read(medimg.phantom.write_xray_image(phantom, Path(folder), identity))
    assert volume.shape[2:] == phantom.lesion_mask.shape
    assert np.isfinite(volume.array).all()
    return phantom, volume


if __name__ == "__main__":
    main()
