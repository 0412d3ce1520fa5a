"""
How long a study takes on up to 1,000 workers, what it costs, and where it breaks first.

``python -m benchmarks.simulations.many_workers`` simulates the workers of an executor with the durations that
``python -m benchmarks.stages`` has measured, and prints the tables of docs/scale. Each task is a shard of
some series, whose durations are drawn from those of real ones; some workers are slow, and some tasks
straggle.
"""

from __future__ import annotations

import heapq
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.stages import RESULTS

__all__ = ["Cluster", "simulate"]

_DOCS: Final = Path(__file__).parents[2] / "docs"
_WORKERS: Final = (1, 16, 64, 256, 1000)
#: Windows of tasks that are begun and not yielded, by the number of workers.
_WINDOWS: Final = (("1", 1.0), ("4", 4.0), ("16", 16.0), ("64", 64.0))
_SERIES_PER_TASK: Final = 20
_TASKS_PER_WORKER: Final = 100
_EUROS_PER_CORE_HOUR: Final = 0.04
_EUROS_PER_GB_MONTH: Final = 0.022
_EUROS_PER_REQUEST: Final = 0.37e-6
_SHARES: Final = (1_000_000, 10_000_000, 100_000_000)
#: Of a CT slice of 512×512 and 16 bits, compressed without loss by half.
_BYTES_PER_SOURCE_IMAGE: Final = 262_144


@dataclass(frozen=True)
class Cluster:
    """Workers, and what goes wrong with them."""

    workers: int
    window: float = 1.0  # tasks begun and not yielded, in multiples of the workers
    slow_workers: float = 0.05  # at half the speed
    straggling: float = 0.002  # tasks that take `times` as long
    times: float = 10.0
    caller: float = 0.0005  # seconds of the caller's process for each task


def simulate(durations: np.ndarray, cluster: Cluster, rng: np.random.Generator) -> float:
    """
    Return the seconds from the first task to the last result, which come in order.

    A worker takes the next task that is begun; the caller begins one for each result that it yields, which it
    does one after another.
    """
    speed = np.where(rng.random(cluster.workers) < cluster.slow_workers, 0.5, 1.0)
    slow = np.where(rng.random(len(durations)) < cluster.straggling, cluster.times, 1.0)
    work = durations * slow
    window = int(cluster.workers * cluster.window) + 2
    free = [(0.0, n) for n in range(cluster.workers)]
    heapq.heapify(free)
    done = np.zeros(len(work))
    yielded = 0.0
    for number, seconds in enumerate(work):
        begun = 0.0
        if number >= window:
            # the result before the window has to be yielded, by a caller with other work, too
            yielded = max(yielded + cluster.caller, done[number - window])
            begun = yielded
        at, worker = heapq.heappop(free)
        done[number] = max(at, begun) + seconds / speed[worker]
        heapq.heappush(free, (done[number], worker))
    return float(done.max())


def draw_tasks(measured: dict[str, Any], count: int, rng: np.random.Generator) -> np.ndarray:
    """Return the seconds of tasks of several series each."""
    series = rng.choice(np.array(measured["prepare"]["seconds"]), (count, _SERIES_PER_TASK))
    return np.asarray(series.sum(axis=1))


def tabulate_efficiency(measured: dict[str, Any]) -> list[str]:
    """Return a table of the share of time in which workers work."""
    caller = measured["tasks"]["caller_seconds_per_task"]
    rows = [
        "| workers | " + " | ".join(name for name, _ in _WINDOWS) + " | no stragglers |",
        "|" + "---|" * (len(_WINDOWS) + 2),
    ]
    for workers in _WORKERS:
        cells = []
        for window, odds in [*((one, 0.002) for _, one in _WINDOWS), (1.0, 0.0)]:
            rng = np.random.default_rng(workers)
            tasks = draw_tasks(measured, workers * _TASKS_PER_WORKER, rng)
            cluster = Cluster(workers, window=window, straggling=odds, caller=caller)
            if not odds:
                cluster = Cluster(workers, window=window, straggling=0.0, slow_workers=0.0, caller=caller)
            seconds = simulate(tasks, cluster, rng)
            cells.append(f"{tasks.sum() / workers / seconds:.2f}")
        rows.append(f"| {workers} | {' | '.join(cells)} |")
    return rows


@dataclass(frozen=True)
class _Stage:
    """What one image costs."""

    name: str
    seconds: float
    read: float
    written: float = 0.0
    requests: float = 0.0


def tabulate_costs(measured: dict[str, Any]) -> list[str]:
    """Return a table of bytes, core hours and euros of each stage."""
    scan, prepare, embed, train = (measured[name] for name in ("scan", "prepare", "embed", "train"))
    stored = prepare["bytes_per_image"]
    stages = [
        _Stage("scan", scan["core_seconds_per_file"], _BYTES_PER_SOURCE_IMAGE, requests=1),
        _Stage("prepare", prepare["core_seconds_per_image"], _BYTES_PER_SOURCE_IMAGE, stored, requests=1),
        _Stage("embed (ResNet-50, CPU)", embed["core_seconds_per_image"], stored, embed["bytes_per_image"]),
        _Stage("an epoch (ResNet-50, CPU)", train["core_seconds_per_image"], stored),
    ]
    months = {"a month of sources": _BYTES_PER_SOURCE_IMAGE, "a month of prepared images": stored}
    rows = [
        "| images | stage | read, TB | written, TB | core hours | work or storage, euros | requests, euros |",
        "|---|---|---|---|---|---|---|",
    ]
    for count in _SHARES:
        start = f"| {count // 10**6} million |"
        for stage in stages:
            hours = count * stage.seconds / 3600
            sizes = f"{count * stage.read / 1e12:,.2f} | {count * stage.written / 1e12:,.2f}"
            computing, requests = hours * _EUROS_PER_CORE_HOUR, count * stage.requests * _EUROS_PER_REQUEST
            rows.append(
                f"{start} {stage.name} | {sizes} | {hours:,.1f} | {computing:,.2f} | {requests:,.2f} |"
            )
        for name, size in months.items():
            rows.append(f"{start} {name} | | | | {count * size / 1e9 * _EUROS_PER_GB_MONTH:,.2f} | |")
    return rows


def main() -> None:
    """Print the tables, and with --write put them into docs."""
    measured = json.loads(RESULTS.read_text(encoding="utf-8"))
    caller = measured["tasks"]["caller_seconds_per_task"]
    task = float(np.mean(measured["prepare"]["seconds"])) * _SERIES_PER_TASK
    tables = {"efficiency": tabulate_efficiency(measured), "costs": tabulate_costs(measured)}
    for name, rows in tables.items():
        print("\n".join(rows), end="\n\n")
        if "--write" in sys.argv:
            (_DOCS / f"scale_{name}.md").write_text("\n".join(rows) + "\n", encoding="utf-8")
    print(f"A task takes {task:.2f} s on average, and {1000 * caller:.2f} ms of the caller's process,")
    print(f"which is busy with more than {task / caller:,.0f} workers.")


if __name__ == "__main__":
    main()
