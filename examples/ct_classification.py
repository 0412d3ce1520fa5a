"""
Fine-tune a classifier of chest CT slices, and evaluate it on patients it has not seen.

--data is a folder with a labels.csv, with the columns file, label and patient_id; a file is one slice, or a
folder with one series. Without --data, synthetic CT is written as DICOM first.

    python examples/ct_classification.py --data scans --backbone resnet18 --weights resnet18-f37072fd.pth
"""

import argparse
import sys
from pathlib import Path

import medimg
from medimg.errors import MedimgError, WeightsUnavailableError


def main() -> None:
    args = parse_arguments()
    recipe = medimg.Preprocess(window="lung")
    # before anything that takes long: weights may be missing
    medimg.TransferClassifier(args.backbone, classes=["a", "b"], weights=args.weights, preprocess=recipe)
    table = args.data / "labels.csv" if args.data else args.output / "data" / "slices.csv"
    if not args.data and not table.exists():
        print("1. Write synthetic chest CT of 120 patients as DICOM (--data takes yours)", flush=True)
        medimg.phantom.write_ct_dataset(table.parent, patients=120, slices=6)
    print("2. Scan, and split by patient", flush=True)
    print(medimg.scan(table.parent), flush=True)
    data = medimg.ImageDataset.from_csv(table, path="file", patient="patient_id", preprocess=recipe)
    train, val, test = medimg.split(data)
    print(f"3. Fine-tune on {train.summary()}", flush=True)
    model = medimg.TransferClassifier(
        args.backbone, classes=data.classes, weights=args.weights, preprocess=recipe
    )
    fit = medimg.fine_tune(model, train, val, epochs=args.epochs, output=args.output, overwrite=True)
    print("4. Evaluate", flush=True)
    # by image, as the slices of a patient have different labels
    report = medimg.evaluate(model, test, unit="image")
    print(report, flush=True)
    report.to_csv(args.output / "predictions.csv")
    page = report.to_html(args.output / "report.html", fit=fit, title="Chest CT")
    print(f"Open {page.resolve()} in a browser; checkpoint and predictions are beside it.")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Classify chest CT slices")
    parser.add_argument("--data", type=Path, help="folder with labels.csv; synthetic CT by default")
    parser.add_argument("--backbone", default="resnet18", help="any classifier of torchvision")
    parser.add_argument("--weights", default="DEFAULT", help="name or file of its pretrained weights")
    parser.add_argument("--epochs", type=int, default=3, help="epochs of all layers, after one of the head")
    parser.add_argument(
        "--output", type=Path, default=Path("ct-output"), help="output folder, results in which are replaced"
    )
    return parser.parse_args()


if __name__ == "__main__":
    try:
        main()
    except WeightsUnavailableError as error:
        sys.exit(f"{error}\nHere that is --weights FILE")
    except MedimgError as error:
        sys.exit(str(error))
