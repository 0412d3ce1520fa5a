"""Resume file: the state of a training, written after every epoch."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from medimg.errors import CheckpointError, TrainingError
from medimg.models.safetensors_file import read_header, read_tensors, write
from medimg.training._fit_state import FitState

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    from torch import Tensor

    from medimg.data.protocols import LabeledDataset

__all__ = ["FILE", "ResumeState", "data_digest", "find_resume_file", "load", "save"]

#: Name of the file in the output folder.
FILE: Final = "resume.safetensors"

_KEY: Final = "medimg-training"
_SCHEMA: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumeState:
    """Content of a resume file: progress, what identifies the training, history, weights."""

    phase: int
    done: int
    settings: dict[str, Any]
    adapt: list[dict[str, Any]]
    data: dict[str, str | None]
    history: dict[str, Any]
    model: Mapping[str, Tensor] = field(repr=False)
    best: Mapping[str, Tensor] = field(repr=False)
    terms: Mapping[str, Tensor] = field(repr=False)
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
        "recorder": state.history,
    }
    if state.fit is not None:
        header |= {
            "groups": state.fit.groups,
            "schedule": state.fit.schedule,
            "precision": state.fit.precision,
            "callbacks": state.fit.callbacks,
        }
    write(path, _KEY, header, tensors)


def load(path: Path) -> ResumeState:
    """Read a resume file; raise CheckpointError if it is damaged, changed, or another type of file."""
    header = read_header(path, _KEY, "the state of a training that fine_tune(output=...) wrote")
    if header.get("schema") != _SCHEMA:
        raise CheckpointError(
            f"{path} was written by another version of medimg (schema {header.get('schema')!r}, expected "
            f"{_SCHEMA}): resume with that version, or start a new training"
        )
    tensors = read_tensors(path, header)

    def select(prefix: str) -> dict[str, Tensor]:
        start = f"{prefix}."
        return {n.removeprefix(start): v for n, v in tensors.items() if n.startswith(start)}

    fit = None
    if "groups" in header:
        fit = FitState(
            optimizer=select("optimizer"),
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
        history=header["recorder"],
        model=select("model"),
        best=select("best"),
        terms=select("terms"),
        average=select("ema"),
        fit=fit,
    )


def find_resume_file(resume: bool | str | os.PathLike[str] | None, output: Path | None) -> Path | None:
    """Return the file that ``resume=`` names, None for a new training; TrainingError if it is missing."""
    if resume is None or resume is False:
        return None
    if resume is True:
        if output is None:
            raise TrainingError("resume=True needs output=, the folder of the interrupted training")
        path = output / FILE
        return path if path.is_file() else None
    path = Path(resume)
    path = path / FILE if path.is_dir() else path
    if not path.is_file():
        raise TrainingError(
            f"resume={str(resume)!r}: there is no file {path}; it is written after each epoch of a training "
            "with output="
        )
    return path


def data_digest(data: LabeledDataset | None) -> str | None:
    """Return a hash of a dataset's labels, series and recipe (32 hexadecimal digits); None for None."""
    if data is None:
        return None
    digest = hashlib.sha256(data.preprocess.fingerprint.encode())
    digest.update(data.labels.tobytes())
    for name in ("series_uids", "patients"):
        digest.update("\0".join(getattr(data, name, ())).encode(errors="surrogatepass"))
    return digest.hexdigest()[:32]
