"""Resume file: the state of a training, written after every epoch."""

from __future__ import annotations

import json
import reprlib
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import torch

from medimg._validation import check_fields, check_path, stored_unit
from medimg.core.content_hash import content_hash, json_text
from medimg.data.cache.keys import hash_files
from medimg.errors import CheckpointError, MedimgWarning, TrainingError, also
from medimg.io.files.regular_file import is_folder_at, is_regular_file
from medimg.models.safetensors_file import read_header, read_tensors, write
from medimg.training.optimization.saved_state import UNSAVED, decode_state, encode_state, warn_unsaved
from medimg.training.optimization.sharding import shard_like, whole_tensors

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from medimg.data.protocols import LabeledDataset
    from medimg.io.series import Series
    from medimg.preprocessing.preprocess import Preprocess

__all__ = [
    "FILE",
    "RESULTS",
    "FitState",
    "ResumeState",
    "check_output",
    "data_digest",
    "find_resume_file",
    "list_results",
    "load",
    "refuse_results",
    "save",
]

#: Name of the file in the output folder.
FILE: Final = "resume.safetensors"
#: Names of the results of a training beside it.
RESULTS: Final = ("best.safetensors", "last.safetensors", "history.csv")

_CONTINUE: Final = "pass resume=True to continue it,"

_KEY: Final = "medimg-training"
#: Version 1, which lacks ``more``, ``weights`` and ``kept_statistics``, is still read.
_SCHEMA: Final = 2
_DIGITS: Final = 32
_THREADS: Final = 8


@dataclass(frozen=True, slots=True, eq=False)
class FitState:
    """State of one fit between two epochs: optimizer, schedule, gradient scaling, callbacks."""

    #: State of each parameter, by "<number>.<name>": tensors, and what is none.
    optimizer: dict[str, Tensor] = field(repr=False)
    values: dict[str, Any]
    groups: list[dict[str, Any]]
    schedule: dict[str, Any]
    precision: dict[str, Any]
    callbacks: dict[str, Any]
    #: Classes whose state no file holds, because it has objects.
    unsaved: list[str] = field(default_factory=list)

    @classmethod
    def capture(cls, trainer: Any) -> FitState:
        """Return the state of a Lightning trainer; a user's optimizer or schedule may hold objects."""
        one, schedule = trainer.optimizers[0], trainer.lr_scheduler_configs[0].scheduler
        optimizer = one.state_dict()
        flat = {
            f"{number}.{name}": value
            for number, values in optimizer["state"].items()
            for name, value in values.items()
        }
        rest = {name: value for name, value in flat.items() if not isinstance(value, torch.Tensor)}
        parts = {
            type(one).__name__: (rest, optimizer["param_groups"]),
            type(schedule).__name__: (schedule.state_dict(), None),
        }
        encoded = {name: [encode_state(part) for part in several] for name, several in parts.items()}
        unsaved = [name for name, several in encoded.items() if any(part is UNSAVED for part in several)]
        if unsaved:
            warn_unsaved(unsaved)
        (values, groups), (plan, _) = encoded.values()
        return cls(
            optimizer={name: value for name, value in flat.items() if isinstance(value, torch.Tensor)},
            values={} if unsaved else values,
            groups=[] if unsaved else groups,
            schedule={} if unsaved else plan,
            unsaved=unsaved,
            precision=trainer.precision_plugin.state_dict(),
            callbacks={
                key: _to_json(callback.state_dict(), type(callback).__name__)
                for key, callback in _key_callbacks(trainer.callbacks)
            },
        )

    def gather(self, *, keep: bool) -> Self:
        """Return the state with whole tensors, gathered from every process; without `keep`, with none."""
        return replace(self, optimizer=whole_tensors(self.optimizer, keep=keep))

    def restore_optimizer(self, optimizer: torch.optim.Optimizer, schedule: Any) -> None:
        """Restore optimizer and schedule."""
        if self.unsaved:
            raise TrainingError(
                "the training can't be resumed within a phase, because the state of "
                f"{', '.join(self.unsaved)} has objects that no file holds: pass overwrite=True "
                "instead of resume to start again"
            )
        state: dict[int, dict[str, Any]] = {}
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        for key, value in (self.optimizer | decode_state(self.values)).items():
            number, _, name = key.partition(".")
            divided = isinstance(value, torch.Tensor) and int(number) < len(parameters)
            own = shard_like(value, parameters[int(number)]) if divided else value
            state.setdefault(int(number), {})[name] = own
        try:
            optimizer.load_state_dict({"state": state, "param_groups": decode_state(self.groups)})
        except (ValueError, KeyError) as error:
            raise TrainingError(
                f"the resume file has the optimizer of another training ({error}): freeze the same layers as "
                "then, or pass overwrite=True instead of resume to start again"
            ) from error
        schedule.load_state_dict(decode_state(self.schedule))

    def restore_callbacks(self, trainer: Any) -> None:
        """Restore gradient scaling and callbacks of a Lightning trainer."""
        trainer.precision_plugin.load_state_dict(self.precision)
        for key, callback in _key_callbacks(trainer.callbacks):
            state = _from_json(self.callbacks.get(key))
            if state:
                callback.load_state_dict(state)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ResumeState:
    """Content of a resume file: progress, what identifies the training, history, weights."""

    phase: int
    done: int
    settings: dict[str, Any]
    adapt: list[dict[str, Any]]
    data: dict[str, str | None]
    #: Further settings that change the result, by name; None in schema 1.
    more: dict[str, Any] | None
    #: Name and SHA-256 of the initial weights; None in schema 1.
    weights: list[str | None] | None
    #: Where these come from; None in files written before.
    weights_chain: list[dict[str, Any]] | None
    #: BatchNorm layers whose statistics are kept; None in schema 1.
    kept_statistics: list[str] | None
    #: Numbers of epochs after which the training had ended before; none in files written before.
    ends: list[int]
    history: dict[str, Any]
    model: Mapping[str, Tensor] = field(repr=False)
    best: Mapping[str, Tensor] = field(repr=False)
    terms: Mapping[str, Tensor] = field(repr=False)
    #: Of a loss of the user's own; empty in files written before.
    loss: Mapping[str, Tensor] = field(repr=False)
    #: Average of the weights; empty if there is none yet.
    average: Mapping[str, Tensor] = field(repr=False)
    #: Of a phase under way.
    fit: FitState | None


