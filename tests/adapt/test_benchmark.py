"""The store of the benchmark of adaptation, its pairs and intervals, and the tables from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from benchmarks.adaptation.gains import compute_choices, compute_gains, current_runs, paired_interval
from benchmarks.adaptation.methods import METHODS, VARIANTS
from benchmarks.adaptation.page import PAGE, summarize, write_page
from benchmarks.adaptation.runs import STORE, Key, Run, load_runs, restore_batchnorm, store_run


def run(name: str, seed: int, target: float, **scores: float) -> Run:
    key = Key.make("inverted", name, METHODS[name], seed, tuning=False)
    values = {"source": 0.9, "val": 0.9, "information": 0.1, "distance": 1.0, "risk": 0.5, "seconds": 1.0}
    return Run(key, target=target, **{**values, **scores})


RUNS = [
    *(run("source only", seed, 0.8 + seed / 100) for seed in range(4)),
    *(run("MMD", seed, 0.85 + seed / 100 + (-1) ** seed / 200, information=0.2) for seed in range(4)),
    run("CORAL", 7, 0.9),  # without its pair
]


def test_what_is_stored_is_read(tmp_path: Path) -> None:
    path = tmp_path / "store.jsonl"
    for one in RUNS:
        store_run(one, path)
    assert [one.key for one in load_runs(path)] == [one.key for one in RUNS]
    np.testing.assert_allclose([one.target for one in load_runs(path)], [one.target for one in RUNS])
    assert load_runs(tmp_path / "none.jsonl") == []
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("\n".join(json.dumps({**row, "protocol": 0}) for row in rows))
    assert load_runs(path) == []


def test_gains_are_paired_by_seed() -> None:
    rows = {row.method: row for row in compute_gains(current_runs(RUNS, "inverted"))}
    assert set(rows) == {"source only", "MMD"}
    differences = [0.055, 0.045, 0.055, 0.045]
    expected = stats.t.interval(0.95, 3, np.mean(differences), stats.sem(differences))
    assert (rows["MMD"].low, rows["MMD"].high) == pytest.approx(expected)
    assert rows["MMD"].verdict == "gain"
    assert paired_interval([1.0])[0] != paired_interval([1.0])[0]


def test_runs_with_former_settings_do_not_count() -> None:
    (mmd, *_) = [one for one in RUNS if one.key.method == "MMD"]
    key = Key("inverted", "MMD", mmd.key.settings.replace("1.0", "9.0"), 0, tuning=False)
    changed = Run(key, *(getattr(mmd, name) for name in list(Run.__dataclass_fields__)[1:]))
    assert not current_runs([changed], "inverted")
    assert not current_runs(RUNS, "cause")
    assert not current_runs(RUNS, "inverted", tuning=True)


def test_choices_are_compared_with_no_adaptation() -> None:
    rows = {row.criterion: row for row in compute_choices([current_runs(RUNS, "inverted")])}
    # CORAL has a run for one seed, so that no seed has all candidates
    assert rows == {}
    runs = [one for one in RUNS if one.key.method != "CORAL"]
    rows = {row.criterion: row for row in compute_choices([current_runs(runs, "inverted")])}
    assert rows["auto"].better == rows["oracle"].better == rows["auto"].trials == 4
    assert rows["deep embedded risk"].gain == 0.0


def test_tables_of_the_page(tmp_path: Path) -> None:
    page = tmp_path / "page.rst"
    parts = ("adaptation gains", "adaptation choices")
    page.write_text("\n".join(f".. benchmark: {n}\n\n.. end of benchmark: {n}\n" for n in parts))
    write_page(RUNS, page)
    text = page.read_text()
    assert "+0.050 (+0.041 to +0.059)" in text
    assert "Not measured yet." in text  # the other shifts
    assert "MMD" in summarize(RUNS, "inverted")


def test_the_page_has_what_is_stored(tmp_path: Path) -> None:
    page = tmp_path / "page.rst"
    page.write_text(PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    write_page(load_runs(), page)
    assert page.read_text(encoding="utf-8") == PAGE.read_text(encoding="utf-8")


def test_the_store_has_neither_patients_nor_paths() -> None:
    known = {*Key.__dataclass_fields__, *Run.__dataclass_fields__, "protocol"} - {"key"}
    for line in STORE.read_text().splitlines():
        row = json.loads(line)
        assert set(row) == known
        assert row["method"] in METHODS | VARIANTS
        assert "/" not in line


def test_batch_statistics_are_restored_without_changing_the_network() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3), nn.BatchNorm2d(2)
    )
    data: Any = type("Data", (), {"images": torch.randn(8, 3, 8, 8)})
    with torch.no_grad():
        before = network.eval()(data.images)
        restore_batchnorm(network, data)
        torch.testing.assert_close(network(data.images), before)
        inner = network[:4](data.images)
    last: Any = network[4]
    torch.testing.assert_close(last.running_mean, inner.mean(dim=(0, 2, 3)))
    assert float((last.running_var - inner.var(dim=(0, 2, 3))).abs().max()) < 1e-4
