"""``medimg doctor``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import medimg
from medimg.cli.main import main
from medimg.io.dicom.header.transfer_syntax import SYNTAXES


def test_doctor_describes_the_installation(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "resnet18-f37072fd.pth").write_bytes(bytes(2_500_000))
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    assert main(["doctor", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["medimg"] == medimg.__version__
    assert facts["libraries"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert facts["weights"]["files"] == {"resnet18-f37072fd.pth": 2.5}
    assert {codec["uid"] for codec in facts["codecs"]} > set(SYNTAXES)
    assert facts["devices"][0].startswith("cpu")
    assert {"optuna", "timm", "torchxrayvision", "transformers"} < facts["extras"].keys()
    assert facts["problems"] == []


def test_a_missing_codec_is_a_problem(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import imagecodecs

    class Absent:
        available = False

    monkeypatch.setattr(imagecodecs, "JPEGLS", Absent)
    assert main(["doctor"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("JPEG-LS Lossless") and line.endswith("no") for line in lines)
    assert any(line.startswith("Problem: JPEG-LS Lossless has no decoder") for line in lines)
