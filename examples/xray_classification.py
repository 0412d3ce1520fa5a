"""
Classify chest X-rays: a table of labels in; a checkpoint, predictions and a report out.

The data is a folder with labels.csv, whose columns are file, label and patient_id; the files are DICOM (CR, DX), PNG
or JPEG. Without --data, synthetic X-rays are written as DICOM first.

    python examples/xray_classification.py --data scans --backbone densenet121 --epochs 5
"""

import argparse
from pathlib import Path

import medimg


def main() -> None:
    args = arguments()
    table = args.data / "labels.csv" if args.data else medimg.phantom.write_xray_dataset(args.output / "data")
    data = medimg.ImageDataset.from_csv(table, path="file", patient="patient_id")
    print(data.summary())

    train, val, test = medimg.split(data, seed=args.seed)
    model = medimg.TransferClassifier(args.backbone, classes=data.classes, weights=args.weights)
    data = data.with_preprocess(model.preprocess)
    fit = medimg.fine_tune(model, train, val, epochs=args.epochs, output=args.output, seed=args.seed)

    report = medimg.evaluate(model, test, unit="patient")
    print(report)
    report.to_html(args.output / "report.html", fit=fit, title="Chest X-ray classification")
    report.to_csv(args.output / "predictions.csv")
    model.save(args.output / "model.safetensors")
    print(f"Checkpoint, predictions and report are in {args.output.resolve()}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with labels.csv")
    parser.add_argument("--weights", default="DEFAULT", help="name, path of a file, or 'none' (default: DEFAULT)")
    parser.add_argument("--backbone", default="resnet18", help="any torchvision classifier (default: resnet18)")
    parser.add_argument("--epochs", type=int, default=3, help="epochs of the whole network, after one of the head")
    parser.add_argument("--output", type=Path, default=Path("xray-output"), help="folder for the results")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
