"""Where a training stands, written after every epoch, so that it goes on after a break."""

from __future__ import annotations

import hashlib
import json
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch

from medimg.errors import CheckpointError, MedimgWarning, TrainingError
from medimg.models.safetensors_file import read_header, read_tensors, write

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    from torch import Tensor

    from medimg.data.protocols import LabeledDataset

__all__ = ["FILE", "ResumeState", "data_digest", "find_progress", "from_jsonable", "jsonable", "part"]

#: Name of the file in the output folder.
FILE: Final = "resume.safetensors"

_KEY: Final = "medimg-training"
_SCHEMA: Final = 1


@dataclass(slots=True)
class ResumeState:
    """
    All that a training needs to go on.

    Parameters
    ----------
    header : dict
        ``epochs_done``, ``settings``, ``data``, ``recorder``, and of the phase that has not ended
        ``schedule``, ``groups``, ``precision`` and ``callbacks``.
    tensors : dict of str to Tensor
        "model.…", "best.…", "ema.…", "terms.…", "optimizer.<n>.<name>".
    """

    header: dict[str, Any]
    tensors: dict[str, Tensor] = field(repr=False)

    def save(self, path: Path) -> None:
        """Write the file, as a whole or not at all."""
        write(path, _KEY, {**self.header, "schema": _SCHEMA}, self.tensors)

    @classmethod
    def load(cls, path: Path) -> ResumeState:
        """
        Read what :meth:`save` wrote.

        Raises
        ------
        CheckpointError
            If the file is damaged, was changed, or is no such file.
        """
        header = read_header(path, _KEY, "the state of a training that fine_tune(output=...) wrote")
        if header.get("schema") != _SCHEMA:
            raise CheckpointError(
                f"{path} was written by another version of medimg (schema {header.get('schema')!r}, expected "
                f"{_SCHEMA}): resume with that version, or train anew"
            )
        return cls(header, read_tensors(path, header))


def find_progress(resume: bool | str | os.PathLike[str] | None, output: Path | None) -> Path | None:
    """
    Return the file that a training goes on from.

    Parameters
    ----------
    resume : bool, path-like or None
        True: the one in the output folder, if there is one; a path: that file, or the one in that folder.
    output : Path or None
        The output folder.

    Returns
    -------
    Path or None
        None to start anew.

    Raises
    ------
    TrainingError
        If there is no such file, or True stands without an output folder.
    """
    if resume is None or resume is False:
        return None
    if resume is True:
        if output is None:
            raise TrainingError("resume=True needs output=, the folder of the training that was cut off")
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


def part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return those tensors whose names start with a prefix and a dot, without these."""
    return {n.removeprefix(f"{prefix}."): v for n, v in tensors.items() if n.startswith(f"{prefix}.")}


def data_digest(data: LabeledDataset | None) -> str | None:
    """
    Return what tells a data set from another: a hash of its labels, series and recipe.

    Returns
    -------
    str or None
        32 hexadecimal digits, from which nothing can be read; None for None.
    """
    if data is None:
        return None
    digest = hashlib.sha256(data.preprocess.fingerprint.encode())
    digest.update(data.labels.tobytes())
    for name in ("series_uids", "patients"):
        digest.update("\0".join(getattr(data, name, ())).encode(errors="surrogatepass"))
    return digest.hexdigest()[:32]


def jsonable(state: Any, what: str) -> Any:
    """
    Return a state that JSON can hold; tensors become lists, what can't be held is left out with a warning.

    Parameters
    ----------
    state : object
        Of a callback.
    what : str
        What to call it in the warning.
    """
    try:
        return json.loads(json.dumps(state, default=_encoded))
    except TypeError:
        warnings.warn(
            f"the state of {what} can't be written down: after resume= it starts anew",
            MedimgWarning,
            stacklevel=2,
        )
        return None


def _encoded(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return {"tensor": value.tolist(), "dtype": str(value.dtype).removeprefix("torch.")}
    raise TypeError


def from_jsonable(state: Any) -> Any:
    """Return what :func:`jsonable` was given, with its tensors."""
    if isinstance(state, dict):
        if state.keys() == {"tensor", "dtype"}:
            dtype = getattr(torch, str(state["dtype"]), None)
            if not isinstance(dtype, torch.dtype):
                raise CheckpointError(f"the state names a type {state['dtype']!r} that torch does not have")
            return torch.tensor(state["tensor"], dtype=dtype)
        return {name: from_jsonable(value) for name, value in state.items()}
    return [from_jsonable(value) for value in state] if isinstance(state, list) else state
