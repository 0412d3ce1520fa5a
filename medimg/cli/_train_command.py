"""``medimg train``: a whole study, from a table of labels to a calibrated and evaluated model."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from medimg.cli._options import (
    Commands,
    add_command,
    add_feedback,
    add_force,
    add_labels,
    check_output,
    parse_path,
    parse_weights,
    read_dataset,
)

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from medimg.data.dataset import ImageDataset
    from medimg.models.classifier import TransferClassifier

__all__ = ["add_train"]

_MODEL, _SPLIT, _REPORT, _PREDICTIONS = "model.safetensors", "split.json", "report.html", "predictions.csv"
#: Items of train and of val that an out-of-distribution detector needs.
_FEWEST = 10


def add_train(commands: Commands) -> None:
    """Add ``medimg train``."""
    parser = add_command(
        commands,
        "train",
        _train,
        "split by patient, fine-tune, calibrate and evaluate a classifier",
        epilog=f"OUTPUT gets {_MODEL}, {_SPLIT}, {_REPORT}, report.md, {_PREDICTIONS} (of the test "
        "patients), and the history and checkpoints of the training.",
    )
    add_labels(parser)
    _add_model(parser.add_argument_group("model").add_argument)
    _add_training(parser.add_argument_group("training").add_argument)
    add = parser.add_argument_group("evaluation").add_argument
    add("--operating-point", choices=("youden",), help="choose thresholds by Youden's index")
    add(
        "--report-unit",
        choices=("patient", "series", "image"),
        default="patient",
        help="unit of the scores (default: patient)",
    )
    add("--subgroups", help="subgroups to score, separated by commas, such as sex,age,scanner")
    add("--saliency", action="store_true", help="add saliency maps to the example images")
    add("--title", help="heading of the report")
    parser.add_argument("--output", type=parse_path, default="run", help="folder to write (default: run)")
    parser.add_argument("--resume", action="store_true", help="continue the interrupted training of --output")
    add_force(parser)
    add_feedback(parser)


def _add_model(add: Callable[..., Any]) -> None:
    add(
        "--backbone",
        default="resnet50",
        help="any classifier of torchvision, or a name such as timm:… (default: resnet50)",
    )
    add("--weights", type=parse_weights, default="DEFAULT", help="name, file, or none (default: DEFAULT)")
    add("--accept-license", action="store_true", help="accept the license of weights that have their own")
    add("--unit", choices=("image", "series"), default="image", help="unit of an item (default: image)")
    add(
        "--pool",
        choices=("none", "mean", "max", "attention"),
        help="pooling of slices (default: mean for series, else none)",
    )
    add("--window", help="window: auto, dicom, percentile or a preset such as lung (default: auto)")
    add("--size", type=int, help="rows and columns of the images (default: those of the weights)")


def _add_training(add: Callable[..., Any]) -> None:
    add("--fractions", type=float, nargs="+", default=[0.7, 0.15, 0.15], help="train, val and test")
    add("--head-epochs", type=int, default=1, help="epochs of the head alone (default: 1)")
    add("--epochs", type=int, default=10, help="epochs of all layers (default: 10)")
    add("--lr", type=float, default=1e-3, help="peak learning rate of the head (default: 0.001)")
    add(
        "--backbone-lr-scale",
        type=float,
        default=0.1,
        help="rate of the backbone relative to --lr (default: 0.1)",
    )
    add("--adapter", choices=("lora",), help="train low-rank adapters of a frozen transformer")
    add("--rank", type=int, help="rank of the adapters (default: 8)")
    add("--batch-size", type=int, default=32, help="items per batch (default: 32)")
    add("--balance", choices=("loss", "sampler", "none"), default="loss", help="against class imbalance")
    add("--patience", type=int, help="epochs without a better score after which a phase ends")
    add("--seed", type=int, default=0, help="seed of the split, the head and the training (default: 0)")
    add("--workers", type=int, help="processes that read images")
    add("--cache", type=parse_path, help="folder for rendered images")


def _train(args: argparse.Namespace) -> int:
    import medimg
    from medimg._validation import check_path, check_seed
    from medimg.errors import ConversionError, DatasetError
    from medimg.evaluation.subgroups import find_subgroups

    check_seed(args.seed)
    if len(args.fractions) != 3:
        raise DatasetError(
            f"--fractions are those of train, val and test; found {len(args.fractions)} numbers"
        )
    output = check_path("--output", args.output, error=ConversionError)
    for name in (
        _MODEL,
        _SPLIT,
        _REPORT,
        _PREDICTIONS,
        "best.safetensors",
        "last.safetensors",
        "history.csv",
    ):
        check_output(output / name, force=args.force or args.resume)
    _check_weights(args)

    data = read_dataset(args, unit=args.unit, cache=args.cache)
    _check_report_unit(data, args.report_unit)
    model = _make_model(args, data.classes, data.task)
    data = data.with_preprocess(model.preprocess)
    train, val, test = medimg.split(data, fractions=tuple(args.fractions), seed=args.seed)
    parts = {"train": train, "val": val, "test": test}
    subgroups = args.subgroups.split(",") if args.subgroups else None
    find_subgroups(test, subgroups)
    shared = {"workers": args.workers, "progress": args.progress}
    fit = medimg.fine_tune(
        model,
        train,
        val,
        head_epochs=args.head_epochs,
        epochs=args.epochs,
        lr=args.lr,
        backbone_lr_scale=args.backbone_lr_scale,
        adapter=args.adapter,
        rank=args.rank,
        batch_size=args.batch_size,
        balance=None if args.balance == "none" else args.balance,
        patience=args.patience,
        resume=args.resume or None,
        output=output,
        overwrite=args.force and not args.resume,
        seed=args.seed,
        **shared,
    )
    # not before it is known that a training that is resumed has these subsets
    medimg.save_split(output / _SPLIT, **parts)
    has_detector = min(len(train), len(val)) >= _FEWEST
    if not has_detector:
        print(f"no out-of-distribution scores: fewer than {_FEWEST} items of train or val", file=sys.stderr)
    medimg.calibrate(
        model, val, train=train if has_detector else None, operating_point=args.operating_point, **shared
    )
    model.save(output / _MODEL)
    report = medimg.evaluate(
        model,
        test,
        unit=args.report_unit,
        seed=args.seed,
        subgroups=subgroups,
        saliency=args.saliency,
        **shared,
    )
    report.to_csv(output / _PREDICTIONS)
    report.to_html(output / _REPORT, fit=fit, split=parts, title=args.title, card=True)
    print(report)
    for name in (_MODEL, _PREDICTIONS, _REPORT):
        print(output / name)
    return 0


def _check_weights(args: argparse.Namespace) -> None:
    """Get the weights before the data are read, which may take long."""
    from medimg.models.backbones.architecture import resolve_weights

    source = resolve_weights(args.backbone, args.weights, accept_license=args.accept_license)
    if source is not None:
        source.load(progress=args.progress)


def _check_report_unit(data: ImageDataset, unit: str) -> None:
    """Refuse scores by patient if patients have several labels, before the training rather than after it."""
    from medimg.errors import DatasetError

    labels: dict[str, set[str]] = {}
    for patient, label in zip(data.patients, data.labels, strict=True):
        labels.setdefault(patient, set()).add(str(label))
    mixed = sum(len(found) > 1 for found in labels.values())
    if unit == "patient" and mixed:
        raise DatasetError(
            f"{mixed} of {len(labels)} patients have images with different labels, which have no score by "
            "patient; pass --report-unit series or image"
        )


def _make_model(args: argparse.Namespace, classes: tuple[str, ...], task: Any) -> TransferClassifier:
    import torch

    import medimg

    torch.manual_seed(args.seed)  # the new head is random
    fields = {name: value for name in ("window", "size") if (value := getattr(args, name)) is not None}
    pool: Any = args.pool or ("mean" if args.unit == "series" else "none")
    return medimg.TransferClassifier(
        args.backbone,
        classes=classes,
        weights=args.weights,
        accept_license=args.accept_license,
        preprocess=medimg.Preprocess(**fields) if fields else None,
        task=task,
        pool=pool,
    )
