"""Command line of the benchmark of adaptation."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Final

import torch

import benchmarks.adaptation
from benchmarks.adaptation.methods import METHODS, VARIANTS
from benchmarks.adaptation.page import summarize, write_page
from benchmarks.adaptation.runs import STORE, Key, load_runs, run_once, store_run
from benchmarks.adaptation.shifts import SHIFTS

__all__ = ["main"]

#: First seed of the runs by which settings are chosen.
TUNING_SEED: Final = 100


def main(arguments: list[str] | None = None) -> None:
    """Train what is missing, and print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.adaptation", description=benchmarks.adaptation.__doc__
    )
    parser.add_argument("--data", type=Path, default=os.environ.get("MEDIMG_TEST_DATA"))
    parser.add_argument("--seeds", type=int, default=10, help="number of seeds")
    parser.add_argument("--shift", choices=SHIFTS, nargs="+", default=list(SHIFTS))
    parser.add_argument("--method", choices=[*METHODS, *VARIANTS], nargs="+", default=list(METHODS))
    parser.add_argument("--resume", action="store_true", help="keep the runs that are in the store")
    parser.add_argument("--store", type=Path, default=STORE)
    parser.add_argument(
        "--tuning", action="store_true", help="the patients and seeds that settings are chosen by"
    )
    parser.add_argument("--page", action="store_true", help="train nothing, write the tables of the page")
    options = parser.parse_args(arguments)
    if options.page:
        write_page(load_runs(options.store))
        return
    if options.data is None:
        parser.error(
            "--data, or the environment variable MEDIMG_TEST_DATA, names the folder of the test data"
        )
    torch.set_num_threads(1)  # the same sums on any machine
    _train(options)
    for shift in options.shift:
        print(f"\n{shift}\n{summarize(load_runs(options.store), shift, tuning=options.tuning)}")


def _train(options: argparse.Namespace) -> None:
    """Train seed by seed, so that a run that is cut off has complete pairs."""
    root = Path(options.data)
    shifts = {name: SHIFTS[name](root, options.tuning) for name in options.shift}
    done = {run.key for run in load_runs(options.store)} if options.resume else set()
    first = TUNING_SEED if options.tuning else 0
    for seed in range(first, first + options.seeds):
        for shift_name, shift in shifts.items():
            for name in options.method:
                method = (METHODS | VARIANTS)[name]
                key = Key.make(shift_name, name, method, seed, tuning=options.tuning)
                if key in done or not method.suits(shift):
                    continue
                run = run_once(root, shift, method, key)
                store_run(run, options.store)
                print(f"{shift_name}, {name}, seed {seed}: {run.target:.3f}, {run.seconds:.0f} s", flush=True)
