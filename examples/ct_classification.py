"""
Train a classifier of chest CT slices, and evaluate it on patients it has not seen.

--data is a folder with a labels.csv, with the columns file, label and patient_id; a file is one slice, or a
folder with one series. Without --data, synthetic CT is written as DICOM first.

    python examples/ct_classification.py --data scans --backbone resnet18 --weights DEFAULT
"""

import argparse
import sys
from pathlib import Path

import medimg
from medimg.errors import MedimgError

PRETRAINED = {"size": 224, "head_epochs": 1, "epochs": 3, "backbone_lr_scale": 0.1}
FROM_SCRATCH = {"size": 112, "head_epochs": 0, "epochs": 15, "backbone_lr_scale": 1.0, "batch_size": 16}


def main() -> None:
    args = parse_arguments()
    table = args.data / "labels.csv" if args.data else args.output / "data" / "slices.csv"
    if not args.data and not table.exists():
        print("1. Write synthetic chest CT of 120 patients as DICOM (--data takes yours)", flush=True)
        medimg.phantom.write_ct_dataset(table.parent, patients=120, slices=8)
    print("2. Scan, and split by patient", flush=True)
    print(medimg.scan(table.parent), flush=True)
    data = medimg.ImageDataset.from_csv(table, path="file", patient="patient_id")
    weights = None if args.weights == "none" else args.weights
    settings = dict(FROM_SCRATCH if weights is None else PRETRAINED)
    recipe = medimg.Preprocess(window="lung", size=int(settings.pop("size")))
    model = medimg.TransferClassifier(args.backbone, classes=data.classes, weights=weights, preprocess=recipe)
    train, val, test = medimg.split(data.with_preprocess(recipe))
    print(f"3. Train, {'from scratch' if weights is None else 'pretrained'}: {train.summary()}", flush=True)
    fit = medimg.fine_tune(model, train, val, output=args.output, **settings)  # type: ignore[arg-type]
    print("4. Evaluate", flush=True)
    report = medimg.evaluate(model, test, unit="image")
    print(report)
    report.to_csv(args.output / "predictions.csv")
    page = report.to_html(args.output / "report.html", fit=fit, title="Chest CT")
    print(f"Open {page.resolve()} in a browser; checkpoint and predictions are beside it.")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Classify chest CT slices")
    parser.add_argument("--data", type=Path, help="folder with labels.csv; synthetic CT by default")
    parser.add_argument("--backbone", default="resnet18", help="any classifier of torchvision")
    parser.add_argument("--weights", default="none", help="none, DEFAULT, or a file of its weights")
    parser.add_argument("--output", type=Path, default=Path("ct-output"), help="output folder")
    return parser.parse_args()


if __name__ == "__main__":
    try:
        main()
    except MedimgError as error:
        sys.exit(str(error))