def save(state: ResumeState, path: Path) -> None:
    """Write a resume file, atomically."""
    tensors = {
        f"{prefix}.{name}": value
        for prefix, values in (
            ("model", state.model),
            ("best", state.best),
            ("terms", state.terms),
            ("loss", state.loss),
            ("ema", state.average),
            ("optimizer", state.fit.optimizer if state.fit is not None else {}),
        )
        for name, value in values.items()
    }
    header = {
        "schema": _SCHEMA,
        "phase": state.phase,
        "done": state.done,
        "settings": state.settings,
        "adapt": state.adapt,
        "data": state.data,
        "more": state.more,
        "weights": state.weights,
        "weights_chain": state.weights_chain,
        "kept_statistics": state.kept_statistics,
        "ends": state.ends,
        "recorder": state.history,
    }
    if state.fit is not None:
        header |= {
            "groups": state.fit.groups,
            "optimizer_values": state.fit.values,
            "unsaved": state.fit.unsaved,
            "schedule": state.fit.schedule,
            "precision": state.fit.precision,
            "callbacks": state.fit.callbacks,
        }
    write(path, _KEY, header, tensors)


def load(path: Path) -> ResumeState:
    """Read a resume file; raise CheckpointError if it is damaged, changed, or another type of file."""
    header = read_header(path, _KEY, "the state of a training that fine_tune(output=...) wrote")
    if header.get("schema") not in (1, _SCHEMA):
        raise CheckpointError(
            f"{path} was written by another version of medimg (schema {header.get('schema')!r}, expected "
            f"at most {_SCHEMA}): resume with that version, or start a new training"
        )
    _check_content(header, path)
    tensors = read_tensors(path, header)

    def select(prefix: str) -> dict[str, Tensor]:
        start = f"{prefix}."
        return {n.removeprefix(start): v for n, v in tensors.items() if n.startswith(start)}

    fit = None
    if "groups" in header:
        fit = FitState(
            optimizer=select("optimizer"),
            values=header.get("optimizer_values", {}),
            unsaved=header.get("unsaved", []),
            groups=header["groups"],
            schedule=header["schedule"],
            precision=header["precision"],
            callbacks=header["callbacks"],
        )
    return ResumeState(
        phase=header["phase"],
        done=header["done"],
        settings=header["settings"],
        adapt=header["adapt"],
        data=header["data"],
        more=header.get("more"),
        weights=header.get("weights"),
        weights_chain=header.get("weights_chain"),
        kept_statistics=header.get("kept_statistics"),
        ends=header.get("ends", []),
        history=header["recorder"],
        model=select("model"),
        best=select("best"),
        terms=select("terms"),
        loss=select("loss"),
        average=select("ema"),
        fit=fit,
    )


