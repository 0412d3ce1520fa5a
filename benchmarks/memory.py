"""
Peak memory of one candidate, in a process of its own.

``python -m benchmarks.memory COLUMN KIND SOURCE WARM`` does the work on `WARM`, a small source, which imports
and allocates what stays, then on `SOURCE`, and prints how many bytes the peak of the resident set lies above
what was there before, less the bytes of the result.
"""

from __future__ import annotations

import gc
import resource
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any, Final

from benchmarks.peers import CannotError, Job, task

__all__ = ["extra_bytes", "peak_memory", "reset_peak", "resident_memory"]

_STATUS: Final = Path("/proc/self/status")
_CLEAR: Final = Path("/proc/self/clear_refs")


def extra_bytes(column: str, kind: str, source: Path, warm: Path) -> int:
    """
    Peak memory beside the result, in bytes, measured in a fresh process.

    Parameters
    ----------
    column, kind : str
        Who, and what work.
    source : Path
        What to work on.
    warm : Path
        A small source of the same kind.

    Raises
    ------
    CannotError
        If the process fails.
    """
    command = [sys.executable, "-m", "benchmarks.memory", column, kind, str(source), str(warm)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CannotError((done.stderr.strip().splitlines() or ["the process died"])[-1][:200])
    return int(done.stdout.split()[-1])


def _measured(column: str, kind: str, source: Path, warm: Path) -> int:
    prepare = task(column, kind)
    prepare(Job(warm))()
    run = prepare(Job(source))
    gc.collect()
    reset_peak()
    before = resident_memory()
    result = run()
    return peak_memory() - before - int(_size(result))


def _size(result: Any) -> int:
    return int(result.nbytes)


def reset_peak() -> None:
    """Let the peak be what is resident now, where the system can."""
    if _CLEAR.exists():
        _CLEAR.write_text("5")  # proc(5): the peak becomes what is resident now


def resident_memory() -> int:
    """Return the bytes that are resident; where the system does not tell, the peak."""
    return _status("VmRSS") if _STATUS.exists() else peak_memory()


def _status(name: str) -> int:
    lines = _STATUS.read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def peak_memory() -> int:
    """Return the peak in bytes; where the system does not tell more, of the whole life of the process."""
    if _STATUS.exists():
        return _status("VmHWM")
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def main() -> None:
    """Print the bytes; the arguments are those of :func:`extra_bytes`."""
    warnings.simplefilter("ignore")
    column, kind, source, warm = sys.argv[1:]
    try:
        print(_measured(column, kind, Path(source), Path(warm)))
    except CannotError as reason:
        raise SystemExit(str(reason)) from None


if __name__ == "__main__":
    main()
