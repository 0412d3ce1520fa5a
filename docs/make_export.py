"""
Export a network of each family to ONNX and by torch.export, compare them, and write them to docs/export.rst.

    python docs/make_export.py [--store rows.jsonl] [--only NAME ...] [--minutes 60]

Weights are random, but statistics of batch normalization and the scale of logits are fitted to the images, so
that a wrong operator shows: chest radiographs of MEDIMG_TEST_DATA, or slices of a phantom without it. Each
file is written by a process of its own with bounded time and memory. Results are kept in the store, so that a
run that was cut off goes on. It needs: pip install "medimg[test,export,timm,hf]"; networks of a library that
is not installed keep their rows.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import platform
import resource
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS.parent))
PAGE = DOCS / "export.rst"
START = ".. table of docs/make_export.py\n"
END = ".. end of the table\n"
CLASSES = ("a", "b", "c")
FORMATS = ("onnx", "pt2")
BAGS = (1, 7, 40)
LIMIT_CPU_S = 300
LIMIT_S = 1200
LIMIT_BYTES = 8 * 2**30

#: The smallest network of each family of torchvision, and the size of its images.
TORCHVISION = {
    "alexnet": 64,
    "convnext_tiny": 64,
    "densenet121": 64,
    "efficientnet_b0": 64,
    "googlenet": 64,
    "inception_v3": 96,
    "maxvit_t": 224,
    "mnasnet0_5": 64,
    "mobilenet_v2": 64,
    "mobilenet_v3_small": 64,
    "regnet_y_400mf": 64,
    "resnet18": 64,
    "shufflenet_v2_x0_5": 64,
    "squeezenet1_1": 64,
    "swin_t": 64,
    "swin_v2_t": 64,
    "vgg11": 64,
    "vit_b_16": 64,
}
#: Encoders of transformers: class of the configuration, and fields that make it small.
TRANSFORMERS: dict[str, tuple[str, dict[str, Any]]] = {
    "hf:vit": (
        "ViT",
        {"hidden_size": 96, "num_hidden_layers": 4, "num_attention_heads": 3, "intermediate_size": 192},
    ),
    "hf:dinov2": ("Dinov2", {"hidden_size": 96, "num_hidden_layers": 4, "num_attention_heads": 3}),
    "hf:swin": ("Swin", {"embed_dim": 24, "depths": [1, 1, 2, 1], "num_heads": [1, 2, 4, 8]}),
    "hf:convnext": ("ConvNext", {"depths": [1, 1, 2, 1], "hidden_sizes": [24, 48, 96, 192]}),
    "hf:resnet": (
        "ResNet",
        {"embedding_size": 16, "hidden_sizes": [32, 64, 96, 128], "depths": [1, 1, 1, 1]},
    ),
}


def list_networks() -> Iterator[str]:
    """Yield all networks of the table."""
    from make_backbones import FAMILIES

    yield from TORCHVISION
    yield from (f"timm:{name}" for name in FAMILIES.values())
    yield from TRANSFORMERS


def is_installed(name: str) -> bool:
    """Return whether the library of a network is installed."""
    libraries = {"timm": "timm", "hf": "transformers"}
    return ":" not in name or find_spec(libraries[name.partition(":")[0]]) is not None


def build(name: str, folder: Path) -> Any:
    """Return a classifier with random weights, which pools slices by attention."""
    from make_backbones import list_sizes

    from medimg import Preprocess, TransferClassifier
    from medimg.errors import MedimgError

    backbone: Any = name
    if name in TRANSFORMERS:
        backbone, sizes = _write_encoder(name, folder), (224,)
    else:
        sizes = (TORCHVISION[name],) if name in TORCHVISION else list_sizes(name)
    found: MedimgError | None = None
    for size in sizes:
        recipe = Preprocess(window="percentile", size=size)
        torch.manual_seed(0)
        try:
            return TransferClassifier(
                backbone, classes=CLASSES, weights=None, preprocess=recipe, pool="attention"
            )
        except MedimgError as error:
            found = error
    assert found is not None
    raise found


def _write_encoder(name: str, folder: Path) -> Path:
    import transformers

    kind, fields = TRANSFORMERS[name]
    config = getattr(transformers, f"{kind}Config")(image_size=224, **fields)
    transformers.utils.logging.disable_progress_bar()
    target = folder / kind.lower()
    getattr(transformers, f"{kind}Model")(config).save_pretrained(target)
    return target


def list_images() -> list[Any]:
    """Return 40 radiographs, half of them of each class, or slices of a phantom."""
    from medimg import Volume
    from medimg.phantom import chest_ct

    root = os.environ.get("MEDIMG_TEST_DATA")
    files = sorted((Path(root) / "cls/kermany_cxr224_dev/dataset").rglob("*.jpeg")) if root else []
    if len(files) >= max(BAGS):
        return files[:: len(files) // max(BAGS)][: max(BAGS)]
    array = chest_ct(0, slices=max(BAGS), size=64).array
    low, high = float(array.min()), float(array.max())
    return [Volume.from_array((one[None] - low) / (high - low) * 255) for one in array.reshape(-1, 64, 64)]


def prepare(model: Any, images: NDArray[np.float32]) -> float:
    """Give a random model logits of several units, and a calibration; return the spread of its embeddings."""
    from medimg.calibration.mahalanobis import MahalanobisDetector
    from tests.models.portable_models import calibrate, strengthen

    spread = strengthen(model, images)
    calibrate(model, "isotonic", detector=True)
    inputs = model.preprocess.normalize(torch.from_numpy(images))
    with torch.inference_mode():
        rows = np.concatenate([model.embed(one[None, None]).numpy() for one in inputs])
    outliers = MahalanobisDetector.fit(rows[::2], np.arange(len(rows[::2])) % 2, rows[1::2])
    model.calibration = replace(model.calibration, outliers=outliers)
    return spread


def make_bags(images: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    """Yield bags (B, N, C, H, W) of 1, 7 and 40 slices, two of 7, and several single images."""
    for count in BAGS:
        yield images[None, :count]
    yield np.stack([images[:7], images[-7:]])
    yield images[1:16:2, None]


def open_file(path: Path) -> Callable[[NDArray[np.float32]], list[NDArray[np.float32]]]:
    """Return a function that runs an exported file."""
    if path.suffix == ".onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return lambda bags: list(session.run(None, {"images": bags}))
    program = torch.export.load(path).module()
    return lambda bags: [one.detach().numpy() for one in program(torch.from_numpy(bags))]


def try_export(name: str, suffix: str) -> dict[str, Any]:
    """Return the largest differences of logits and probabilities, or why the network can't be exported."""
    from medimg.errors import MedimgError
    from medimg.models.portable.manifest import OUTPUTS
    from medimg.models.portable.parity import compute_outputs

    with tempfile.TemporaryDirectory() as folder:
        row: dict[str, Any] = {}
        try:
            model = build(name, Path(folder))
            row["size"] = model.preprocess.hw[0]
            given = list_images()
            images = np.concatenate([model.preprocess.render_array(one) for one in given])
            row["spread"] = prepare(model, images)
            began = time.process_time()
            # random networks amplify what single precision rounds
            path = model.export(Path(folder) / f"model.{suffix}", check=given[::5], tolerance=1e-3)
        except MedimgError as error:
            left = [one.name for one in Path(folder).iterdir() if one.is_file()]
            return row | {"error": f"{type(error).__name__}: {error}", "left": left}
        row |= {"cpu_s": round(time.process_time() - began, 1), "bytes": path.stat().st_size}
        run = open_file(path)
        worst = dict.fromkeys(OUTPUTS, 0.0)
        for bags in make_bags(images):
            expected = compute_outputs(model, bags)
            found = dict(zip(OUTPUTS, run(bags), strict=True))
            for key in worst:
                difference = float(np.abs(found[key] - expected[key]).max())
                worst[key] = math.inf if math.isnan(difference) else max(worst[key], difference)
        row["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return row | worst


def import_libraries() -> None:
    """Import what takes seconds once, not in each process."""
    for name in (
        "medimg.models.portable.export",
        "onnxscript",
        "sympy",
        "timm",
        "torch._dynamo",
        "torchvision",
    ):
        if find_spec(name.partition(".")[0]) is not None:
            import_module(name)


def run_apart(name: str, suffix: str) -> dict[str, Any]:
    """Export a network in a process of its own."""
    context = multiprocessing.get_context("fork" if platform.system() == "Linux" else "spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_send_row, args=(name, suffix, theirs))
    process.start()
    theirs.close()
    row: dict[str, Any] = {"error": f"more than {LIMIT_CPU_S} s, or the process was ended"}
    try:
        if ours.poll(LIMIT_S):
            with suppress(EOFError):
                row = ours.recv()
    finally:
        process.kill()
        process.join()
    return {"name": name, "format": suffix} | row


def _send_row(name: str, suffix: str, pipe: Any) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_CPU, (LIMIT_CPU_S, LIMIT_CPU_S))
    resource.setrlimit(resource.RLIMIT_DATA, (LIMIT_BYTES, LIMIT_BYTES))
    try:
        row = try_export(name, suffix)
    except Exception as error:
        row = {"error": f"{type(error).__name__}: {error}"}
    pipe.send(row)


def read_rows(text: str) -> dict[str, list[str]]:
    """Return the rows of a table as it is in the page, by name."""
    rows: dict[str, list[str]] = {}
    cells: list[str] = []
    for line in text.splitlines():
        if line.startswith("   * - "):
            cells = [line.removeprefix("   * - ")]
            rows[cells[0].strip("`")] = cells
        elif line.startswith("     - "):
            cells.append(line.removeprefix("     - "))
    return rows


HEADER = ["Network", "Images", "ONNX: logits", "Probabilities", "``.pt2``: logits", "Probabilities"]


def format_row(name: str, results: Mapping[str, dict[str, Any]]) -> list[str]:
    """Return the cells of a network by its results of both formats."""
    sizes = [str(one["size"]) for one in results.values() if "size" in one]
    cells = [f"``{name}``", sizes[0] if sizes else ""]
    for suffix in FORMATS:
        row = results.get(suffix, {"error": "not tried"})
        if "error" in row:
            cells += [" ".join(f"no: {row['error']}".split())[:200].replace("*", "").replace("`", ""), ""]
        else:
            cells += [f"{row['logits']:.0e}", f"{row['probabilities']:.0e}"]
    return cells


def format_table(rows: Mapping[str, list[str]]) -> str:
    """Return the table in reStructuredText."""
    lines = [".. list-table::", "   :header-rows: 1", ""]
    for row in [HEADER, *rows.values()]:
        lines += [f"   {'* -' if n == 0 else '  -'} {cell}".rstrip() for n, cell in enumerate(row)]
    return "\n".join(lines) + "\n"


def write_page(results: Mapping[str, Mapping[str, dict[str, Any]]]) -> None:
    """Write the rows of the networks that were tried; others keep theirs."""
    head, _, rest = PAGE.read_text(encoding="utf-8").partition(START)
    table, _, tail = rest.partition(END)
    rows = {name: row for name, row in read_rows(table).items() if len(row) == len(HEADER)}
    rows |= {name: format_row(name, of_it) for name, of_it in results.items()}
    ordered = {name: rows[name] for name in list_networks() if name in rows}
    PAGE.write_text(f"{head}{START}\n{format_table(ordered)}\n{END}{tail}", encoding="utf-8")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", type=Path, default=DOCS / "_build" / "export.jsonl")
    parser.add_argument("--only", nargs="*", default=())
    parser.add_argument("--minutes", type=float, default=1e6)
    args = parser.parse_args(arguments)
    args.store.parent.mkdir(parents=True, exist_ok=True)
    rows: dict[str, dict[str, dict[str, Any]]] = {}
    for line in args.store.read_text().splitlines() if args.store.exists() else ():
        row = json.loads(line)
        rows.setdefault(row["name"], {})[row["format"]] = row
    import_libraries()
    end = time.monotonic() + 60 * args.minutes
    for name in args.only or list_networks():
        if not is_installed(name):
            continue
        for suffix in FORMATS:
            if suffix in rows.get(name, {}) or time.monotonic() > end:
                continue
            row = run_apart(name, suffix)
            rows.setdefault(name, {})[suffix] = row
            with args.store.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)
    write_page(rows)


if __name__ == "__main__":
    main()