#: Types of the fields of a header; those of a fit are there while a phase is under way.
_TYPES: Final[Mapping[str, Any]] = {
    "phase": int,
    "done": int,
    "settings": dict,
    "adapt": list,
    "data": dict,
    "recorder": dict,
}
_FIT_TYPES: Final[Mapping[str, Any]] = {
    "groups": list,
    "schedule": dict,
    "precision": dict,
    "callbacks": dict,
}
_LATER_TYPES: Final[Mapping[str, Any]] = {
    "more": dict | None,
    "weights": list | None,
    "weights_chain": list | None,
    "kept_statistics": list | None,
    "ends": list,
    "optimizer_values": dict,
    "unsaved": list,
}
_RECORDER_TYPES: Final[Mapping[str, Any]] = {
    "rows": list,
    "best_score": list,
    "best_epoch": int,
    "monitor": str | None,
    "waited": int,
    "summary": dict | None,
}
#: Types of what is in lists.
_INNER_TYPES: Final[Mapping[str, Any]] = {
    "rows": dict,
    "best_score": float | int,
    "ends": int,
    "kept_statistics": str,
    "weights": str | None,
    "weights_chain": dict,
    "groups": dict,
    "unsaved": str,
}


def _check_content(header: Mapping[str, Any], path: Path) -> None:
    """Raise CheckpointError if a field of a header is missing, or is not what was written."""
    wanted = {**_TYPES, **(_FIT_TYPES if "groups" in header else {})}
    try:
        check_fields("the header", header, wanted, others=True, error=CheckpointError)
        later = {name: kind for name, kind in _LATER_TYPES.items() if name in header}
        _check_types(header, {**wanted, **later})
        recorder = check_fields(
            "recorder", header["recorder"], _RECORDER_TYPES, others=True, error=CheckpointError
        )
        _check_types(recorder, _RECORDER_TYPES)
        for name, length in (("weights", 2), ("best_score", 2)):
            found = recorder.get(name, header.get(name))
            if found is not None and len(found) != length:
                raise CheckpointError(f"{name} must have {length} values; found {len(found)}")
    except CheckpointError as error:
        raise CheckpointError(f"{path} has no sound state of a training: {error}") from error


def _check_types(values: Mapping[str, Any], types: Mapping[str, Any]) -> None:
    for name, kind in types.items():
        value = values[name]
        inner = value if isinstance(value, list) and name in _INNER_TYPES else ()
        if not _is_of_type(value, kind) or not all(_is_of_type(one, _INNER_TYPES[name]) for one in inner):
            raise CheckpointError(f"{name} is not what was written; found {reprlib.repr(value)}")


def _is_of_type(value: object, kind: Any) -> bool:
    """Whether a value of JSON has a type; whole numbers count something, and a truth value is none."""
    negative = kind is int and isinstance(value, int) and value < 0
    return isinstance(value, kind) and not isinstance(value, bool) and not negative


def find_resume_file(resume: bool | str | os.PathLike[str] | None, output: Path | None) -> Path | None:
    """Return the file that ``resume=`` names, None for a new training; TrainingError if it is missing."""
    if resume is None or resume is False:
        return None
    if resume is True:
        if output is None:
            raise TrainingError("resume=True needs output=, the folder of the interrupted training")
        path = output / FILE
        return path if is_regular_file(path) else None
    path = check_path("resume", resume)
    path = path / FILE if is_folder_at(path) else path
    if not is_regular_file(path):
        raise also(TrainingError, FileNotFoundError)(
            f"resume={str(resume)!r}: there is no file {path}; it is written after each epoch of a training "
            "with output="
        )
    return path


def list_results(folder: Path) -> list[str]:
    """Return the names of the files in a folder that hold what a training has reached."""
    found = [name for name in RESULTS if is_regular_file(folder / name)]
    return [*found, FILE] if _has_epochs(folder / FILE) else found


