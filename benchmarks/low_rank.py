"""
Low-rank adapters against full fine-tuning of a small vision transformer: ``python -m benchmarks.low_rank``.

Chest radiographs of 64 pixels, from random weights, with one split by patient. Counted are the parameters
that are trained, and the bytes of their gradients and of the optimizer's state; compared bit by bit, every
tensor of the backbone before and after; and the logits of the network with adapters and merged. Peak memory
is that of two training steps of a ViT-B/16 in a process of its own.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn
from torchvision.models.vision_transformer import VisionTransformer

import medimg
from benchmarks.environment import made_with
from benchmarks.memory import peak_memory, reset_peak, resident_memory
from benchmarks.pages import list_table, write_part
from medimg.models.low_rank import add_adapters, has_adapters, merged_copy

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Measured", "main", "measure"]

TRAINING: Final = Path(__file__).parent.parent / "docs" / "training.rst"
SIZE: Final = 64
IMAGES: Final = 900
EPOCHS: Final = 6
RANK: Final = 8
TRAININGS: Final[dict[str, dict[str, Any]]] = {
    "full fine-tuning": {},
    f"adapters of rank {RANK}": {"adapter": "lora", "rank": RANK},
    "head only": {"head_epochs": EPOCHS, "epochs": 0},
}
_MIB: Final = 2**20
_PEAK: Final = "--peak-of"


@dataclass(frozen=True, slots=True)
class Measured:
    """What a training costs, and what it changed."""

    trainable: int
    total: int
    state_bytes: int
    changed: int
    tensors: int
    merge_error: float
    auroc: str


def make_vit() -> nn.Module:
    """Return a transformer of 1.2 million parameters."""
    return VisionTransformer(
        image_size=SIZE, patch_size=8, num_layers=6, num_heads=4, hidden_dim=128, mlp_dim=512, num_classes=2
    )


def measure(root: Path, settings: dict[str, Any], cache: str) -> Measured:
    """Train in one way, and compare the network before and after."""
    import pytorch_lightning as pl

    data = medimg.ImageDataset.from_csv(
        root / "cls" / "kermany_cxr224_dev" / "labels.csv",
        path="file",
        label="label",
        patient="patient_id",
        preprocess=medimg.Preprocess(size=SIZE),
        progress=False,
        cache=cache,
    )
    train, val, test = medimg.split(data, fractions=(0.6, 0.15, 0.25), seed=0)
    train = train[:IMAGES]
    torch.manual_seed(0)
    model = medimg.TransferClassifier(
        "small_vit", classes=data.classes, weights=None, preprocess=data.preprocess
    )
    before = {name: value.clone() for name, value in model.backbone.state_dict().items()}
    images = torch.stack([test[n][0] for n in range(32)])
    facts: dict[str, Any] = {"merge_error": 0.0}

    class Count(pl.Callback):
        def on_train_end(self, trainer: pl.Trainer, *_: Any) -> None:
            trained = [p for p in model.parameters() if p.requires_grad]
            states = trainer.optimizers[0].state_dict()["state"].values()
            tensors = [value for state in states for value in state.values()]
            facts["trainable"] = sum(p.numel() for p in trained)
            facts["state_bytes"] = sum(t.nbytes for t in (*trained, *tensors))
            if has_adapters(model):
                model.eval()
                with torch.no_grad():
                    difference = model(images) - merged_copy(model)(images)
                facts["merge_error"] = float(difference.abs().max())

    options = {"head_epochs": 1, "epochs": EPOCHS - 1, **settings}
    medimg.fine_tune(
        model,
        train,
        val,
        lr=5e-4,
        backbone_lr_scale=1.0,
        layer_decay=1.0,
        callbacks=[Count()],
        progress=False,
        **options,
    )
    after = model.backbone.state_dict()
    report = medimg.evaluate(model, test, progress=False)
    return Measured(
        total=sum(p.numel() for p in model.parameters()),
        changed=sum(not torch.equal(after[name], value) for name, value in before.items()),
        tensors=len(before),
        auroc=str(report.metrics["auroc"]),
        **facts,
    )


def measure_peak(adapter: bool) -> int:
    """Return the peak memory of two steps of a ViT-B/16 beyond its weights, in bytes."""
    torch.manual_seed(0)
    model = medimg.TransferClassifier("vit_b_16", classes=["a", "b"], weights=None).train()
    if adapter:
        add_adapters(model, RANK, seed=0)
    reset_peak()
    held = resident_memory()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    for _ in range(2):
        loss = nn.functional.cross_entropy(model(torch.randn(2, 3, 224, 224)), torch.tensor([0, 1]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return peak_memory() - held


def peak_in_own_process(adapter: bool) -> int:
    """Return what :func:`measure_peak` measures in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.low_rank", _PEAK, str(int(adapter))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print a table, and write it to the documentation if asked."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.low_rank", description=__doc__)
    parser.add_argument("--data", type=Path, default=os.environ.get("MEDIMG_TEST_DATA"))
    parser.add_argument("--write", action="store_true", help="write docs/training.rst")
    parser.add_argument(_PEAK, type=int, choices=(0, 1), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.peak_of is not None:
        print(measure_peak(bool(options.peak_of)))
        return
    if options.data is None:
        parser.error("--data, or the variable MEDIMG_TEST_DATA, names the folder of the test data")
    medimg.register_backbone("small_vit", make_vit, size=SIZE)
    rows = [
        [
            "Training",
            "Trainable parameters",
            "Gradients and optimizer",
            "Peak memory, ViT-B/16",
            "Backbone tensors changed",
            "Merge error",
            "AUROC",
        ]
    ]
    with tempfile.TemporaryDirectory() as cache:
        for name, settings in TRAININGS.items():
            found = measure(Path(options.data), settings, cache)
            adapter = "adapter" in settings
            peak = f"{peak_in_own_process(adapter) / _MIB:,.0f} MiB" if found.changed else "–"
            rows.append(
                [
                    name,
                    f"{found.trainable:,} of {found.total:,}",
                    f"{found.state_bytes / _MIB:.2f} MiB",
                    peak,
                    f"{found.changed} of {found.tensors}",
                    f"{found.merge_error:.1g}" if adapter else "–",
                    found.auroc,
                ]
            )
            print(*rows[-1], sep="; ", flush=True)
    made = made_with()
    text = f"{list_table(rows)}\n\n{made['machine']}, {made['date']}."
    print(text)
    if options.write:
        write_part(TRAINING, "low rank", text)


if __name__ == "__main__":
    main()
