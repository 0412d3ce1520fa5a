"""Results of an executor's workers: in order, bounded in number, and computed again if a worker is lost."""

from __future__ import annotations

from collections import deque
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future, ProcessPoolExecutor, wait
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from medimg._validation import check_whole_number
from medimg.errors import ExecutorError, also
from medimg.executors.dask_executor import adapt_dask

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable

__all__ = ["SMALL_RESULTS", "check_executor", "executor_map"]

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

#: Tasks begun for each worker if results are small: with tasks as series have them, 1,000 workers work 0.8 to
#: 0.9 of the time, and with one for each worker 0.1 (benchmarks.simulations.many_workers).
SMALL_RESULTS: Final = 16
#: Tasks at a time, if an executor does not say how many workers it has.
_AT_ONCE: Final = 64
#: Started beyond those that run, so that no worker waits.
_AHEAD: Final = 2
#: Runs of a task alone, until it counts as the one that takes workers down.
_TRIES: Final = 2
#: Errors of other libraries for a task whose worker died, by package.
_LOST: Final = {
    "distributed": ("KilledWorker",),
    "ray": ("WorkerCrashedError", "NodeDiedError", "OutOfMemoryError", "LocalRayletDiedError"),
}


def check_executor(executor: object) -> Executor | None:
    """Return an executor, or None; ExecutorError for anything else."""
    if executor is None or isinstance(executor, Executor):
        return executor
    hint = ""
    if callable(getattr(executor, "get_executor", None)):
        hint = "; pass client.get_executor()"
    elif callable(getattr(executor, "get_client", None)):
        hint = "; pass cluster.get_client().get_executor()"
    raise also(ExecutorError, TypeError)(
        f"executor must be a concurrent.futures.Executor; found a {type(executor).__name__}{hint}"
    )


def executor_map(
    executor: Executor,
    work: Callable[[_Item], _Result],
    items: Iterable[_Item],
    *,
    lost: Callable[[_Item, ExecutorError], _Result],
    workers: int | None = None,
    ahead: int = 1,
) -> Generator[_Result]:
    """
    Yield the results of `work` in the order of its items.

    At most ``ahead * workers + 2`` items are started and not yielded yet; by default `workers` is the number
    that the executor has, or 64 if it does not say. If results are small, `ahead` may be large, so that a
    task that takes long does not hold up the others (:data:`SMALL_RESULTS`). The tasks of a worker that dies
    are run again; one that takes down the workers that run it alone, too, gets its result from `lost`. A
    `ProcessPoolExecutor`, which ends with the first process that dies, is replaced by another one like it.
    Closing the iterator cancels what has not been started, and waits for the rest; the executor itself stays
    open.

    Raises
    ------
    ExecutorError
        If a task or its result can't be sent, or the executor is shut down or can't run any task.

    Examples
    --------
    >>> from concurrent.futures import ThreadPoolExecutor
    >>> with ThreadPoolExecutor(2) as executor:
    ...     list(executor_map(executor, abs, [1, -2, 3], lost=lambda item, error: -1))
    [1, 2, 3]
    """
    count = _count_workers(executor) if workers is None else check_whole_number("workers", workers, least=1)
    return _Run(adapt_dask(executor), work, lost).iterate(iter(items), ahead * count + _AHEAD)


def _count_workers(executor: Executor) -> int:
    stated = getattr(executor, "_max_workers", None)
    return stated if isinstance(stated, int) and stated > 0 else _AT_ONCE


class _Task(Generic[_Item, _Result]):
    """An item, and the result that is being computed."""

    __slots__ = ("future", "item")

    def __init__(self, item: _Item, future: Future[_Result]) -> None:
        self.item = item
        self.future = future

    @property
    def is_lost(self) -> bool:
        """Whether it has ended without a result, as its worker did."""
        if not self.future.done():
            return False
        return self.future.cancelled() or _is_loss(self.future.exception())


