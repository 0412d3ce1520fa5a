"""Executors of cluster libraries: Dask's, Ray's and MPI's."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import medimg
from medimg import Preprocess, TransferClassifier
from medimg.errors import ExecutorError, MedimgError
from medimg.executors.executor_map import executor_map
from tests.dicom_files import write_stack

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Executor

# these libraries leave sockets and processes to the garbage collector
pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning",
    "ignore::pytest.PytestUnraisableExceptionWarning",
    "ignore::DeprecationWarning",
    "ignore::FutureWarning",
)
_RECIPE = Preprocess(size=32, slices=2)
_ASKED = pytest.mark.skipif(
    not os.environ.get("MEDIMG_SLOW"), reason="starts many workers again: set MEDIMG_SLOW=1"
)


@pytest.fixture(scope="module")
def dask() -> Iterator[Executor]:
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None, host="127.0.0.1"
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client.get_executor()


@pytest.fixture(scope="module")
def ray() -> Iterator[Executor]:
    library = pytest.importorskip("ray")
    library.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        _node_ip_address="127.0.0.1",
        runtime_env={"env_vars": {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}},
    )
    with medimg.RayExecutor() as executor:
        yield executor
    library.shutdown()


@pytest.fixture(params=["dask", "ray"])
def executor(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    for number in range(5):
        write_stack(
            tmp_path / f"{number}", [3.0 * number + n for n in range(4)], SeriesInstanceUID=f"1.2.{number}"
        )
    return sorted(tmp_path.iterdir())


def die_of(poison: int, n: int) -> int:
    if n == poison:
        os.kill(os.getpid(), signal.SIGKILL)
    return n * n


def fail(n: int) -> int:
    raise MedimgError(f"number {n}")


def lost(n: int, error: ExecutorError) -> Any:
    return str(error)


def test_scan_tensors_and_predictions(executor: Executor, folders: list[Path]) -> None:
    root = folders[0].parent
    index = medimg.scan(root, executor=executor)
    assert [s.summary() for s in index] == [s.summary() for s in medimg.scan(root)]
    sources = [*index, "nowhere"]
    found, expected = (
        medimg.read_tensors(sources, _RECIPE, executor=executor),
        medimg.read_tensors(sources, _RECIPE),
    )
    assert torch.equal(found.tensor, expected.tensor)
    assert found.errors.keys() == {5}
    model = TransferClassifier("squeezenet1_1", classes=["a", "b"], weights=None, preprocess=_RECIPE)
    table = model.predict(list(index), executor=executor)
    assert np.allclose(table["p_a"], model.predict(list(index))["p_a"], rtol=1e-4, atol=1e-5)


def test_errors_of_tasks_keep_their_type(executor: Executor) -> None:
    with pytest.raises(MedimgError, match="number 3"):
        list(executor_map(executor, fail, [3], lost=lost))


@_ASKED
def test_a_task_that_kills_its_workers_is_reported(executor: Executor) -> None:
    found = list(executor_map(executor, partial(die_of, 3), range(6), lost=lost, workers=2))
    assert [one for one in found if not isinstance(one, str)] == [0, 1, 4, 16, 25]
    assert "died" in str(found[3])


class DaskProcesses:
    """A scheduler and a worker as processes of their own, as on a cluster."""

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        self.running: list[subprocess.Popen[bytes]] = []
        self.start()

    def start(self) -> None:
        host, port = self.address.split(":")
        self._run("scheduler", "--host", host, "--port", port, "--no-dashboard")
        self._run("worker", f"tcp://{self.address}", "--nthreads", "1", "--no-nanny", "--no-dashboard")

    def _run(self, name: str, *arguments: str) -> None:
        command = [sys.executable, "-m", f"distributed.cli.dask_{name}", *arguments]
        self.running.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))

    def stop(self, signal_number: int = signal.SIGTERM) -> None:
        """End the scheduler and its workers."""
        for process in self.running:
            process.send_signal(signal_number)
            process.wait(30)
        self.running.clear()


@pytest.fixture
def cluster() -> Iterator[DaskProcesses]:
    pytest.importorskip("distributed")
    found = DaskProcesses()
    yield found
    found.stop()


def note_run(folder: Path, n: int) -> int:
    (folder / f"{n}-{os.getpid()}-{time.monotonic_ns()}").touch()
    time.sleep(0.05)
    return n * n


@_ASKED
@pytest.mark.parametrize("returns", [True, False])
def test_a_scheduler_that_is_killed(cluster: DaskProcesses, tmp_path: Path, returns: bool) -> None:
    """It may be started again; without one there is an error in the end, and not before."""
    from distributed import Client

    with Client(f"tcp://{cluster.address}", timeout=15, set_as_default=False) as client:
        results = executor_map(
            client.get_executor(pure=False), partial(note_run, tmp_path), range(40), lost=lost, workers=2
        )
        found = [next(results), next(results)]
        cluster.stop(signal.SIGKILL)
        if returns:
            cluster.start()
            found += results
        else:
            with pytest.raises(ExecutorError, match="executor"):
                found += results
    expected = [n * n for n in range(40)]
    assert found == expected[: len(found)]
    assert len(found) == 40 or not returns


_MPI = """
import sys
from mpi4py.futures import MPIPoolExecutor
import medimg
if __name__ == "__main__":
    with MPIPoolExecutor() as executor:
        found = medimg.read_tensors(sys.argv[1:], medimg.Preprocess(size=32, slices=2), executor=executor)
    print(tuple(found.tensor.shape), float(found.tensor.double().sum()), len(found.errors))
"""


@pytest.mark.skipif(shutil.which("mpiexec") is None, reason="needs mpiexec")
def test_mpi(folders: list[Path], tmp_path: Path) -> None:
    pytest.importorskip("mpi4py")
    script = tmp_path / "work.py"
    script.write_text(_MPI)
    command = [
        "mpiexec",
        "--allow-run-as-root",
        "--oversubscribe",
        "-n",
        "3",
        sys.executable,
        "-m",
        "mpi4py.futures",
    ]
    done = subprocess.run(
        [*command, str(script), *map(str, folders), "nowhere"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    expected = medimg.read_tensors(folders, _RECIPE).tensor
    assert done.stdout.strip().endswith(f"{tuple(expected.shape)} {float(expected.double().sum())} 1")
