"""Sessions of ONNX Runtime: the providers that were asked for, and the network that its file describes."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from medimg._validation import check_choice, printable, printable_error
from medimg.errors import CheckpointError, MissingDependencyError, TrainingError, also
from medimg.models.portable.manifest import INPUT

if TYPE_CHECKING:
    from medimg.models.portable.manifest import Manifest

__all__ = ["Provider", "check_interface", "check_providers", "import_runtime", "open_session"]

#: A name, or a name and options, as ONNX Runtime takes them.
Provider = str | tuple[str, dict[str, Any]]

_CPU: Final = "CPUExecutionProvider"


def import_runtime() -> Any:
    """Return the module; MissingDependencyError if it is not installed."""
    try:
        return import_module("onnxruntime")
    except ImportError as error:
        raise MissingDependencyError(
            f"OnnxClassifier needs onnxruntime, which can't be imported ({error}); install it with: pip "
            'install "medimg[export]", or onnxruntime alone'
        ) from error


def check_providers(onnxruntime: Any, providers: Any) -> list[Provider]:
    """Return providers that are there: ONNX Runtime would take another one without an error."""
    if providers is None:
        return [_CPU]
    if isinstance(providers, str) or not isinstance(providers, list | tuple) or not providers:
        raise also(TrainingError, TypeError)(
            f"providers must be a list of execution providers, or None; found {providers!r}"
        )
    there = onnxruntime.get_available_providers()
    for one in providers:
        check_choice("a provider", one[0] if isinstance(one, tuple) and one else one, there)
    return list(providers)


def open_session(onnxruntime: Any, file: str, data: bytes, providers: list[Provider], threads: int) -> Any:
    """Return a session on all of the providers; CheckpointError or TrainingError if there is none."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # nothing: errors are raised
    try:
        # it would print what fails, and take the CPU
        session = onnxruntime.InferenceSession(data, options, providers=providers, enable_fallback=False)
    except MemoryError:
        raise
    # the exceptions of ONNX Runtime have no common base
    except Exception as error:
        raise CheckpointError(f"ONNX Runtime can't load {file}: {printable_error(error)}") from error
    wanted = {one[0] if isinstance(one, tuple) else one for one in providers}
    missing = sorted(wanted - set(session.get_providers()))
    if missing:
        raise TrainingError(
            f"ONNX Runtime can't start {', '.join(missing)}; expected its driver and libraries: install "
            "those that this version of onnxruntime needs, or leave it out"
        )
    return session


def check_interface(file: str, session: Any, manifest: Manifest) -> None:
    """Refuse a network whose inputs and outputs are not those that the file describes."""
    inputs = [(one.name, one.type, list(one.shape)) for one in session.get_inputs()]
    wanted = manifest.input_shape
    free = len(wanted) - 3
    fits = (
        len(inputs) == 1
        and inputs[0][:2] == (INPUT, "tensor(float)")
        and len(inputs[0][2]) == len(wanted)
        and inputs[0][2][free:] == wanted[free:]
        and not any(isinstance(size, int) for size in inputs[0][2][:free])
    )
    names = {one.name for one in session.get_outputs()}
    if not fits or not set(manifest.outputs) <= names:
        raise CheckpointError(
            f"{file} has the inputs {printable(inputs)} and the outputs {printable(sorted(names))}; expected "
            f"{INPUT} of shape {wanted} and {', '.join(manifest.outputs)}, as its description says"
        )