class _Run(Generic[_Item, _Result]):
    """Tasks on an executor, or on the one that replaces it."""

    def __init__(
        self,
        executor: Executor,
        work: Callable[[_Item], _Result],
        lost: Callable[[_Item, ExecutorError], _Result],
    ) -> None:
        self._executor = executor
        self._work = work
        self._lost = lost
        self._is_own = False

    def iterate(self, waiting: Any, most: int) -> Generator[_Result]:
        begun: deque[_Task[_Item, _Result]] = deque()
        try:
            begun.extend(map(self._begin, islice(waiting, most)))
            while begun:
                wait([begun[0].future])
                if begun[0].is_lost:
                    self._recover(begun)
                yield _take(begun.popleft().future)
                begun.extend(map(self._begin, islice(waiting, 1)))
        finally:
            for task in begun:
                task.future.cancel()
            wait([task.future for task in begun if not task.future.cancelled()])
            if self._is_own:
                self._executor.shutdown(wait=True, cancel_futures=True)

    def _begin(self, item: _Item) -> _Task[_Item, _Result]:
        return _Task(item, self._submit(self._work, item))

    def _submit(self, work: Callable[[Any], Any], item: object) -> Future[Any]:
        try:
            return self._executor.submit(work, item)
        except BrokenExecutor as error:
            failed: Future[Any] = Future()
            failed.set_exception(error)
            return failed
        except RuntimeError as error:
            raise ExecutorError(
                f"the executor takes no tasks ({error}); pass one that is not shut down"
            ) from error
        except Exception as error:
            _check_was_sent(error)
            raise

    def _recover(self, begun: deque[_Task[_Item, _Result]]) -> None:
        """Run lost tasks again: which of them took the worker down is unknown."""
        self._replace_broken(begun[0].future)
        self._run_again([task for task in begun if task.is_lost])

    def _run_again(self, tasks: list[_Task[_Item, _Result]]) -> None:
        """Run tasks side by side, and if a worker is lost once more in halves, down to single ones."""
        if len(tasks) == 1:
            tasks[0].future = self._run_alone(tasks[0].item)
            return
        for task in tasks:
            task.future = self._submit(self._work, task.item)
        wait([task.future for task in tasks])
        lost = [task for task in tasks if task.is_lost]
        if lost:
            self._replace_broken(lost[0].future)
            middle = (len(lost) + 1) // 2
            for half in filter(None, (lost[:middle], lost[middle:])):
                self._run_again(half)

    def _run_alone(self, item: _Item) -> Future[_Result]:
        for _ in range(_TRIES):
            task = self._begin(item)
            wait([task.future])
            if not task.is_lost:
                return task.future
            self._replace_broken(task.future)
            self._check_works()
        found: Future[_Result] = Future()
        error = ExecutorError(f"the worker that it was given to died, {_TRIES} times; read it by itself")
        found.set_result(self._lost(item, error))
        return found

    def _replace_broken(self, future: Future[Any]) -> None:
        """Make another executor like the one that has ended with one of its processes."""
        error = None if future.cancelled() else future.exception()
        if not isinstance(error, BrokenExecutor):
            return
        old: Any = self._executor
        if type(self._executor) is not ProcessPoolExecutor:
            raise ExecutorError(
                f"the {type(old).__name__} has lost a worker and can't go on; expected one that can, or a "
                "ProcessPoolExecutor, which is replaced"
            ) from error
        old.shutdown(wait=True)
        self._executor = ProcessPoolExecutor(
            old._max_workers,
            mp_context=old._mp_context,
            initializer=old._initializer,
            initargs=old._initargs,
            max_tasks_per_child=old._max_tasks_per_child,
        )
        self._is_own = True

    def _check_works(self) -> None:
        """Raise ExecutorError if the workers die without a task of ours, too."""
        try:
            self._submit(abs, 0).result()
        except Exception as error:
            raise ExecutorError(
                f"the workers of the executor can't run any task ({type(error).__name__}); check its "
                "initializer, that they can import medimg, and that the script that starts them does its "
                'work under if __name__ == "__main__":'
            ) from error


def _is_loss(error: BaseException | None) -> bool:
    """Whether an error says that the worker of a task was lost."""
    if isinstance(error, BrokenExecutor | CancelledError):
        return True
    kind = type(error)
    return kind.__name__ in _LOST.get(kind.__module__.partition(".")[0], ())


def _take(future: Future[_Result]) -> _Result:
    try:
        return future.result()
    except Exception as error:
        _check_was_sent(error)
        raise


def _check_was_sent(error: Exception) -> None:
    """Raise ExecutorError if an error says that a task could not be pickled."""
    if not _is_pickling_error(error):
        return
    # what Dask and Ray raise shows the whole task, which may have a patient's name
    first = _find_first(error)
    raise also(ExecutorError, TypeError)(
        f"a task can't be sent to the executor's workers ({type(first).__name__}: {first}); pass paths or "
        "series instead of open files and objects, and functions of a module instead of lambdas"
    ) from first


def _is_pickling_error(error: Exception) -> bool:
    return type(error).__name__ == "PicklingError" or (
        isinstance(error, TypeError | AttributeError)
        and ("pickle" in str(error) or "Could not serialize" in str(error))
    )


def _find_first(error: BaseException) -> BaseException:
    """Return the error that all others of a chain were raised by."""
    before = error.__cause__ or error.__context__
    # concurrent.futures shows the traceback of another process as a cause
    while before is not None and type(before).__name__ != "_RemoteTraceback":
        error = before
        before = error.__cause__ or error.__context__
    return error
