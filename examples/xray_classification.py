"""
Fine-tune a classifier of chest X-rays, and write a checkpoint, predictions, an HTML report and a model card.

--data is a folder with a labels.csv, with the columns file, label and patient_id; the files are DICOM, PNG
or JPEG. Without --data, synthetic X-rays are written as DICOM first.

    python examples/xray_classification.py --data scans --backbone densenet121 --epochs 5
"""

import argparse
import sys
from pathlib import Path

import medimg
from medimg.errors import MedimgError


def main() -> None:
    args = parse_arguments()
    data = medimg.ImageDataset.from_csv(find_labels(args), path="file", patient="patient_id")
    weights = None if args.weights == "none" else args.weights
    model = medimg.TransferClassifier(args.backbone, classes=data.classes, weights=weights)
    data = data.with_preprocess(model.preprocess)
    print(f"Data: {data.summary()}")

    train, val, test = medimg.split(data)
    fit = medimg.fine_tune(model, train, val, epochs=args.epochs, output=args.output)
    medimg.calibrate(model, val, train=train)
    model.save(args.output / "model.safetensors")
    report = medimg.evaluate(model, test, unit="patient", saliency=True, progress=True)
    print(report)

    report.to_csv(args.output / "predictions.csv")
    split = {"train": train, "val": val, "test": test}
    report.to_html(args.output / "report.html", fit=fit, split=split, title="Chest X-rays", card=True)
    for name in ("model.safetensors", "predictions.csv", "report.html", "report.md"):
        print(f"Written: {args.output / name}")


def find_labels(args: argparse.Namespace) -> Path:
    if args.data:
        return Path(args.data, "labels.csv")
    folder = Path(args.output, "data")
    if not folder.exists():
        print("No --data: writing synthetic chest X-rays as DICOM")
        medimg.phantom.write_xray_dataset(folder, patients=120)
    return folder / "labels.csv"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=Path, help="folder with labels.csv; synthetic X-rays by default")
    add("--weights", default="DEFAULT", help="name, path of a file, or 'none' (default: DEFAULT)")
    add("--backbone", default="resnet18", help="any torchvision classifier (default: resnet18)")
    add("--epochs", type=int, default=3, help="epochs of the full network, after one of the head")
    add("--output", type=Path, default=Path("xray-output"), help="output folder")
    return parser.parse_args()


if __name__ == "__main__":
    try:
        main()
    except MedimgError as error:
        sys.exit(f"{type(error).__name__}: {error}")
