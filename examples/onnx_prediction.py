"""
Predict on scans by an exported model, with medimg's reading and ONNX Runtime, and without torch.

Each series of a folder, archive or file becomes a row of a table: probabilities, the decision by the
threshold, and what is unusual about the image. Where it is trained, model.export("model.onnx") writes it.

    python examples/onnx_prediction.py model.onnx scans/ --output predictions.csv
"""

import argparse
import sys
import time
from pathlib import Path

import medimg
from medimg.errors import MedimgError


def main() -> None:
    args = parse_arguments()
    model = medimg.OnnxClassifier(args.model, providers=args.provider)
    print(f"{model}\nmodel {model.model_sha256[:12]}, recipe {model.preprocess.fingerprint}", flush=True)
    start = time.perf_counter()
    table = model.predict(args.scans, on_error="collect", provenance=True)
    seconds = time.perf_counter() - start
    for row in table.to_dict("records"):
        if isinstance(row["error"], str):
            print(f"{row['source']}: {row['error']}")
            continue
        scores = ", ".join(f"{name} {row[f'p_{name}']:.3f}" for name in model.classes)
        unlike = f"; unlike the training data in {row['unlike']}" if row.get("unlike") else ""
        print(f"{row['source']}: {row['predicted']} ({scores}){unlike}")
    failed = int(table["error"].notna().sum())
    print(f"{len(table) - failed} series in {seconds:.1f} s, {failed} could not be read")
    if args.output:
        table.to_csv(args.output, index=False)
    # that it runs without torch is what it is for
    assert "torch" not in sys.modules
    if failed:
        sys.exit(1)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="ONNX file of an exported model")
    parser.add_argument("scans", type=Path, nargs="+", help="folders, archives or files of scans")
    parser.add_argument("--output", help="CSV file or URL for the table")
    parser.add_argument(
        "--provider", action="append", help="execution provider of ONNX Runtime; repeat for several"
    )
    return parser.parse_args()


if __name__ == "__main__":
    try:
        main()
    except MedimgError as error:
        sys.exit(f"error: {error}")
