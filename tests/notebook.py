"""Notebooks that tests write and execute, and what their cells show."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest


@dataclass(frozen=True)
class Cell:
    """Outputs of an executed cell."""

    source: str
    outputs: list[Any]

    def shown(self, mime: str) -> list[str]:
        """Return the outputs of a type, with those of ``display``."""
        return [o["data"][mime] for o in self.outputs if mime in o.get("data", {})]

    @property
    def pngs(self) -> list[bytes]:
        return [base64.b64decode(text) for text in self.shown("image/png")]

    @property
    def text(self) -> str:
        """Return what the cell wrote to stdout and stderr."""
        return "".join(o["text"] for o in self.outputs if o["output_type"] == "stream")


def execute(sources: list[str], folder: Path) -> list[Cell]:
    """Execute cells in a fresh kernel, in a folder."""
    nbformat = pytest.importorskip("nbformat", reason="notebooks need nbformat")
    nbclient = pytest.importorskip("nbclient", reason="notebooks are executed by nbclient")
    pytest.importorskip("ipykernel", reason="notebooks are executed by ipykernel")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    client = nbclient.NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    client.execute()
    return [Cell(cell["source"], cell["outputs"]) for cell in notebook["cells"]]
