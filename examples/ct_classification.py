"""
Fine-tune a classifier of chest CT slices, and write a checkpoint, predictions and an HTML report.

--data is a folder with a labels.csv, with the columns file, label and patient_id; a file is one slice, or a
folder with one series. Without --data, synthetic CT is written as DICOM first.

    python examples/ct_classification.py --data scans --backbone resnet18 --epochs 5
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import medimg
from medimg.errors import LeakageError, MedimgError, WeightsUnavailableError


def main() -> None:
    args = parse_arguments()
    data = medimg.ImageDataset.from_csv(find_labels(args), path="file", patient="patient_id")
    model, settings = build_classifier(args, data.classes)
    data = data.with_preprocess(model.preprocess)
    print(f"Data: {data.summary()}")

    train, val, test = split_data(data)
    settings |= {"epochs": args.epochs} if args.epochs else {}
    fit = medimg.fine_tune(model, train, val, output=args.output, **settings)
    report = medimg.evaluate(model, test, unit="image", progress=True)
    print(report)

    report.to_csv(args.output / "predictions.csv")
    report.to_html(args.output / "report.html", fit=fit, title="Chest CT")
    for path in (fit.checkpoint, args.output / "predictions.csv", args.output / "report.html"):
        print(f"Written: {path}")


def find_labels(args: argparse.Namespace) -> Path:
    if args.data:
        return Path(args.data, "labels.csv")
    folder = Path(args.output, "data")
    if not folder.exists():
        print("No --data: writing synthetic chest CT as DICOM")
        medimg.phantom.write_ct_dataset(folder, patients=120, slices=8)
    print(f"Found: {medimg.scan(folder, progress=True)}")
    return folder / "slices.csv"


def build_classifier(
    args: argparse.Namespace, classes: tuple[str, ...]
) -> tuple[medimg.TransferClassifier, dict[str, Any]]:
    recipe = medimg.Preprocess(window="lung")
    weights = None if args.weights == "none" else args.weights
    try:
        model = medimg.TransferClassifier(args.backbone, classes=classes, weights=weights, preprocess=recipe)
        return model, {"head_epochs": 1, "epochs": 3}
    except WeightsUnavailableError:
        if weights != "DEFAULT":
            raise
    print(
        "ImageNet weights are neither in the cache nor downloadable: training a small backbone from scratch."
    )
    recipe = recipe.replace(size=112)
    model = medimg.TransferClassifier("resnet18", classes=classes, weights=None, preprocess=recipe)
    return model, {
        "head_epochs": 0,
        "epochs": 15,
        "backbone_lr_scale": 1.0,
        "batch_size": 16,
    }


def split_data(
    data: medimg.ImageDataset,
) -> tuple[medimg.ImageDataset, medimg.ImageDataset | None, medimg.ImageDataset]:
    try:
        train, val, test = medimg.split(data)
    except LeakageError as error:
        print(f"No patients can be held out: {error}")
        print("Training and evaluating on the same images: THE SCORES BELOW ARE NOT VALID.")
        return data, None, data
    return train, val, test


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=Path, help="folder with labels.csv; synthetic CT by default")
    add("--weights", default="DEFAULT", help="name, path of a file, or 'none' (default: DEFAULT)")
    add("--backbone", default="resnet18", help="any torchvision classifier (default: resnet18)")
    add("--epochs", type=int, help="epochs of the full network (default: 3; 15 from scratch)")
    add("--output", type=Path, default=Path("ct-output"), help="output folder")
    return parser.parse_args()


if __name__ == "__main__":
    try:
        main()
    except MedimgError as error:
        sys.exit(f"{type(error).__name__}: {error}")
