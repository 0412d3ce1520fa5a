"""What mypy finds in a user's script; here, mypy calls each comment unused whose mistake it does not find."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import medimg
from medimg.errors import PreprocessError

VOLUME = medimg.Volume(np.zeros((1, 2, 8, 8), np.int16), np.eye(4), "CT", "HU")

SCRIPT = """\
import medimg

medimg.to_tensor("scan.dcm", widnow="lung")  # typo
medimg.to_tensor("scan.dcm", channels="singel")  # typo
medimg.to_tensor("scan.dcm", fit="padd")  # typo
medimg.to_tensor("scan.dcm", size="224")  # typo
medimg.to_tensor("scan.dcm", dims=4)  # typo
medimg.to_tensor("scan.dcm", slices="al")  # typo
medimg.to_tensor("scan.dcm", window=(1.0, "a"))  # typo
medimg.Preprocess(orientation="displayed")  # typo
medimg.Preprocess(sise=224)  # typo
medimg.Preprocess().replace(spacign=1.0)  # typo
medimg.Preprocess().replace(mean="imagenet")  # typo
medimg.Preprocess().fingerprnt  # typo
medimg.colate([])  # typo
data = medimg.ImageDataset.from_folder("scans")
joined = medimg.ImageDataset.concat({"Lyon": data[:3], "Bern": data[data.labels == 1]}, patients="separate")
medimg.ImageDataset.concat([data], patients="seperate")  # typo
medimg.cross_validate(medimg.load("model"), joined, fine_tune={"epoch": 3})  # typo
medimg.cross_validate(medimg.load("model"), joined, fine_tune={"lr": "high"})  # typo
medimg.cross_validate(medimg.load("model"), joined, fine_tune={"epochs": 3, "lr": 1e-4}, keep_models=True)
tensor = medimg.to_tensor("scan.dcm", window=(-600, 1500), channels="single", mean=None, dims=3)
recipe = medimg.Preprocess(window=((-600, 1500), "bone", "dicom:1"), fill=0.5).replace(size=32, mean=0.5)
batch = medimg.collate([(tensor, 1)])
images = batch.images.shape
"""


def test_misspelled_keywords_are_found_before_and_at_run_time() -> None:
    with pytest.raises(PreprocessError, match="widnow"):
        medimg.to_tensor(VOLUME, widnow="lung")  # type: ignore[call-arg]
    with pytest.raises(PreprocessError, match="channels"):
        medimg.to_tensor(VOLUME, channels="singel")  # type: ignore[arg-type]
    with pytest.raises(PreprocessError, match="size"):
        medimg.to_tensor(VOLUME, size="224")  # type: ignore[arg-type]
    with pytest.raises(PreprocessError, match="dims"):
        medimg.to_tensor(VOLUME, dims=4)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="spacign"):
        medimg.Preprocess().replace(spacign=1.0)  # type: ignore[call-arg]


@pytest.mark.slow
def test_mypy_finds_each_mistake_of_a_script_and_nothing_else(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    root = Path(medimg.__file__).parent.parent
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        f"--config-file={root / 'pyproject.toml'}",
        str(script),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root)
    found = {int(line) for line in re.findall(r"script\.py:(\d+): error", done.stdout)}
    expected = {n for n, line in enumerate(SCRIPT.splitlines(), 1) if line.endswith("# typo")}
    assert found == expected, done.stdout + done.stderr
