"""Export of models to ONNX files and to programs of torch.export."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from medimg._validation import check_number, printable_error
from medimg.core.content_hash import json_text
from medimg.errors import CheckpointError, MedimgError, MissingDependencyError
from medimg.io.files.atomic import hash_file
from medimg.io.files.output import atomic_output, check_target, replace_suffix
from medimg.models.digest import model_digest
from medimg.models.low_rank import merged_copy
from medimg.models.portable.manifest import INPUT, KEY, Manifest
from medimg.models.portable.onnx_classifier import OnnxClassifier
from medimg.models.portable.onnx_file import MOST_BYTES, seal_file
from medimg.models.portable.parity import check_parity, list_check_images
from medimg.models.portable.portable_network import PortableNetwork, list_outputs
from medimg.models.predict import check_calibration

if TYPE_CHECKING:
    import os
    from pathlib import Path

    from numpy.typing import NDArray

    from medimg.models.classifier import TransferClassifier
    from medimg.models.portable.parity import Run

__all__ = ["export_model"]

_OPSET: Final = 18
_SUFFIXES: Final = (".onnx", ".pt2")


def export_model(
    model: TransferClassifier, path: str | os.PathLike[str], *, check: Any = None, tolerance: float = 1e-4
) -> Path | str:
    """Export a model; see :meth:`medimg.TransferClassifier.export`."""
    file = check_target("path", path, error=CheckpointError)
    name = PurePath(file).name
    suffix = PurePath(file).suffix.lower()
    if suffix not in _SUFFIXES:
        raise CheckpointError(
            f"path must end with {' or '.join(_SUFFIXES)}, which decides the format; found {name}"
        )
    most = check_number("tolerance", tolerance, above=0, error=CheckpointError)
    if suffix == ".onnx":
        for module in ("onnx", "onnxscript", "onnxruntime"):
            _import_exporter(module)
    check_calibration(model)
    own = _copy_to_cpu(model)
    if suffix == ".onnx":
        _check_file_size(own)
    images = list_check_images(own, check)
    network, manifest = PortableNetwork(own), _describe(model)
    with atomic_output(replace_suffix(file, ".json")) as described:
        with atomic_output(file) as temporary:
            write = _write_onnx if suffix == ".onnx" else _write_program
            with _refuse_failure(model, suffix):
                parity = check_parity(own, write(network, manifest, temporary), images, most)
            facts = manifest.to_dict() | {
                "file": name,
                "file_sha256": hash_file(temporary),
                "parity": parity,
            }
        described.write_text(json_text(facts) + "\n", encoding="utf-8")
    return file


def _import_exporter(module: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise MissingDependencyError(
            f"exporting to ONNX needs {module}, which can't be imported ({error}); install it with: pip "
            'install "medimg[export]"'
        ) from error


def _copy_to_cpu(model: TransferClassifier) -> TransferClassifier:
    """Return a copy on the CPU in evaluation mode, with merged adapters; single precision is expected."""
    types = sorted({str(p.dtype) for p in model.parameters() if p.is_floating_point()} - {"torch.float32"})
    if types:
        raise CheckpointError(
            f"the model has parameters of {', '.join(types)}; expected torch.float32: use model.float(), and "
            "calibrate it again"
        )
    return copy.deepcopy(merged_copy(model)).cpu().eval().requires_grad_(False)


def _check_file_size(model: TransferClassifier) -> None:
    size = sum(value.numel() * value.element_size() for value in model.state_dict().values())
    if size > 0.95 * MOST_BYTES:
        raise CheckpointError(
            f"the model has {size / 1e9:.1f} GB of parameters, and an ONNX file at most "
            f"{MOST_BYTES / 1e9:.1f} GB: export it to .pt2"
        )


def _describe(model: TransferClassifier) -> Manifest:
    calibration = model.calibration
    return Manifest(
        backbone=model.backbone_name,
        classes=model.classes,
        task=model.task,
        pool=model.pool,
        preprocess=model.preprocess,
        calibration=None if calibration is None else replace(calibration, outliers=None),
        training_ranges=model.training_ranges,
        outputs=list_outputs(model),
        model_sha256=model_digest(merged_copy(model)),
        versions={"torch": str(torch.__version__)},
    )


@contextmanager
def _refuse_failure(model: TransferClassifier, suffix: str) -> Iterator[None]:
    """Raise what exporters raise, of any type, as CheckpointError."""
    try:
        with warnings.catch_warnings():
            # of deprecated functions that libraries call
            warnings.simplefilter("ignore")
            yield
    except (MedimgError, MemoryError):
        raise
    except Exception as error:
        raise CheckpointError(
            f"{model.backbone_name} can't be exported to {suffix}: {printable_error(_find_cause(error))}; "
            "expected a network of operators that the format has, without branches that depend on values; "
            "the user guide has a table of networks"
        ) from error


def _find_cause(error: Exception) -> Exception:
    """Return the error behind those by which exporters say in which of their steps it happened."""
    while isinstance(error.__cause__, Exception):
        error = error.__cause__
    return error


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Let attention layers compute what is traced, not call one fused operator."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _make_example(network: PortableNetwork) -> torch.Tensor:
    """Return intensities of a shape by which no axis of any length is taken for a fixed one."""
    free = (3,) if network.pool == "none" else (2, 3)
    generator = torch.Generator().manual_seed(0)
    return torch.rand(*free, network.channels, *network.size, generator=generator)


def _write_onnx(network: PortableNetwork, manifest: Manifest, path: Path) -> Run:
    names = [name for name in manifest.input_shape if isinstance(name, str)]
    with _plain_attention(), torch.no_grad():
        program = torch.onnx.export(
            network,
            (_make_example(network),),
            dynamo=True,
            opset_version=_OPSET,
            input_names=[INPUT],
            output_names=list(manifest.outputs),
            dynamic_shapes=(dict(enumerate(names)),),
            verbose=False,
        )
    assert program is not None  # as it is by the exporter of programs
    _remove_traces(program.model)
    program.model.producer_name = "medimg"
    program.model.metadata_props[KEY] = manifest.to_json()
    program.save(path, external_data=False)
    seal_file(path)
    try:
        # as it will be used, so that no file is written which is refused
        return OnnxClassifier(path)
    except CheckpointError as error:
        # the name without that of a temporary folder
        raise CheckpointError(f"{manifest.backbone}: {str(error).replace(str(path), path.name)}") from error


def _remove_traces(model: Any) -> None:
    """Remove where in which file each node comes from: paths of this machine, and half of a small file."""
    for graph in (model.graph, *(function.graph for function in model.functions.values())):
        for node in graph.all_nodes():
            node.metadata_props.clear()
            node.doc_string = None
            for value in node.outputs:
                value.metadata_props.clear()
        for value in (*graph.inputs, *graph.initializers.values()):
            value.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.metadata_props.clear()


def _write_program(network: PortableNetwork, manifest: Manifest, path: Path) -> Run:
    example = _make_example(network)
    axes = len(example.shape) - 3
    with _plain_attention(), torch.no_grad():
        program = torch.export.export(
            network,
            (example,),
            dynamic_shapes=(dict.fromkeys(range(axes), torch.export.Dim.DYNAMIC),),
            strict=False,
        )
    # an example would be a pickle in the file, and traces are paths of this machine
    program._example_inputs = None
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    with path.open("wb") as opened:
        torch.export.save(program, opened, extra_files={f"{KEY}.json": manifest.to_json()})
    # this file alone, which was just written: to load any other one may run code
    loaded = torch.export.load(path).module()

    def run(images: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        with torch.inference_mode():
            outputs = loaded(torch.from_numpy(images))
        return {name: value.numpy() for name, value in zip(manifest.outputs, outputs, strict=True)}

    return run
