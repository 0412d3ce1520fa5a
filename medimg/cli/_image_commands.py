"""``medimg scan``, ``info``, ``read`` and ``preview``: what is in files, and converting it; without torch."""

from __future__ import annotations

import re
import sys
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from medimg.cli._options import (
    Commands,
    add_command,
    add_feedback,
    add_force,
    add_json,
    add_reading,
    add_series,
    check_output,
    parse_path,
)
from medimg.cli._terminal import print_facts, print_json, print_table
from medimg.errors import ConversionError, MedimgError, also

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

    from medimg.core.progress import Progress
    from medimg.io.series import Series
    from medimg.io.series_index import SeriesIndex

__all__ = ["add_info", "add_preview", "add_read", "add_scan"]

#: Columns that identify no patient, shown unless others are asked for.
_SHOWN = ("modality", "channels", "slices", "rows", "columns", "spacing", "files", "format")
_FIGURES = (".png", ".pdf", ".svg")


def add_scan(commands: Commands) -> None:
    """Add ``medimg scan``."""
    parser = add_command(commands, "scan", _scan, "list the series in a folder, archive or files")
    parser.add_argument("source", type=parse_path, nargs="+", help="folder, zip archive, DICOMDIR, or files")
    add = parser.add_argument
    add(
        "--columns",
        help="columns, separated by commas, in place of those that identify no patient: also uid, "
        "description, path, patient_id, study_uid, and DICOM attributes such as KVP or (0018,0060)",
    )
    add("--skipped", action="store_true", help="list the skipped files, with the reason, instead")
    add(
        "--index",
        type=parse_path,
        help="SQLite file in which headers are saved, so that the next scan is faster",
    )
    add("--workers", type=int, help="threads that read headers")
    add_json(parser)
    add_feedback(parser)


def _scan(args: argparse.Namespace) -> int:
    from medimg.io.scan import scan

    index = scan(_one_or_list(args.source), workers=args.workers, progress=args.progress, index=args.index)
    if args.skipped:
        rows: list[dict[str, Any]] = [{"path": s.path, "reason": s.reason} for s in index.skipped]
        columns: tuple[str, ...] = ("path", "reason")
    else:
        columns = _SHOWN if args.columns is None else _check_columns(args.columns)
        rows = _list_rows(index, columns, args.progress)
    if args.json:
        print_json(rows)
        return 0
    names = columns if args.skipped else ("#", *columns)
    print_table(names, [tuple(map(_join, row.values())) for row in rows])
    print(f"{len(index)} series, {len(index.skipped)} files skipped", file=sys.stderr)
    return 0


def _one_or_list(source: list[str]) -> Any:
    return source[0] if len(source) == 1 else source


def _check_columns(text: str) -> tuple[str, ...]:
    from medimg.io.series_index import COLUMNS, check_columns

    columns = _split_names(text)
    check_columns(columns, (*COLUMNS, "spacing"))
    return columns


def _split_names(text: str) -> tuple[str, ...]:
    """Return names separated by commas, each once; (0018,0060) is one."""
    return tuple(dict.fromkeys(name.strip() for name in re.split(r",(?![^(]*\))", text)))


def _list_rows(index: SeriesIndex, columns: tuple[str, ...], progress: Progress) -> list[dict[str, Any]]:
    """Return the number and the columns of each series."""
    from medimg.io.series_index import COLUMNS, list_rows
    from medimg.io.tag_names import parse_tag_names

    names = parse_tag_names(name for name in columns if name not in (*COLUMNS, "spacing"))
    rows = []
    for number, (series, row) in enumerate(zip(index, list_rows(index, names, progress), strict=True)):
        facts = {**_show_tags(row), "spacing": _find_spacing(series)}
        rows.append({"number": number, **{name: facts[name] for name in columns}})
    return rows


def _find_spacing(series: Series) -> tuple[float, float, float] | None:
    return series.spacing if series.space == "patient" else None


def add_info(commands: Commands) -> None:
    """Add ``medimg info``."""
    parser = add_command(commands, "info", _info, "describe one image or series, or a model")
    parser.add_argument(
        "source",
        type=parse_path,
        nargs="+",
        help="folder, archive or files of one series, or a .safetensors file",
    )
    add_series(parser)
    parser.add_argument("--tags", help="DICOM attributes to show, too, separated by commas: KVP,PatientSex")
    add_json(parser)
    add_feedback(parser)


def _info(args: argparse.Namespace) -> int:
    source = _one_or_list(args.source)
    is_model = isinstance(source, str) and source.endswith(".safetensors")
    for option, what in (("tags", "DICOM attributes"), ("series", "series")):
        if is_model and getattr(args, option) is not None:
            raise also(MedimgError, ValueError)(f"{source} is a model, which has no {what}; omit --{option}")
    facts = _describe_model(source) if is_model else _describe_series(source, args.series, args.tags)
    if args.json:
        print_json(facts)
    else:
        print_facts({name.replace("_", " "): _join(value) for name, value in facts.items()})
    return 0


