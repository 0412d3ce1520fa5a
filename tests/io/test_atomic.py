"""Files that are written whole or not at all, and what writers that are killed leave."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from medimg.errors import CheckpointError
from medimg.io.files.atomic import atomic_path
from medimg.io.files.output import write_text
from medimg.models import safetensors_file

_WRITER = """
import sys, time
from pathlib import Path
from medimg.io.files.atomic import atomic_path
with atomic_path(Path(sys.argv[1])) as temporary:
    temporary.write_text("half")
    (temporary.parent / "more").write_text("what a library leaves")
    print("writing", flush=True)
    time.sleep(60)
"""


def start_writer(target: Path) -> subprocess.Popen[str]:
    writer = subprocess.Popen([sys.executable, "-c", _WRITER, str(target)], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    assert writer.stdout.readline() == "writing\n"
    return writer


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs signals and locks of files")
def test_what_a_killed_writer_leaves_is_removed(tmp_path: Path) -> None:
    with start_writer(tmp_path / "a") as writer:
        try:
            write_text(tmp_path / "b", "text")
            assert len(list(tmp_path.iterdir())) == 2, "its writer is at it"
        finally:
            writer.send_signal(signal.SIGKILL)
    assert len(list(tmp_path.iterdir())) == 2
    write_text(tmp_path / "b", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_writers_do_not_take_each_other_for_leftovers(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "a") as first, atomic_path(tmp_path / "b") as second:
        write_text(tmp_path / "c", "c")
        first.write_text("a")
        second.write_text("b")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]


def test_a_name_may_be_as_long_as_names_can_be(tmp_path: Path) -> None:
    write_text(tmp_path / ("x" * 255), "text")
    assert (tmp_path / ("x" * 255)).read_text() == "text"


@pytest.mark.parametrize("target", ["folder", "pipe"])
def test_what_is_no_file_is_not_replaced(tmp_path: Path, target: str) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="not a regular file"):
        write_text(tmp_path / target, "text")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "pipe"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit of the size of files")
def test_a_full_disk_is_an_error_of_the_system(tmp_path: Path) -> None:
    import resource

    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.getsignal(signal.SIGXFSZ)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            safetensors_file.write(tmp_path / "m", "key", {}, {"w": torch.zeros(9999)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert not list(tmp_path.iterdir())


def test_a_pipe_is_no_checkpoint(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="not a regular file"):
        safetensors_file.read_header(tmp_path / "pipe", "key", "a checkpoint")


def test_a_name_that_no_file_can_have_is_an_error_of_the_system(tmp_path: Path) -> None:
    for name in ("x" * 300, "a\0b"):
        with pytest.raises(OSError, match=r"null character|[Nn]ame too long"):
            write_text(tmp_path / name, "text")
