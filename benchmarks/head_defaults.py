"""
The default head, chosen by measurement: ``python -m benchmarks.head_defaults``.

Heads on frozen backbones: logistic regression with its penalty selected by two rules or fixed, and epochs of
AdamW at several rates and lengths, as the head phase of ``fine_tune`` trains. Tasks are made of real chest
radiographs (two pairs of classes, three classes, all patients or 100) and of synthetic ones. The heads are
scored on other patients, on the images of these patients as two simulated scanners make them, on patients
with higher numbers (in place of a later time), and on a scanner that was left out. The table has differences
from the regression with the lowest loss, with intervals over resampled patients.
"""

from __future__ import annotations

import argparse
import os
import re
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

import medimg
from benchmarks.adaptation.scanners import Scanner
from benchmarks.environment import made_with
from benchmarks.pages import FEATURES, list_table, write_part
from medimg.data.splits.kfold import assign_folds, split_by_fold
from medimg.training._logistic_regression import LinearProbe
from medimg.training.class_weights import class_weights
from medimg.training.linear_probe import LabeledEmbeddings, ProbeSearch
from medimg.training.optimization.lr_scheduler import make_schedule

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["Epochs", "Head", "main", "train_epochs"]

BACKBONES: Final = ("squeezenet1_1", "mobilenet_v2")
#: Simulated scanners, from none to one that differs much.
SCANNERS: Final = {
    "same": Scanner(),
    "other scanner, mild": Scanner(gamma=0.8, blur=1.0, noise=0.02),
    "other scanner, strong": Scanner(gamma=0.6, blur=1.5, noise=0.06),
}
LENGTHS: Final = (1, 3, 10, 20, 50)
RATES: Final = (1e-3, 3e-3, 1e-2)
STRENGTHS: Final = (0.001, 0.01, 0.1, 1.0)
REFERENCE: Final = "logistic, lowest loss"
FOLDS: Final = 5
FEW: Final = 100
RESAMPLES: Final = 500
BATCH: Final = 32
DECAY: Final = 0.01


@dataclass(frozen=True, slots=True)
class Head:
    """A linear layer: weight (K, F) and bias (K,)."""

    weight: NDArray[np.float64]
    bias: NDArray[np.float64]

    def probabilities(self, x: NDArray[Any]) -> NDArray[np.float64]:
        """Return probabilities (n, K) of embeddings (n, F)."""
        logits = x.astype(np.float64) @ self.weight.T + self.bias
        return torch.from_numpy(logits).softmax(dim=1).numpy()


@dataclass(frozen=True, slots=True)
class Epochs:
    """Epochs of AdamW at a highest rate."""

    count: int
    rate: float

    def __str__(self) -> str:
        return f"{self.count} epochs, lr {self.rate:g}" if self.count > 1 else f"1 epoch, lr {self.rate:g}"


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """Embeddings to fit a head on, and those to score it on, by setting."""

    name: str
    train: LabeledEmbeddings
    tests: dict[str, LabeledEmbeddings]


