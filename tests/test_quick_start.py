"""The page *Quick start*: its script and what follows it, run as they are written, with fewer patients."""

from __future__ import annotations

import re
import textwrap
import webbrowser
from pathlib import Path

import matplotlib
import pytest
import torch

import medimg

PAGE = Path(medimg.__file__).parents[1] / "docs" / "quick_start.rst"


def test_the_quick_start_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = re.findall(r"\.\. code-block:: python\n\n((?:   .*\n|\n)+)", PAGE.read_text(encoding="utf-8"))
    script, later, _ = (textwrap.dedent(block) for block in found)
    assert "patients=120" in script
    script = script.replace("patients=120", "patients=24").replace("(160, 144)", "(80, 72)")
    opened: list[str] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(webbrowser, "open", opened.append)
    matplotlib.use("agg")
    torch.manual_seed(0)
    names: dict[str, object] = {}
    exec(script + later, names)
    assert opened == [(tmp_path / "report.html").as_uri()]
    assert "auroc" in capsys.readouterr().out
    assert medimg.load(tmp_path / "model.safetensors").classes == names["data"].classes  # type: ignore[attr-defined]  # a dataset