def _has_epochs(path: Path) -> bool:
    """Whether a resume file has the weights of an epoch; a damaged one may have them."""
    if not is_regular_file(path):
        return False
    try:
        return bool(read_header(path, _KEY, "the state of a training").get("recorder", {}).get("rows", True))
    except CheckpointError:
        return True


def check_output(
    folder: Path, resume: bool | str | os.PathLike[str] | None, *, overwrite: bool, name: str = "training"
) -> None:
    """Raise TrainingError if a training would replace the results of an earlier one."""
    if resume is True and overwrite:
        raise TrainingError(
            f"resume=True continues the {name} in output=, and overwrite=True replaces it: pass one of them"
        )
    if overwrite:
        return
    source = find_resume_file(resume, folder)
    if source is not None and source.resolve() == (folder / FILE).resolve():
        return
    if found := list_results(folder):
        way = f"it has no {FILE} to continue; pass" if resume is True else _CONTINUE
        raise refuse_results(folder, found, name, way=way)


def refuse_results(folder: Path, found: Sequence[str], name: str, *, way: str = _CONTINUE) -> TrainingError:
    """Return the error of a folder with the results of an earlier training, and the ways out."""
    return TrainingError(
        f"{folder} has the results of an earlier {name} ({', '.join(found)}), which this one would replace: "
        f"{way} overwrite=True to replace it, or another folder as output="
    )


def data_digest(data: LabeledDataset | None, recipe: Preprocess | None = None) -> str | None:
    """
    Return a hash of images, labels and recipe of a dataset (32 hexadecimal digits); None for None.

    Files count by their content, not by their names, so that a training goes on when they were moved.
    `recipe` is by default that of the dataset.
    """
    if data is None:
        return None
    recipe = recipe or data.preprocess
    series = getattr(data, "series", None)
    named: list[Any] = [list(getattr(data, name, ())) for name in ("series_uids", "patients")]
    facts = [
        [recipe.fingerprint, stored_unit(data.unit), data.task, list(data.classes)],
        asdict(data.policies) if series is not None and hasattr(data, "policies") else None,
        list(getattr(data, "domains", ())),
        named if series is None else [_hash_contents(series), list(getattr(data, "image_indices", ()))],
    ]
    return content_hash([json_text(facts), data.labels.tobytes()])[:_DIGITS]


def _hash_contents(several: Sequence[Series]) -> list[str]:
    """Return a digest of the files of each series; of its UID if they are not on disk."""
    distinct = list({id(series): series for series in several}.values())

    def find(series: Series) -> str:
        # the start of a DICOM file identifies it
        found = hash_files(series, "undated" if series.format == "DICOM" else "blocks")
        return content_hash(json_text([series.uid] if found is None else sorted(found)))[:_DIGITS]

    with ThreadPoolExecutor(_THREADS) as pool:
        digests = dict(zip(map(id, distinct), pool.map(find, distinct), strict=True))
    return [digests[id(series)] for series in several]


def _key_callbacks(callbacks: Sequence[Any]) -> list[tuple[str, Any]]:
    """Return callbacks with keys that are the same in another process, whatever comes between them."""
    counts: Counter[str] = Counter()
    keyed = []
    for callback in callbacks:
        key = str(callback.state_key)
        keyed.append((f"{key} {counts[key]}", callback))
        counts[key] += 1
    return keyed


def _to_json(state: Any, name: str) -> Any:
    """Return a callback's state in JSON's types, tensors as lists; None, with a warning, if it has others."""

    def encode(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return {"tensor": value.tolist(), "dtype": str(value.dtype).removeprefix("torch.")}
        raise TypeError

    try:
        return json.loads(json.dumps(state, default=encode))
    except TypeError:
        warnings.warn(
            f"the state of {name} can't be saved as JSON: after resume= it starts from its initial state",
            MedimgWarning,
            stacklevel=2,
        )
        return None


def _from_json(state: Any) -> Any:
    """Return what ``_to_json`` was given, tensors included."""
    if isinstance(state, dict):
        if state.keys() == {"tensor", "dtype"}:
            dtype = getattr(torch, str(state["dtype"]), None)
            if not isinstance(dtype, torch.dtype):
                raise CheckpointError(f"the state has a dtype that torch does not know: {state['dtype']!r}")
            return torch.tensor(state["tensor"], dtype=dtype)
        return {name: _from_json(value) for name, value in state.items()}
    return [_from_json(value) for value in state] if isinstance(state, list) else state