def train_epochs(data: LabeledEmbeddings, classes: int, epochs: Epochs, seed: int = 0) -> Head:
    """Return a head trained as ``fine_tune(head_epochs=…, epochs=0, augment=None)`` trains one."""
    x, labels = torch.from_numpy(data.x), torch.from_numpy(data.labels.astype(np.int64))
    weights = torch.from_numpy(class_weights(data.labels, "multiclass", classes, balanced=True)).float()
    loss_of = torch.nn.CrossEntropyLoss(reduction="none")
    generator = torch.Generator().manual_seed(seed)
    layer = torch.nn.Linear(x.shape[1], classes)
    torch.nn.init.normal_(layer.weight, std=0.01, generator=generator)
    torch.nn.init.zeros_(layer.bias)
    groups = [
        {"params": [layer.weight], "weight_decay": DECAY},
        {"params": [layer.bias], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=epochs.rate)
    # a last batch of a single item is left out
    batches = [
        batch
        for _ in range(epochs.count)
        for batch in torch.randperm(len(x), generator=generator).split(BATCH)
        if len(batch) > 1
    ]
    schedule = make_schedule(optimizer, "one_cycle", len(batches))
    for batch in batches:
        loss = (loss_of(layer(x[batch]), labels[batch]) * weights[labels[batch]]).mean()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
    return Head(layer.weight.detach().double().numpy(), layer.bias.detach().double().numpy())


def fit_heads(data: LabeledEmbeddings, classes: int) -> dict[str, Head]:
    """Return the heads to compare, by name."""
    names = tuple(map(str, range(classes)))
    search = ProbeSearch("multiclass", names, balanced=True).fit(data)
    lowest = min(search.tried, key=lambda row: float(row["loss"]))["C"]
    chosen = {REFERENCE: lowest, "logistic, one standard error": search.setting}
    chosen |= {f"logistic, C = {strength:g}": strength for strength in STRENGTHS}
    strengths = sorted(set(chosen.values()))
    probe = LinearProbe("multiclass", classes, "logistic", balanced=True, seed=0)
    path = dict(zip(strengths, probe.path(data.x, data.labels, strengths), strict=True))
    heads = {name: Head(path[c].weight, path[c].bias) for name, c in chosen.items()}
    several = [Epochs(count, rate) for count in LENGTHS for rate in RATES]
    return heads | {str(one): train_epochs(data, classes, one) for one in several}


def embed_radiographs(root: Path, name: str) -> tuple[dict[str, NDArray[np.float32]], medimg.ImageDataset]:
    """Return the embeddings (n, F) of the radiographs as each scanner makes them, and the dataset."""
    data = medimg.ImageDataset.from_csv(
        root / "cls" / "kermany_cxr224_dev" / "labels.csv",
        path="file",
        label="subtype",
        patient="patient_id",
        preprocess=medimg.Preprocess(),
        progress=False,
    )
    model = _load_classifier(root, name, data)
    noise = {scanner: torch.Generator().manual_seed(0) for scanner in SCANNERS}
    found: dict[str, list[NDArray[np.float32]]] = {scanner: [] for scanner in SCANNERS}
    for start in range(0, len(data), BATCH):
        items = range(start, min(start + BATCH, len(data)))
        images = torch.cat([data.planes(n)[0].reshape(1, 224, 224) for n in items])
        for scanner, make in SCANNERS.items():
            with torch.no_grad():
                normal = data.preprocess.normalize(make(images, noise[scanner])[:, None])
                found[scanner].append(model.embed(normal).numpy())
    return {scanner: np.concatenate(rows) for scanner, rows in found.items()}, data


def _load_classifier(root: Path, name: str, data: medimg.ImageDataset) -> medimg.TransferClassifier:
    weights = next((root / "weights" / name).glob("*.pth"))
    return medimg.TransferClassifier(
        name, classes=data.classes, weights=weights, preprocess=data.preprocess
    ).eval()


def radiograph_tasks(root: Path, name: str) -> Iterator[Task]:
    """Yield the tasks made of the radiographs, fold by fold."""
    embedded, data = embed_radiographs(root, name)
    subtypes, patients = np.asarray(data.labels), np.asarray(data.patients)
    normal, virus = data.classes.index("normal"), data.classes.index("virus")
    every = np.arange(len(subtypes))
    sick = np.flatnonzero(subtypes != normal)
    for title, items, labels in (
        ("normal, pneumonia", every, (subtypes != normal).astype(int)),
        ("bacteria, virus", sick, (subtypes[sick] == virus).astype(int)),
        ("normal, bacteria, virus", every, subtypes.astype(int)),
    ):
        parts = {
            scanner: LabeledEmbeddings(x[items], labels, list(patients[items]))
            for scanner, x in embedded.items()
        }
        same = parts["same"]
        folds = split_by_fold(assign_folds(labels, same.patients, "multiclass", FOLDS, 0))
        for fold, (train, test) in enumerate(folds):
            tests = {scanner: part.select(test) for scanner, part in parts.items()}
            yield Task(title, same.select(train), tests)
            few = _choose_patients(same, train, FEW, fold)
            yield Task(f"{title}; {FEW} patients", same.select(few), tests)
        earlier, later = _split_by_number(same)
        yield Task(title, same.select(earlier), {"later patients": same.select(later)})


def _choose_patients(
    data: LabeledEmbeddings, items: NDArray[np.int64], count: int, seed: int
) -> NDArray[np.int64]:
    """Return the items of some patients."""
    patients = np.asarray(data.patients)[items]
    chosen = np.random.default_rng(seed).permutation(np.unique(patients))[:count]
    return items[np.isin(patients, chosen)]


def _split_by_number(data: LabeledEmbeddings) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the items of the first and of the last half of each class's patients, by their numbers."""
    patients = np.asarray(data.patients)
    # NORMAL2-IM-… continues IM-…
    number = np.array([int(re.findall(r"\d+", p.replace("NORMAL2-", "9"))[0]) for p in data.patients])
    is_early = np.zeros(len(patients), bool)
    for label in np.unique(data.labels):
        members = np.flatnonzero(data.labels == label)
        is_early[members] = number[members] <= np.median(number[members])
    is_late = ~is_early & ~np.isin(patients, patients[is_early])
    return np.flatnonzero(is_early), np.flatnonzero(is_late)


def phantom_tasks(root: Path, name: str) -> Iterator[Task]:
    """Yield folds of synthetic radiographs; one scanner is left out of each training."""
    with tempfile.TemporaryDirectory() as folder:
        table = medimg.phantom.write_xray_dataset(Path(folder) / "x", patients=400, size=(224, 224), seed=3)
        data = medimg.ImageDataset.from_csv(
            table,
            path="file",
            label="label",
            patient="patient_id",
            preprocess=medimg.Preprocess(),
            progress=False,
        )
        scanner = pd.read_csv(table)["scanner"].to_numpy(str)
        found = medimg.embed(_load_classifier(root, name, data), data)
    whole = LabeledEmbeddings(found.array, np.asarray(data.labels), list(data.patients))
    names = np.unique(scanner)
    folds = split_by_fold(assign_folds(whole.labels, whole.patients, "multiclass", FOLDS, 0))
    for fold, (train, test) in enumerate(folds):
        left_out = names[fold % len(names)]
        tests = {
            "same": whole.select(test[scanner[test] != left_out]),
            "scanner left out": whole.select(test[scanner[test] == left_out]),
        }
        yield Task("synthetic nodules", whole.select(train[scanner[train] != left_out]), tests)


def resampled_auroc(
    labels: NDArray[Any], probabilities: NDArray[np.float64], weights: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return the AUROC, one against the rest, for weights (R, n) of items; NaN without a class."""
    classes = range(probabilities.shape[1]) if probabilities.shape[1] > 2 else (1,)
    found = []
    for k in classes:
        values, group = np.unique(probabilities[:, k], return_inverse=True)
        positive = np.zeros((len(values), len(weights)))
        negative = np.zeros_like(positive)
        np.add.at(positive, group, (weights * (labels == k)).T)
        np.add.at(negative, group, (weights * (labels != k)).T)
        below = np.cumsum(negative, axis=0) - negative / 2
        with np.errstate(invalid="ignore"):
            found.append((positive * below).sum(axis=0) / (positive.sum(axis=0) * negative.sum(axis=0)))
    return np.asarray(np.mean(found, axis=0))


def score(tasks: Iterator[Task]) -> dict[tuple[str, str], dict[str, NDArray[np.float64]]]:
    """Return the AUROC of each head, and of resampled patients, (1 + R,), by task and setting."""
    folds: dict[tuple[str, str], dict[str, list[NDArray[np.float64]]]] = defaultdict(
        lambda: defaultdict(list)
    )
    rng = np.random.default_rng(0)
    for task in tasks:
        heads = fit_heads(task.train, int(task.train.labels.max()) + 1)
        for setting, test in task.tests.items():
            if len(np.unique(test.labels)) < len(np.unique(task.train.labels)):
                continue
            names, patient = np.unique(test.patients, return_inverse=True)
            drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=RESAMPLES)
            weights = np.concatenate([np.ones((1, len(patient)), np.int64), drawn[:, patient]])
            for name, head in heads.items():
                area = resampled_auroc(test.labels, head.probabilities(test.x), weights)
                folds[task.name, setting][name].append(area)
    return {key: {n: np.mean(v, axis=0) for n, v in heads.items()} for key, heads in folds.items()}


def summarize(scores: dict[tuple[str, str], dict[str, NDArray[np.float64]]]) -> list[list[str]]:
    """Return a table: the mean difference of each head from the reference, its interval, and the lowest."""
    groups = {
        "same scanner": [key for key in scores if key[1] == "same"],
        "another scanner or time": [key for key in scores if key[1] != "same"],
    }
    head = ["Head"]
    for title, keys in groups.items():
        head += [f"{title}: mean of {len(keys)}", "lowest"]
    rows = [head]
    for name in next(iter(scores.values())):
        row = [name]
        for keys in groups.values():
            differences = np.array([scores[key][name] - scores[key][REFERENCE] for key in keys])
            mean = differences.mean(axis=0)
            low, high = np.nanpercentile(mean[1:], [2.5, 97.5])
            row += [f"{mean[0]:+.4f} ({low:+.4f} to {high:+.4f})", f"{differences[:, 0].min():+.4f}"]
        rows.append(row if name != REFERENCE else [name, *("0", "0") * len(groups)])
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print a table, and write it to the documentation if asked."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.head_defaults", description=__doc__)
    parser.add_argument("--data", type=Path, default=os.environ.get("MEDIMG_TEST_DATA"))
    parser.add_argument("--write", action="store_true", help="write docs/features.rst")
    options = parser.parse_args(arguments)
    if options.data is None:
        parser.error("--data, or the variable MEDIMG_TEST_DATA, names the folder of the test data")
    scores: dict[tuple[str, str], dict[str, NDArray[np.float64]]] = {}
    for name in BACKBONES:
        for tasks in (radiograph_tasks, phantom_tasks):
            found = score(tasks(Path(options.data), name))
            for (task, setting), heads in found.items():
                scores[f"{name}; {task}", setting] = heads
                print(f"{name}; {task}; {setting}: {heads[REFERENCE][0]:.4f}", flush=True)
    made = made_with()
    text = f"{list_table(summarize(scores))}\n\n{made['machine']}, {made['date']}."
    print(text)
    if options.write:
        write_part(FEATURES, "head defaults", text)


if __name__ == "__main__":
    main()
