"""Tasks of Ray as an executor of `concurrent.futures`, which Ray itself does not have."""

from __future__ import annotations

from concurrent.futures import Executor, Future
from typing import TYPE_CHECKING, Any

from medimg._public import set_module
from medimg.errors import MissingDependencyError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["RayExecutor"]


@set_module("medimg")
class RayExecutor(Executor):
    """
    Executor that runs tasks on a Ray cluster, for the ``executor=`` of medimg's functions.

    Ray is started on this machine if ``ray.init`` was not called before. A task whose worker dies is run
    again by Ray itself, three times by default. Shutting the executor down does not stop Ray.

    Parameters
    ----------
    **options
        Options of ``ray.remote`` for each task, such as ``num_cpus=1``, ``num_gpus=0.25`` or
        ``max_retries=1``.

    Raises
    ------
    MissingDependencyError
        If ray is not installed.

    Examples
    --------
    >>> with medimg.RayExecutor(num_cpus=1) as executor:                      # doctest: +SKIP
    ...     table = model.predict(index, executor=executor)
    """

    def __init__(self, **options: Any) -> None:
        try:
            import ray
        except ImportError as error:
            raise MissingDependencyError(
                f"RayExecutor needs ray, which can't be imported ({error}); install it with: pip install ray"
            ) from error
        if not ray.is_initialized():
            ray.init(logging_level="warning", log_to_driver=False, include_dashboard=False)
        self._task = ray.remote(**{"num_cpus": 1, **options})(_call)
        share = float(options.get("num_cpus", 1)) or 1.0
        self._max_workers = max(1, int(ray.cluster_resources().get("CPU", 1) / share))
        self._is_shut_down = False

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Start a task, and return its future."""
        if self._is_shut_down:
            raise RuntimeError("cannot schedule new futures after shutdown")
        found: Future[Any] = self._task.remote(fn, args, kwargs).future()
        return found

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more tasks; those of Ray go on."""
        self._is_shut_down = True


def _call(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return fn(*args, **kwargs)
