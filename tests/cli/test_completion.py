"""``medimg completion``."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from medimg.cli.main import main


def complete(script: str, *words: str) -> list[str]:
    """What bash offers for the last word."""
    line = " ".join(f"'{word}'" for word in ("medimg", *words))
    code = (
        f'{script}\nCOMP_WORDS=({line})\nCOMP_CWORD={len(words)}\n_medimg\nprintf "%s\\n" "${{COMPREPLY[@]}}"'
    )
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    assert complete(script, "pre") == ["preview", "predict"]
    assert complete(script, "read", "--on-m") == ["--on-missing"]
    assert complete(script, "read", "--on-missing", "f") == ["fix"]
    assert complete(script, "evaluate", "--unit", "") == ["patient", "series", "image"]
    assert complete(script, "completion", "z") == ["zsh"]
    assert complete(script, "scan", "fold") == []


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_others_name_each_option(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for word in ("scan", "on-duplicate", "youden", "hirescam", "operating-point"):
        assert word in script
    if shutil.which(shell):
        subprocess.run([shell, "-n", "-c", script], check=True)
