"""``medimg``: exit codes, messages, streams."""

from __future__ import annotations

import argparse
import inspect
import json
import os
import shlex
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

import medimg
from medimg.cli.main import main, make_parser
from medimg.errors import MedimgWarning

ROOT = Path(medimg.__file__).parents[1]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "medimg", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )


def commands() -> dict[str, argparse.ArgumentParser]:
    (found,) = (a for a in make_parser()._actions if isinstance(a, argparse._SubParsersAction))
    return dict(found.choices)


def test_help_loads_nothing_heavy() -> None:
    done = run("--help")
    assert done.returncode == 0
    for command in (
        "scan",
        "info",
        "read",
        "preview",
        "train",
        "predict",
        "evaluate",
        "explain",
        "serve",
        "watch",
        "doctor",
    ):
        assert f"\n    {command} " in done.stdout
    assert not any(f" {name}\n" in done.stderr for name in ("numpy", "torch", "pydicom", "pandas"))


def test_scan_loads_no_torch(scans: Path) -> None:
    done = run("scan", str(scans))
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(done.stdout.splitlines()) == 4
    assert " torch\n" not in done.stderr
    assert " pydicom\n" in done.stderr


def test_usage_errors_exit_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["unknown"], ["read", "one"], ["scan", "x", "--unknown"], ["scan", "x", "--js"]):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 2
    assert capsys.readouterr().out == ""


def test_errors_are_a_message_and_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(tmp_path / "absent.dcm")]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("medimg info: error: ")
    assert "absent.dcm" in line


def test_advice_is_for_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "labels.csv").write_text("path,label\n")
    arguments = ["train", str(tmp_path / "labels.csv"), "--weights", str(tmp_path / "absent.pth")]
    assert main([*arguments, "--output", str(tmp_path / "run")]) == 1
    message = capsys.readouterr().err
    assert "--weights none" in message
    assert "weights=None" not in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["scan", ""],
        ["scan", "x", "--index", ""],
        ["read", "x", ""],
        ["train", "labels.csv", "--output", " "],
        ["explain", "model", "x", "--out", ""],
    ],
)
def test_an_empty_path_is_not_the_working_folder(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "the path is empty" in capsys.readouterr().err


def test_any_name_of_a_file_can_be_printed(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xe9.txt")).write_text("text")
    for encoding in ("ascii", "utf-8"):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": encoding}
        done = subprocess.run(
            [sys.executable, "-m", "medimg", "scan", str(tmp_path), "--skipped", "--json"],
            capture_output=True,
            check=True,
            env=environment,
        )
        (skipped,) = json.loads(done.stdout)
        assert skipped["path"].endswith(("\udce9.txt", "é.txt"))


def test_escape_sequences_are_not_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(tmp_path / "a\x1b[31mred")]) == 1
    assert "\x1b" not in capsys.readouterr().err


def test_warnings_are_lines_on_stderr(
    scans: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scan = medimg.scan

    def warn(*arguments: object, **settings: object) -> object:
        warnings.warn("the first\x1b warning", MedimgWarning, stacklevel=1)
        return scan(scans)

    monkeypatch.setattr("medimg.io.scan.scan", warn)
    assert main(["scan", str(scans)]) == 0
    captured = capsys.readouterr()
    assert "medimg: warning: the first� warning\n" in captured.err
    assert "warning" not in captured.out


def test_an_interruption_is_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("medimg.io.scan.scan", interrupt)
    assert main(["scan", "folder"]) == 130
    assert capsys.readouterr().err == "medimg scan: interrupted\n"


def test_a_closed_pipe_ends_without_a_traceback(scans: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "medimg", "scan", str(scans)]
    piped = f"{shlex.join(command)} --columns path,uid | head -c 1"
    done = subprocess.run(["bash", "-c", piped], capture_output=True, text=True, check=False, env=environment)
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_an_output_that_cannot_be_written_is_named(
    scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    for out, reason in (("file/a.nii", "Not a directory"), ("folder.nii", "not a regular file")):
        (tmp_path / "folder.nii").mkdir(exist_ok=True)
        code = main(["read", str(scans), str(tmp_path / out), "--series", "0", "--force"])
        assert code == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert reason in line
        assert str(tmp_path) in line
        assert ".medimg-" not in line
        assert "Errno" not in line


def test_an_unknown_suffix_is_refused_before_reading(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["read", str(tmp_path / "absent"), str(tmp_path / "a.xyz")]) == 1
    assert "ends with '.xyz'; expected one of .nii.gz" in capsys.readouterr().err


def test_workers_are_positive(scans: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scan", str(scans), "--workers", "0"]) == 1
    assert "workers must be" in capsys.readouterr().err


#: Options of the command line alone.
OWN = {"help", "json", "force", "verbosity", "out", "html", "title", "run", "command"} | {
    "dicom_out",
    "dicom_kinds",
    "stow",
    "verify",
}


@pytest.mark.parametrize(
    ("command", "functions"),
    [
        ("scan", [medimg.scan]),
        ("read", [medimg.read, medimg.Volume.resample]),
        ("predict", [medimg.TransferClassifier.predict]),
        ("evaluate", [medimg.evaluate, medimg.ImageDataset.from_csv]),
        ("explain", [medimg.explain, medimg.read, medimg.Explanation.plot]),
        (
            "train",
            [
                medimg.fine_tune,
                medimg.calibrate,
                medimg.evaluate,
                medimg.TransferClassifier,
                medimg.Preprocess,
                medimg.split,
                medimg.ImageDataset.from_csv,
            ],
        ),
    ],
)
def test_names_and_defaults_are_those_of_python(command: str, functions: list[object]) -> None:
    known: dict[str, list[object]] = {}
    for function in functions:
        for name, parameter in inspect.signature(function).parameters.items():  # type: ignore[arg-type]  # callable
            known.setdefault(name, []).append(parameter.default)
    own = OWN | {
        "columns",
        "progress",
        "skipped",
        "reorient",
        "no_compress",
        "split",
        "patient",
        "output",
        "resume",
        "report_unit",
    }
    for action in commands()[command]._actions:
        if action.dest in own or not action.option_strings:
            continue
        assert action.dest in known, action.dest
        default = tuple(action.default) if isinstance(action.default, list) else action.default
        if default is not None:
            assert default in known[action.dest], action.dest
