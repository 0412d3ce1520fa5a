"""
Heads on a frozen backbone, compared with a plain training loop: ``python -m benchmarks.heads``.

256 chest radiographs, 20 epochs of the head. The plain loop (torchvision's network, weights frozen, a new
last layer, Adam on it at 1e-3, every image through the network in every epoch) is given tensors in memory;
medimg is given its dataset with the images in memory, which it still normalizes. Building models and scoring
are not timed. The speed is that of ResNet-18 with random
weights, which take as long as any; the scores are SqueezeNet's with real ones, on patients that were not
trained on.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models import get_model

import medimg
from benchmarks.environment import made_with
from benchmarks.pages import FEATURES, list_table, write_part

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["EPOCHS", "IMAGES", "main", "read", "textbook"]

IMAGES: Final = 256
EPOCHS: Final = 20
GOAL: Final = 15.0


def textbook(weights: Path, name: str, images: Tensor, labels: Tensor) -> Callable[[int], nn.Module]:
    """Return a plain loop over the given number of epochs, with its network already built."""
    network: Any = get_model(name, weights=None)
    network.load_state_dict(torch.load(weights, weights_only=True))
    network.requires_grad_(False)
    head: nn.Module
    if name.startswith("squeezenet"):
        head = nn.Conv2d(512, 2, kernel_size=1)
        network.classifier[1] = head
    else:
        head = nn.Linear(network.fc.in_features, 2)
        network.fc = head
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-3)
    loss_of = nn.CrossEntropyLoss()
    loader = DataLoader(
        TensorDataset(images, labels), 32, shuffle=True, generator=torch.Generator().manual_seed(0)
    )

    def run(epochs: int) -> nn.Module:
        result: nn.Module = network.train()
        for _ in range(epochs):
            for x, y in loader:
                optimizer.zero_grad()
                loss = loss_of(network(x), y)
                loss.backward()
                optimizer.step()
        return result.eval()

    return run


def read(root: Path, counts: Sequence[int], size: int) -> list[medimg.ImageDataset]:
    """Return a training and a test part of so many images, of different patients, pictures in memory."""
    data = medimg.ImageDataset.from_csv(
        root / "labels.csv",
        path="file",
        label="label",
        patient="patient_id",
        preprocess=medimg.Preprocess(size=size),
        progress=False,
    )
    rng = np.random.default_rng(0)
    parts = medimg.split(data, fractions=(0.5, 0.5), seed=0)
    found = []
    for part, count in zip(parts, counts, strict=True):
        chosen = part.subset(np.sort(rng.permutation(len(part))[:count]))
        for n in range(len(chosen)):
            chosen[n]
        found.append(chosen)
    return found


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Return how many seconds some work takes, and what it gives."""
    began = time.perf_counter()
    result = work()
    return time.perf_counter() - began, result


def classifier(name: str, weights: Path, data: medimg.ImageDataset) -> medimg.TransferClassifier:
    """Return a frozen classifier with a new head."""
    torch.manual_seed(0)
    return medimg.TransferClassifier(
        name, classes=data.classes, weights=weights, preprocess=data.preprocess
    ).freeze()


def speeds(
    name: str, weights: Path, train: medimg.ImageDataset, rounds: int, epochs: int
) -> dict[str, float]:
    """Return the shortest time of each method for 20 epochs; the plain loop's is extrapolated."""
    images, labels = torch.stack([train[n][0] for n in range(len(train))]), torch.from_numpy(train.labels)
    took: dict[str, list[float]] = {"textbook": [], "fine_tune": [], "fit_head": []}
    for _ in range(rounds):
        run = textbook(weights, name, images, labels)
        took["textbook"].append(timed(lambda: run(epochs))[0] * EPOCHS / epochs)  # noqa: B023  # called at once
        for way in (fine_tuned, fitted):
            model = classifier(name, weights, train)
            took[_NAMES[way]].append(timed(lambda: way(model, train))[0])  # noqa: B023  # called at once
    return {way: min(seconds) for way, seconds in took.items()}


def fine_tuned(model: medimg.TransferClassifier, train: medimg.ImageDataset) -> None:
    """Train the head for 20 epochs, at a constant learning rate, like the plain loop."""
    medimg.fine_tune(
        model, train, head_epochs=EPOCHS, epochs=0, augment=None, schedule="constant", progress=False
    )


def fitted(model: medimg.TransferClassifier, train: medimg.ImageDataset) -> None:
    """Fit the head by logistic regression."""
    medimg.fit_head(model, train)


_NAMES: Final = {fine_tuned: "fine_tune", fitted: "fit_head"}


def scores(weights: Path, train: medimg.ImageDataset, test: medimg.ImageDataset) -> dict[str, float]:
    """Return the AUROC of each way on other patients."""
    from sklearn.metrics import roc_auc_score

    name = "squeezenet1_1"
    images, labels = torch.stack([train[n][0] for n in range(len(train))]), torch.from_numpy(train.labels)
    torch.manual_seed(0)
    network = textbook(weights, name, images, labels)(EPOCHS)
    held_out = torch.stack([test[n][0] for n in range(len(test))])
    with torch.no_grad():
        logits = torch.cat([network(part) for part in held_out.split(32)])
    found = {"textbook": float(roc_auc_score(test.labels, logits.softmax(dim=1)[:, 1]))}
    for way in (fine_tuned, fitted):
        model = classifier(name, weights, train)
        way(model, train)
        found[_NAMES[way]] = float(roc_auc_score(test.labels, model.predict_proba(test)[:, 1]))
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print a table, and write it to the documentation if asked."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.heads", description=__doc__)
    parser.add_argument("--data", type=Path, default=os.environ.get("MEDIMG_TEST_DATA"))
    parser.add_argument("--backbone", default="resnet18", choices=("resnet18", "resnet50"))
    parser.add_argument("--rounds", type=int, default=2, help="the shortest time counts")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="of the plain loop; times are for 20")
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--write", action="store_true", help="write docs/features.rst")
    options = parser.parse_args(arguments)
    if options.data is None:
        parser.error("--data, or the variable MEDIMG_TEST_DATA, names the folder of the test data")
    root = Path(options.data)
    train, test = read(
        root / "cls" / "kermany_cxr224_dev", (options.images, 2 * options.images), options.size
    )
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / f"{options.backbone}.pth"
        torch.manual_seed(0)
        torch.save(get_model(options.backbone, weights=None).state_dict(), weights)
        took = speeds(options.backbone, weights, train, options.rounds, options.epochs)
    print({way: f"{seconds:.1f} s" for way, seconds in took.items()}, flush=True)
    found = scores(next((root / "weights" / "squeezenet1_1").glob("*.pth")), train, test)
    titles = {
        "textbook": "plain training loop: every image through the network in every epoch",
        "fine_tune": f'``fine_tune(head_epochs={EPOCHS}, epochs=0, augment=None, schedule="constant")``',
        "fit_head": "``fit_head``",
    }
    head = [
        f"{EPOCHS} epochs of the head, {options.images} images",
        f"speed-up over the plain loop, {options.backbone}",
        "AUROC on other patients, squeezenet1_1",
    ]
    rows = [[titles[way], f"{took['textbook'] / took[way]:.1f}", f"{found[way]:.4f}"] for way in titles]
    made = made_with()
    text = (
        f"{list_table([head, *rows])}\n\nImages of {options.size} by {options.size} pixels, best of "
        f"{options.rounds} rounds, {torch.get_num_threads()} threads; {made['machine']}, {made['date']}."
    )
    print(text)
    if options.write:
        write_part(FEATURES, "heads", text)


if __name__ == "__main__":
    main()
