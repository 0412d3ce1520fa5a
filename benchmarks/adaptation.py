"""
Adaptation to another scanner, shown on real chest radiographs: ``python -m benchmarks.adaptation``.

Source and target are different patients. The source's pictures are as they are, or come from one of two mild
simulated scanners; the target's from one that changes gamma, blurs, adds noise and inverts. All methods train
with the same settings, those that ``fine_tune`` has by default, and the same seeds; none sees a label of the
target.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import medimg
from medimg import adapt

__all__ = ["SCANNERS", "SHOWN", "Scanned", "Scanner", "main"]

SIZE: Final = 64


@dataclass(frozen=True, slots=True)
class Scanner:
    """
    A simulated scanner.

    Attributes
    ----------
    gamma : float
        Exponent of the brightness.
    blur : float
        Standard deviation of a Gaussian, in pixels.
    noise : float
        Standard deviation, where white is 1.
    inverted : bool
        Whether bright is dark.
    """

    gamma: float = 1.0
    blur: float = 0.0
    noise: float = 0.0
    inverted: bool = False

    def __call__(self, pictures: Tensor, generator: torch.Generator) -> Tensor:
        """Return (n, H, W) pictures, 0 to 1, as this scanner makes them."""
        from torchvision.transforms.v2.functional import gaussian_blur

        found = pictures.clamp(0, 1) ** self.gamma
        if self.blur:
            kernel = 2 * int(np.ceil(3 * self.blur)) + 1
            found = gaussian_blur(found[:, None], [kernel, kernel], [self.blur, self.blur])[:, 0]
        if self.inverted:
            found = 1 - found
        return (found + self.noise * torch.randn(found.shape, generator=generator)).clamp(0, 1)


#: Three sources, and the target.
SCANNERS: Final = {
    "plain": Scanner(),
    "soft": Scanner(gamma=1.2, blur=0.6),
    "hard": Scanner(gamma=0.85, noise=0.03),
    "target": Scanner(gamma=0.6, blur=1.0, noise=0.06, inverted=True),
}
#: Methods of the short run.
SHOWN: Final = ("source only", "CORAL", "DANN", "MultiSource m3sda")


class Scanned:
    """Pictures in memory with what ``fine_tune`` asks of a data set, through scanners in turn."""

    task, unit = "multiclass", "slice"

    def __init__(
        self, data: medimg.ImageDataset, pictures: Tensor, scanners: tuple[str, ...], seed: int
    ) -> None:
        self.classes, self.preprocess = data.classes, data.preprocess
        self.labels: NDArray[Any] = data.labels
        self.patients = data.patients
        self.domains = tuple(scanners[n % len(scanners)] for n in range(len(data)))
        generator = torch.Generator().manual_seed(seed)
        made = torch.empty_like(pictures)
        for name in scanners:
            where = torch.tensor([domain == name for domain in self.domains])
            made[where] = SCANNERS[name](pictures[where], generator)
        self.images = self.preprocess.normalize(made[:, None])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], int(self.labels[index])


def read(root: Path, tuning: bool) -> list[tuple[medimg.ImageDataset, Tensor]]:
    """
    Return source, target to adapt to, and target to score on: different patients.

    The defaults of the methods were chosen with other seeds, and by scores on patients of their own
    (`tuning`).
    """
    data = medimg.ImageDataset.from_csv(
        root / "labels.csv",
        path="file",
        label="label",
        patient="patient_id",
        preprocess=medimg.Preprocess(size=SIZE),
        progress=False,
    )
    source, target, chosen, last = medimg.split(data, fractions=(0.2, 0.2, 0.2, 0.4), seed=0)
    rng = np.random.default_rng(0)
    found = []
    for part, count in ((source, 320), (target, 320), (chosen if tuning else last, 600)):
        some = part.subset(np.sort(rng.permutation(len(part))[:count]))
        found.append((some, torch.stack([some.planes(n)[0] for n in range(len(some))])))
    return found


def methods(target: Any) -> dict[str, Callable[[], Any]]:
    """Return what is compared, by name."""
    return {
        "source only": lambda: None,
        "CORAL": lambda: adapt.CORAL(target),
        "MMD": lambda: adapt.MMD(target),
        "DANN": lambda: adapt.DANN(target),
        "CDAN": lambda: adapt.CDAN(target),
        "MultiSource m3sda": lambda: adapt.MultiSource(target, "m3sda", domain="column"),
        "MultiSource mdan": lambda: adapt.MultiSource(target, "mdan", domain="column"),
    }


def auroc(model: medimg.TransferClassifier, data: Any) -> float:
    """Return the AUROC of the second class."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(data.labels, model.predict_proba(data)[:, 1]))


def trained(weights: Path, train: Any, method: Any, seed: int, epochs: int) -> medimg.TransferClassifier:
    """Return a model fine-tuned with the settings that all methods share."""
    torch.manual_seed(seed)
    model = medimg.TransferClassifier(
        "squeezenet1_1", classes=train.classes, weights=weights, preprocess=train.preprocess
    )
    medimg.fine_tune(
        model,
        train,
        epochs=epochs,
        adapt=method,
        seed=seed,
        progress=False,
        devices=1,
        trainer_kwargs={"accelerator": "cpu"},
    )
    return model


def main() -> None:
    """Train and score, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.adaptation", description=__doc__)
    parser.add_argument("--data", type=Path, default=os.environ.get("MEDIMG_TEST_DATA"))
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--all", action="store_true", help="MMD, CDAN and MDAN too")
    parser.add_argument(
        "--tuning", action="store_true", help="the patients and seeds that settings are chosen by"
    )
    options = parser.parse_args()
    if options.data is None:
        parser.error(
            "--data, or the environment variable MEDIMG_TEST_DATA, names the folder of the test data"
        )
    torch.set_num_threads(1)  # the same sums on any machine
    root = Path(options.data)
    weights = next((root / "weights" / "squeezenet1_1").glob("*.pth"))
    source, unlabeled, test = read(root / "cls" / "kermany_cxr224_dev", options.tuning)
    train = Scanned(*source, ("plain", "soft", "hard"), 1)
    target, scored = Scanned(*unlabeled, ("target",), 2), Scanned(*test, ("target",), 3)
    at_home = Scanned(*test, ("plain",), 4)
    seeds = range(100, 103) if options.tuning else range(3)
    print("| method | AUROC, target | each seed | AUROC, source | seconds |\n|---|---|---|---|---|")
    for name, make in methods(target).items():
        if name not in SHOWN and not options.all:
            continue
        started = time.perf_counter()
        models = [trained(weights, train, make(), seed, options.epochs) for seed in seeds]
        seconds = (time.perf_counter() - started) / len(seeds)
        scores = [auroc(model, scored) for model in models]
        home = np.mean([auroc(model, at_home) for model in models])
        each = ", ".join(f"{score:.3f}" for score in scores)
        print(f"| {name} | {np.mean(scores):.3f} | {each} | {home:.3f} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
