"""``medimg predict``, ``evaluate`` and ``explain``: what a trained model says."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medimg.cli._dicom_results import add_dicom_results, find_result_target
from medimg.cli._options import (
    Commands,
    add_command,
    add_feedback,
    add_force,
    add_json,
    add_labels,
    add_series,
    check_output,
    parse_path,
    read_dataset,
)
from medimg.cli._terminal import print_json
from medimg.errors import ConversionError

if TYPE_CHECKING:
    import argparse

    from medimg.data.dataset import ImageDataset
    from medimg.evaluation.report.report import Report
    from medimg.models.classifier import TransferClassifier

__all__ = ["add_evaluate", "add_explain", "add_predict"]


def add_predict(commands: Commands) -> None:
    """Add ``medimg predict``."""
    parser = add_command(commands, "predict", _predict, "predict on files, folders or archives")
    parser.add_argument("model", type=parse_path, help="checkpoint or its URL, such as run/model.safetensors")
    parser.add_argument(
        "sources", type=parse_path, nargs="+", help="files, or folders and archives of one or more series"
    )
    add = parser.add_argument
    add("--out", type=parse_path, help="CSV file or URL to write (default: stdout)")
    add("--unit", choices=("series", "image"), default="series", help="unit of a row (default: series)")
    add("--batch-size", type=int, default=32, help="images per batch (default: 32)")
    add(
        "--on-error",
        choices=("raise", "collect"),
        default="raise",
        help="whether an unreadable source is an error, or a row with its message and exit code 1",
    )
    add(
        "--tta",
        type=_parse_views,
        help="test-time augmentation: a number of views by the augmentation of the training, or hflip, vflip "
        "and rotate180, separated by commas",
    )
    add("--provenance", action="store_true", help="add columns with the model and its preprocessing")
    add_dicom_results(parser)
    add_json(parser)
    add_force(parser)
    add_feedback(parser)


def _parse_views(text: str) -> int | list[str]:
    return int(text) if text.isdigit() else text.split(",")


def _predict(args: argparse.Namespace) -> int:
    import medimg
    from medimg.io.files.output import check_target, write_text
    from medimg.io.files.spreadsheet import escape_formulas

    check_output(args.out, force=args.force)
    target = find_result_target(args)
    model = medimg.load(args.model)
    table = model.predict(
        args.sources,
        unit=args.unit,
        batch_size=args.batch_size,
        on_error=args.on_error,
        provenance=args.provenance,
        tta=args.tta,
        progress=args.progress,
    )
    text = escape_formulas(table).to_csv(index=False, lineterminator="\n")
    if args.out is not None:
        write_text(check_target("--out", args.out, error=ConversionError), text)
    if args.json:
        print_json(table.astype(object).where(table.notna(), None).to_dict("records"))
    elif args.out is None:
        sys.stdout.write(text)
    else:
        print(args.out)
    refused = 0 if target is None else target.deliver(model, table, args)
    failed = int(table["error"].notna().sum()) if "error" in table else 0
    if failed:
        print(f"{failed} of {len(table)} rows have no prediction; see the column error", file=sys.stderr)
    return 1 if failed or refused else 0


def add_evaluate(commands: Commands) -> None:
    """Add ``medimg evaluate``."""
    parser = add_command(commands, "evaluate", _evaluate, "evaluate a model on a table of labeled images")
    parser.add_argument("model", type=parse_path, help="checkpoint or its URL, such as run/model.safetensors")
    add_labels(parser)
    add = parser.add_argument
    add("--split", type=parse_path, help="split.json of the training; its test images are evaluated")
    add(
        "--unit",
        choices=("patient", "series", "image"),
        default="patient",
        help="unit of the scores (default: patient)",
    )
    add("--ci", type=float, default=0.95, help="confidence level of the intervals (default: 0.95)")
    add("--n-resamples", type=int, default=2000, help="bootstrap resamples (default: 2000)")
    add("--seed", type=int, default=0, help="seed of the bootstrap (default: 0)")
    add("--batch-size", type=int, default=32, help="images per batch (default: 32)")
    add("--workers", type=int, help="processes that read images")
    add("--subgroups", help="subgroups to score, separated by commas, such as sex,age,scanner")
    add("--saliency", action="store_true", help="add saliency maps to the example images")
    add(
        "--on-leak",
        choices=("raise", "report"),
        default="raise",
        help="whether images of the training are an error or a limitation (default: raise)",
    )
    add("--html", type=parse_path, help="report to write, a file or URL")
    add("--title", help="heading of the report")
    add("--out", type=parse_path, help="CSV file or URL of the predictions to write")
    add_json(parser)
    add_force(parser)
    add_feedback(parser)


def _evaluate(args: argparse.Namespace) -> int:
    import medimg

    for path in (args.html, args.out):
        check_output(path, force=args.force)
    if args.out is not None and args.html is not None and _is_same_file(args.out, args.html):
        raise ConversionError(f"--html and --out name one file, {args.out}; expected one for each")
    model = medimg.load(args.model)
    data = _read_labeled(args, model)
    report = medimg.evaluate(
        model,
        data,
        unit=args.unit,
        ci=args.ci,
        n_resamples=args.n_resamples,
        seed=args.seed,
        batch_size=args.batch_size,
        workers=args.workers,
        subgroups=args.subgroups.split(",") if args.subgroups else None,
        saliency=args.saliency,
        on_leak=args.on_leak,
        progress=args.progress,
    )
    if args.json:
        print_json(_to_json(report))
    else:
        print(report)
    if args.out is not None:
        report.to_csv(args.out)
    if args.html is not None:
        report.to_html(args.html, title=args.title)
    return 0


def _is_same_file(first: str, second: str) -> bool:
    from medimg.io.files.object_storage import is_remote_url

    if is_remote_url(first) or is_remote_url(second):
        return first == second
    return Path(first).resolve() == Path(second).resolve()


def _read_labeled(args: argparse.Namespace, model: TransferClassifier) -> ImageDataset:
    """Return the images of the table, or the test images of a split."""
    import medimg
    from medimg.errors import DatasetError

    if model.task == "multilabel" and args.label is None:
        args.label = list(model.classes)
    unit = "image" if model.pool == "none" else "series"
    data: ImageDataset = read_dataset(args, classes=model.classes, preprocess=model.preprocess, unit=unit)
    if args.split is None:
        return data
    parts = medimg.load_split(args.split, data)
    if "test" not in parts:
        raise DatasetError(f"{args.split} has no subset test; found {', '.join(parts)}")
    return parts["test"]


def _to_json(report: Report) -> dict[str, Any]:
    return {
        "unit": report.unit,
        "classes": report.classes,
        "patients": report.n_patients,
        "images": report.n_images,
        "ci": report.ci,
        "metrics": {
            name: {"value": e.value, "low": e.low, "high": e.high} for name, e in report.metrics.items()
        },
        "notes": report.notes,
    }


def add_explain(commands: Commands) -> None:
    """Add ``medimg explain``."""
    parser = add_command(
        commands,
        "explain",
        _explain,
        "write the saliency map of an image or series",
        epilog="OUT gets overlay.png, and heat.nii.gz at the same position in the patient if the slices form "
        "a volume.",
    )
    parser.add_argument("model", type=parse_path, help="checkpoint or its URL, such as run/model.safetensors")
    parser.add_argument("source", type=parse_path, help="file, folder or archive of one series")
    parser.add_argument("--out", type=parse_path, required=True, help="folder or URL to write to")
    add_series(parser)
    add = parser.add_argument
    add("--target", help="class (default: the most probable one)")
    add("--slices", type=int, nargs="+", help="indices of slices (default: all that the model uses)")
    add("--method", choices=("gradcam", "hirescam"), default="gradcam", help="method (default: gradcam)")
    add("--most", type=int, default=6, help="largest number of slices of the overlay (default: 6)")
    add_json(parser)
    add_force(parser)
    add_feedback(parser)


def _explain(args: argparse.Namespace) -> int:
    import medimg
    from medimg.errors import GeometryError
    from medimg.io.files.output import atomic_output, check_target, join_target
    from medimg.io.read import find_series

    folder = check_target("--out", args.out, error=ConversionError, is_folder=True)
    overlay, heat = (join_target(folder, name) for name in ("overlay.png", "heat.nii.gz"))
    for path in (overlay, heat):
        check_output(path, force=args.force)
    series, _ = find_series(args.source, args.series)
    found = medimg.explain(
        medimg.load(args.model),
        series,
        args.target,
        slices=args.slices,
        method=args.method,
        progress=args.progress,
    )
    written = [overlay]
    with atomic_output(overlay) as temporary:
        found.plot(most=args.most).savefig(temporary, format="png")
    try:
        written.append(found.save(heat))
    except GeometryError as error:
        print(f"no heat.nii.gz: {error}", file=sys.stderr)
    if args.json:
        print_json(
            {
                "target": found.target,
                "probability": found.probability,
                "hottest": found.hottest,
                "slices": found.slices,
                "method": found.method,
                "layer": found.layer,
                "files": written,
            }
        )
        return 0
    print(found)
    for path in written:
        print(path)
    return 0
