"""
Classify synthetic chest X-rays without pretrained weights, and evaluate on patients the model has not seen.

A logistic regression on the features of a random network (a linear probe) suffices for them. Needs nothing
but medimg: no scans, no weights, no GPU. `make demo` runs it.

    python examples/demo.py --output demo-output
"""

import argparse
import sys
from pathlib import Path

import torch

import medimg
from medimg.errors import MedimgError

CLASSES = ("normal", "ground_glass", "consolidation")


def main() -> None:
    args = parse_arguments()
    table = args.output / "data" / "labels.csv"
    if not table.exists():
        say("1. Write chest X-rays of 240 patients as DICOM")
        medimg.phantom.write_xray_dataset(
            table.parent, patients=240, size=(160, 144), classes=CLASSES, seed=args.seed
        )
    say("2. Read them, and split them by patient")
    recipe = medimg.Preprocess(size=64)
    data = medimg.ImageDataset.from_csv(
        table, path="file", patient="patient_id", classes=CLASSES, preprocess=recipe
    )
    train, val, test = medimg.split(data, seed=args.seed)
    say(f"3. Fit a classifier of the features of a random network: {train.summary()}")
    torch.manual_seed(args.seed)
    model = medimg.TransferClassifier("resnet18", classes=CLASSES, weights=None, preprocess=recipe)
    medimg.fit_head(model, train)
    say(f"4. Calibrate it, and evaluate it on the test patients: {test.summary()}")
    medimg.calibrate(model, val)
    model.save(args.output / "model.safetensors")
    report = medimg.evaluate(model, test)
    print(report, flush=True)
    report.to_csv(args.output / "predictions.csv")
    page = report.to_html(args.output / "report.html", title="Synthetic chest X-rays")
    print(f"Open {page.resolve()} in a browser; model and predictions are beside it.")


def say(text: str) -> None:
    print(text, flush=True)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Classify synthetic chest X-rays")
    parser.add_argument("--output", type=Path, default=Path("demo-output"), help="output folder")
    parser.add_argument("--seed", type=int, default=0, help="seed of patients, split and network")
    return parser.parse_args()


if __name__ == "__main__":
    try:
        main()
    except MedimgError as error:
        sys.exit(str(error))