def _join(value: object) -> object:
    if isinstance(value, list):
        return ", ".join(value)
    return "×".join(_show_size(v) for v in value) if isinstance(value, tuple) else value


def _show_size(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _describe_series(source: Any, number: str | int | None, tags: str | None) -> dict[str, object]:
    from medimg.core.geometry import orientation_code
    from medimg.io.read import find_series

    series, index = find_series(source, number)
    in_patient = series.space == "patient"
    times = series.frame_times
    return {
        "format": series.format,
        "modality": series.modality or None,
        "channels": series.shape[0],
        "size": series.shape[1:],
        "spacing_mm": series.spacing if in_patient else None,
        "orientation": orientation_code(series.affine) if in_patient else None,
        "duration_s": times[-1] - times[0] if times else None,
        "files": len(series.files),
        "files_skipped": len(index.skipped),
        **({} if tags is None else _show_tags(series.tags(*_split_names(tags)))),
    }


def _show_tags(values: Mapping[str, object]) -> dict[str, object]:
    """Return values of attributes as text or numbers."""
    return {name: _show_tag(value) for name, value in values.items()}


def _show_tag(value: object) -> object:
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    if not isinstance(value, tuple) or all(isinstance(one, int | float) for one in value):
        return value
    if all(isinstance(one, str | None) for one in value):
        return "\\".join(one or "" for one in value)
    return f"{len(value)} item(s)"


def _describe_model(path: str) -> dict[str, object]:
    import medimg

    model = medimg.load(path)
    return {
        "backbone": model.backbone_name,
        "weights": model.weights_name,
        "classes": list(model.classes),
        "task": model.task,
        "pool": model.pool,
        "image_size": tuple(model.preprocess.hw),
        "preprocessing": model.preprocess.fingerprint,
        "parameters": sum(p.numel() for p in model.parameters()),
        "trained": bool(model.training_summary),
        "calibrated": model.calibration is not None,
    }


def add_read(commands: Commands) -> None:
    """Add ``medimg read``."""
    parser = add_command(
        commands, "read", _read, "read a volume and write it as NIfTI, NRRD or MetaImage", aliases=["convert"]
    )
    parser.add_argument("source", type=parse_path, nargs="+", help="folder, archive or files of one series")
    parser.add_argument("out", type=parse_path, help="file or URL to write: .nii.gz, .nii, .nrrd or .mha")
    add_series(parser)
    add = parser.add_argument
    add("--spacing", type=float, nargs=3, metavar=("D", "H", "W"), help="resample to this spacing in mm")
    add("--reorient", metavar="CODE", help="directions of the axes (D, H, W), such as SPL")
    add("--no-compress", action="store_true", help="write NRRD and MetaImage uncompressed")
    add_force(parser)
    add_reading(parser)
    add_feedback(parser)


def _read(args: argparse.Namespace) -> int:
    from medimg.io.read import read
    from medimg.io.write import find_writer

    # reading may take long
    find_writer(args.out)
    check_output(args.out, force=args.force)
    volume = read(
        _one_or_list(args.source),
        series=args.series,
        on_missing=args.on_missing,
        on_duplicate=args.on_duplicate,
        on_tilt=args.on_tilt,
        values=args.values,
    )
    if args.reorient:
        volume = volume.reorient(args.reorient)
    if args.spacing:
        volume = volume.resample(tuple(args.spacing))
    print(volume.save(args.out, compress=not args.no_compress))
    return 0


def add_preview(commands: Commands) -> None:
    """Add ``medimg preview``."""
    parser = add_command(commands, "preview", _preview, "write a montage of slices as an image")
    parser.add_argument("source", type=parse_path, nargs="+", help="folder, archive or files of one series")
    parser.add_argument("out", type=parse_path, help="file or URL to write: .png, .pdf or .svg")
    add_series(parser)
    add = parser.add_argument
    add("--most", type=int, default=12, help="largest number of slices (default: 12)")
    add("--window", default="auto", help="auto, dicom, percentile or a preset such as lung (default: auto)")
    add_force(parser)
    add_feedback(parser)


def _preview(args: argparse.Namespace) -> int:
    from medimg.io.files.output import atomic_output, check_target
    from medimg.io.read import find_series

    out = check_target("the output", args.out, error=ConversionError)
    suffix = PurePath(out).suffix.lower()
    if suffix not in _FIGURES:
        raise also(ConversionError, ValueError)(
            f"{PurePath(out).name}: unknown format of a figure; expected {', '.join(_FIGURES)}"
        )
    check_output(args.out, force=args.force)
    series, _ = find_series(_one_or_list(args.source), args.series)
    figure = series.plot(most=args.most, window=args.window)
    with atomic_output(out) as temporary:
        figure.savefig(temporary, format=suffix[1:])
    print(out)
    return 0
