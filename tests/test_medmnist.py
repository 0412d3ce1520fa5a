"""The published protocol, on files of the same form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import medmnist


def write(path: Path, labels: int, *, several: bool) -> None:
    rng = np.random.default_rng(0)
    parts: dict[str, Any] = {}
    for split, count in (("train", 24), ("val", 12), ("test", 12)):
        found = rng.integers(0, 2, (count, labels)) if several else np.arange(count)[:, None] % labels
        found[:2] = [[0] * found.shape[1], [1] * found.shape[1]]
        images = np.clip(60 + 80 * found[:, :1, None] + rng.normal(0, 9, (count, 28, 28)), 0, 255)
        parts |= {f"{split}_images": images.astype(np.uint8), f"{split}_labels": found.astype(np.uint8)}
    np.savez(path, **parts)


@pytest.mark.parametrize(("labels", "several"), [(2, False), (3, False), (4, True)])
def test_files_of_each_task(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], labels: int, *, several: bool
) -> None:
    write(tmp_path / "pneumoniamnist_224.npz", labels, several=several)
    options = ["--backbone", "squeezenet1_1", "--weights", "none", "--epochs", "1", "--size", "32"]
    medmnist.main([str(tmp_path), *options])
    said = capsys.readouterr().out
    assert said.count("pneumoniamnist_224") == 2
    for training in medmnist.TRAININGS:
        assert training in said


def test_scores_are_those_of_the_evaluator() -> None:
    two = np.array([[0.9, 0.1], [0.4, 0.6], [0.7, 0.3], [0.2, 0.8]])
    assert medmnist.score(np.array([0, 0, 1, 1]), two) == medmnist.Score(0.75, 0.5)
    three = np.array([[0.5, 0.3, 0.2], [0.2, 0.7, 0.1], [0.3, 0.3, 0.4]])
    assert medmnist.score(np.arange(3), three) == medmnist.Score(1.0, 1.0)
    labels = np.array([[0, 1], [1, 0]])
    assert medmnist.score(labels, np.array([[0.2, 0.9], [0.8, 0.6]])) == medmnist.Score(1.0, 0.75)


def test_an_empty_folder_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        medmnist.main([str(tmp_path)])
    assert "has no .npz file" in capsys.readouterr().err


def test_published_figures_are_those_of_224_pixels(tmp_path: Path) -> None:
    found = medmnist.Score(0.5, 0.5)
    shown = {
        name: medmnist._describe(tmp_path / f"{name}.npz", "end to end", "resnet18", found)
        for name in ("pneumoniamnist_224", "pneumoniamnist", "pneumoniamnist_64", "other_224")
    }
    assert shown.pop("pneumoniamnist_224") == ["50.00", "50.00", "98.04", "91.13"]
    assert all(row == ["50.00", "50.00", "", ""] for row in shown.values())
