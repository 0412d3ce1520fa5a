"""
Fine-tune a classifier of chest X-rays, calibrate it, and evaluate it on patients it has not seen.

--data is a folder with a labels.csv, with the columns file, label and patient_id; the files are DICOM, PNG
or JPEG. Without --data, synthetic X-rays are written as DICOM first.

    python examples/xray_classification.py --data scans --backbone densenet121 --epochs 5
"""

import argparse
import sys
from pathlib import Path

import medimg
from medimg.errors import MedimgError, WeightsUnavailableError


def main() -> None:
    args = parse_arguments()
    # before anything that takes long: weights may be missing
    medimg.TransferClassifier(args.backbone, classes=["a", "b"], weights=args.weights)
    table = (args.data or args.output / "data") / "labels.csv"
    if not args.data and not table.exists():
        print("1. Write synthetic chest X-rays of 120 patients as DICOM (--data takes yours)", flush=True)
        medimg.phantom.write_xray_dataset(table.parent, patients=120)
    print("2. Split by patient", flush=True)
    data = medimg.ImageDataset.from_csv(table, path="file", patient="patient_id")
    model = medimg.TransferClassifier(args.backbone, classes=data.classes, weights=args.weights)
    data = data.with_preprocess(model.preprocess)
    train, val, test = medimg.split(data)
    print(f"3. Fine-tune on {train.summary()}", flush=True)
    fit = medimg.fine_tune(model, train, val, epochs=args.epochs, output=args.output, overwrite=True)
    print("4. Calibrate and evaluate", flush=True)
    medimg.calibrate(model, val, train=train)
    model.save(args.output / "model.safetensors")
    report = medimg.evaluate(model, test, saliency=True)
    print(report, flush=True)
    report.to_csv(args.output / "predictions.csv")
    page = report.to_html(args.output / "report.html", fit=fit, title="Chest X-rays", card=True)
    print(f"Open {page.resolve()} in a browser; model, predictions and model card are beside it.")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Classify chest X-rays")
    parser.add_argument("--data", type=Path, help="folder with labels.csv; synthetic X-rays by default")
    parser.add_argument("--backbone", default="resnet18", help="any classifier of torchvision")
    parser.add_argument("--weights", default="DEFAULT", help="name or file of its pretrained weights")
    parser.add_argument("--epochs", type=int, default=3, help="epochs of all layers, after one of the head")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("xray-output"),
        help="output folder, results in which are replaced",
    )
    return parser.parse_args()


if __name__ == "__main__":
    try:
        main()
    except WeightsUnavailableError as error:
        sys.exit(f"{error}\nHere that is --weights FILE")
    except MedimgError as error:
        sys.exit(str(error))
