"""A study of a few small synthetic images, run from the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

import medimg
from medimg.cli.main import main


@pytest.fixture(scope="session")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of CT series of three patients, with a text file among them."""
    folder = tmp_path_factory.mktemp("cli") / "scans"
    medimg.phantom.write_ct_dataset(folder, patients=3, slices=3, size=48, classes=["normal", "nodule"])
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.fixture(scope="session")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labels of X-rays of 16 patients."""
    folder = tmp_path_factory.mktemp("cli") / "xray"
    return medimg.phantom.write_xray_dataset(
        folder, patients=16, size=(56, 48), classes=["normal", "consolidation"]
    )


@pytest.fixture(scope="session")
def study(table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of ``medimg train``."""
    output = tmp_path_factory.mktemp("cli") / "run"
    command = ["train", str(table), "--path", "file", "--patient", "patient_id", "--output", str(output)]
    command += ["--backbone", "squeezenet1_1", "--weights", "none", "--size", "48", "--window", "percentile"]
    command += ["--fractions", "0.5", "0.25", "0.25", "--head-epochs", "0", "--epochs", "1"]
    assert main(command) == 0
    return output
