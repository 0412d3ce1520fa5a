"""
Reads hostile files, each in a process of its own; a script that test_malformed.py starts.

Takes a line of JSON for each task, ``{"path": …, "copies": n, "seed": s}``: the file as it is, or n damaged
copies. Answers with a line of JSON for each read.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import signal
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

SECONDS = 20
MOST_BYTES = 2 * 2**30


def read_here(path: Path) -> str:
    """Return "volume", the name of a MedimgError, or what breaks the rule."""
    import medimg
    from medimg.errors import MedimgError, MedimgWarning

    warnings.simplefilter("error")
    warnings.simplefilter("ignore", MedimgWarning)
    try:
        index = medimg.scan(path, progress=False)
        for series in index:
            repr(series.read(on_missing="keep", on_duplicate="keep"))
        medimg.read(path)
    except MedimgError as error:
        return type(error).__name__ if str(error) else f"BREAKS: {type(error).__name__} without a message"
    # any other is what is looked for
    except BaseException as error:
        return f"BREAKS: {type(error).__name__}: {str(error)[:200]}"
    return "volume"


def in_child(path: Path) -> dict[str, Any]:
    """Fork, read with limits, and tell how it ended, how long it took, and how much memory it held."""
    out, into = os.pipe()
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        os.close(out)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (used + MOST_BYTES, used + MOST_BYTES))
        signal.alarm(SECONDS)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        os.write(into, read_here(path).encode()[:4000])
        os._exit(0)
    os.close(into)
    with os.fdopen(out, "rb") as pipe:
        outcome = pipe.read().decode(errors="replace")
    _, status, usage = os.wait4(child, 0)
    if os.WIFSIGNALED(status):
        outcome = f"BREAKS: ended by {signal.Signals(os.WTERMSIG(status)).name}"
    seconds = time.monotonic() - start
    peak = usage.ru_maxrss * 1024
    if peak > MOST_BYTES:
        outcome = f"BREAKS: {peak >> 20} MB of memory"
    return {"outcome": outcome or "BREAKS: no answer", "seconds": round(seconds, 2), "peak": peak >> 20}


def answer(task: dict[str, Any], folder: Path) -> None:
    from medimg.testing import damaged

    path = Path(task["path"])
    if not task.get("copies"):
        print(json.dumps({**task, **in_child(path)}), flush=True)
        return
    copy = folder / path.name
    contents = damaged(path.read_bytes(), count=task["copies"], seed=task["seed"])
    for number, content in enumerate(contents):
        copy.write_bytes(content)
        print(json.dumps({**task, "copy": number, **in_child(copy)}), flush=True)


def main() -> None:
    # loaded once, so that a child only forks
    import multiprocessing.synchronize  # noqa: F401

    import imagecodecs
    import nibabel  # noqa: F401
    import SimpleITK  # noqa: F401

    import medimg
    import medimg.testing

    # resolved here, and not in each child
    _ = medimg.read, medimg.scan
    for name in ("jpeg8", "jpeg2k", "htj2k", "jpegls", "packbits", "jpegxl", "deflate"):
        getattr(imagecodecs, f"{name}_decode")
    # or each child copies what its collector looks at
    gc.collect()
    gc.freeze()
    with tempfile.TemporaryDirectory() as folder:
        for line in sys.stdin:
            answer(json.loads(line), Path(folder))


if __name__ == "__main__":
    main()
