"""Errors are also what Python's users catch, and say what was meant."""

import ast
import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest

import medimg
from medimg import errors
from medimg._validation import check_choice, check_number, check_whole_number, did_you_mean
from medimg.data.acquisition_tags import read_acquisition_tags
from medimg.data.items import make_policies
from medimg.errors import DatasetError, MedimgError, ReadError, TrainingError, also
from medimg.evaluation.subgroups import find_groups

MISSING = "/nowhere/at/all"
TABLE = pd.DataFrame({"path": ["a.png"], "Label": ["x"], "patient_id": ["1"]})

CASES: dict[str, tuple[Callable[[], Any], type[MedimgError], type[Exception], str]] = {
    "a file": (lambda: medimg.read(f"{MISSING}.dcm"), ReadError, FileNotFoundError, "there is no file"),
    "a name that no file can have": (
        lambda: medimg.read("/tmp/a\ud800b.dcm"), ReadError, FileNotFoundError, "there is no file",
    ),
    "a folder": (lambda: medimg.scan(MISSING), ReadError, FileNotFoundError, "there is no"),
    "a folder of classes": (
        lambda: medimg.ImageDataset.from_folder(MISSING),
        DatasetError, FileNotFoundError, "there is no folder",
    ),
    "a table": (
        lambda: medimg.ImageDataset.from_csv(f"{MISSING}.csv"),
        DatasetError, FileNotFoundError, "there is no file",
    ),
    "files of a table": (
        lambda: medimg.ImageDataset.from_csv(TABLE, label="Label", root=MISSING),
        DatasetError, FileNotFoundError, "have no file",
    ),
    "a checkpoint": (
        lambda: medimg.load(f"{MISSING}.safetensors"),
        errors.CheckpointError, FileNotFoundError, "check the path",
    ),
    "weights": (
        lambda: medimg.TransferClassifier("resnet18", classes=["a", "b"], weights=f"{MISSING}.pth"),
        errors.WeightsUnavailableError, FileNotFoundError, "there is no file",
    ),
    "a column": (
        lambda: medimg.ImageDataset.from_csv(TABLE, patient="patientid"),
        DatasetError, KeyError, "no column 'label', 'patientid'",
    ),
    "a similar column": (
        lambda: medimg.ImageDataset.from_csv(TABLE), DatasetError, KeyError, r"; did you mean 'Label'\?$",
    ),
    "a tag": (
        lambda: read_acquisition_tags([], ["Manufacturers"]),
        DatasetError, KeyError, r"did you mean 'Manufacturer'\?$",
    ),
    "a backbone": (
        lambda: medimg.TransferClassifier("ResNet-50", classes=["a", "b"], weights=None),
        TrainingError, KeyError, r"; did you mean 'resnet50'",
    ),
    "a window": (
        lambda: medimg.Window.preset("Lungs"), errors.PreprocessError, KeyError, r"; did you mean 'lung'\?$",
    ),
    "a window of a recipe": (
        lambda: medimg.Preprocess(window="lungs"),
        errors.PreprocessError, KeyError, r"did you mean 'lung'\?$",
    ),
    "a field of a recipe": (
        lambda: medimg.to_tensor(np.zeros(1), **cast("Any", {"windows": "lung"})),
        errors.PreprocessError, KeyError, "did you mean 'window'",
    ),
    "a choice": (
        lambda: check_choice("fit", "padd", ("pad", "crop")),
        TrainingError, ValueError, r"found 'padd'; did you mean 'pad'\?$",
    ),
    "a policy": (
        lambda: make_policies({"on_misssing": "warn"}),
        DatasetError, KeyError, r"did you mean 'on_missing'\?$",
    ),
    "a metric": (
        lambda: medimg.score([0, 1], [0.2, 0.7], n_resamples=2).metrics["AUROC"],
        DatasetError, KeyError, r"; did you mean 'auroc'\?$",
    ),
    "a metric of a class": (
        lambda: medimg.score([0, 1], [0.2, 0.7], classes=["no", "yes"], n_resamples=2).metrics["recall[ye]"],
        DatasetError, KeyError, r"; did you mean 'recall\[yes\]'\?$",
    ),
    "a similar subgroup": (
        lambda: find_groups(SimpleNamespace(series=(), modalities=(), domains=()), "by", "Scaner"),
        DatasetError, KeyError, r"; did you mean 'scanner'\?$",
    ),
    "a subgroup": (
        lambda: read_acquisition_tags([], ["Manufacturer", "PatientName"]),
        DatasetError, KeyError, "withheld",
    ),
    "a number": (lambda: check_number("lr", "1e-3"), TrainingError, TypeError, "lr must be a number"),
    "a number out of range": (lambda: check_number("lr", 0, above=0), TrainingError, ValueError, "above 0"),
    "a whole number": (lambda: check_whole_number("epochs", "3"), TrainingError, TypeError, "whole number"),
    "no model": (lambda: medimg.evaluate(cast("Any", "resnet50"), cast("Any", None)),
    DatasetError, TypeError, "found a|is a str"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_errors_are_also_built_in_ones(case: str) -> None:
    call, error, builtin, message = CASES[case]
    with pytest.raises(error, match=message) as caught:
        call()
    assert isinstance(caught.value, builtin)
    assert isinstance(caught.value, MedimgError)
    # KeyError would quote it
    assert str(caught.value) == caught.value.args[0]
    assert type(caught.value).__name__ == error.__name__


@pytest.mark.parametrize("name", errors.__all__)
def test_every_error_is_one_that_users_catch(name: str) -> None:
    error = getattr(errors, name)
    if not issubclass(error, MedimgError):
        return
    others = {base for base in error.__mro__ if base.__module__ == "builtins"} - {
        Exception,
        BaseException,
        object,
    }
    assert others or error is MedimgError
    assert str(error("it can't be read")) == "it can't be read"


@pytest.mark.parametrize("builtin", [KeyError, FileNotFoundError, TypeError, PermissionError, ValueError])
def test_errors_pass_between_processes(builtin: type[Exception]) -> None:
    for error in (DatasetError, ReadError, errors.WeightsUnavailableError):
        found = also(error, builtin)("a message")
        found.add_note("a note")
        copy = pickle.loads(pickle.dumps(found))
        assert type(copy) is type(found)
        assert (str(copy), copy.__notes__) == ("a message", ["a note"])


def test_errors_of_other_libraries_become_their_built_in_base() -> None:
    class OtherError(PermissionError):
        pass

    assert issubclass(also(ReadError, OtherError), PermissionError)
    assert not issubclass(also(ReadError, OtherError), OtherError)


def test_no_handler_for_built_in_errors_catches_our_own() -> None:
    """An error raised in a try block whose handlers name a built-in base of it would be caught by them."""
    root = Path(medimg.__file__).parent
    ours = {name for name in errors.__all__ if name.endswith("Error")}
    caught = []
    for path in root.rglob("*.py"):
        for block in (n for n in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(n, ast.Try)):
            handled = [
                {n.id for n in ast.walk(h.type) if isinstance(n, ast.Name)} if h.type else set()
                for h in block.handlers
            ]
            raised = {
                n.id
                for statement in block.body
                for r in ast.walk(statement)
                if isinstance(r, ast.Raise) and r.exc is not None
                for n in ast.walk(r.exc)
                if isinstance(n, ast.Name) and n.id in ours
            }
            for name in raised:
                bases = {base.__name__ for base in getattr(errors, name).__mro__}
                first = next((names for names in handled if names & bases), set())
                if first and not first & ours:
                    caught.append(f"{path.relative_to(root)}:{block.lineno} {name}")
    assert not caught


def test_did_you_mean() -> None:
    names = ["resnet18", "resnet50", "densenet121"]
    assert did_you_mean("resnet5", names, most=2).startswith("; did you mean 'resnet50' or")
    assert did_you_mean("vit", names) == did_you_mean(5, names) == did_you_mean("", names) == ""
    assert did_you_mean(" DENSENET121", names) == "; did you mean 'densenet121'?"


@pytest.mark.parametrize("error", [DatasetError, ReadError, TrainingError])
def test_errors_of_encodings_take_a_message(error: type[MedimgError]) -> None:
    for builtin in (UnicodeEncodeError, UnicodeDecodeError):
        made = also(error, builtin)("what was found")
        assert isinstance(made, ValueError)
        assert str(made) == "what was found"
        assert str(pickle.loads(pickle.dumps(made))) == "what was found"  # written here


def test_types_of_errors_that_are_also_others_are_passed_on() -> None:
    """As torch's workers do; one that can't be pickled would let the main process wait for ever."""
    made = also(ReadError, ConnectionError)
    assert pickle.loads(pickle.dumps(made)) is made
