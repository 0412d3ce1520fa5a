"""
Medimg without its compiled core, in a process of its own.

``python -m benchmarks.peers.plain_medimg SOURCE`` scans a tree for each line that it is sent, and answers how
many images each series has.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["PlainScan", "main"]


class PlainScan:
    """
    A process that scans one tree again and again, and ends with this object.

    Parameters
    ----------
    source : Path
        The tree.

    Raises
    ------
    OSError
        If the process does not start, or uses the compiled core.
    """

    def __init__(self, source: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(source)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"MEDIMG_PURE": "1"},
        )
        weakref.finalize(self, _end, self._process)
        if self._answer() != "plain":
            raise OSError("the process has the compiled core")

    def __call__(self) -> list[int]:
        """Scan, and return how many images each series has."""
        if self._process.stdin is None:
            raise OSError("the process has no input")
        self._process.stdin.write("scan\n")
        self._process.stdin.flush()
        found: list[int] = json.loads(self._answer())
        return found

    def _answer(self) -> str:
        line = self._process.stdout.readline() if self._process.stdout else ""
        if not line:
            raise OSError("the process has ended")
        return line.strip()


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def main() -> None:
    """Say whether the compiled core is used, then scan at each line."""
    import medimg
    from medimg._native.library import load_library

    print("compiled" if load_library() else "plain", flush=True)
    gc.freeze()
    for _ in sys.stdin:
        index = medimg.scan(sys.argv[1], progress=False)
        print(json.dumps([series.shape[0] * series.shape[1] for series in index]), flush=True)
        del index
        gc.collect()


if __name__ == "__main__":
    main()
