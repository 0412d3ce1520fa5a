"""The thread of the model, and the bounded queue before it."""

from __future__ import annotations

import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from importlib import import_module
from typing import TYPE_CHECKING, Final

import torch

from medimg.models.module_mode import module_mode
from medimg.serve._problem import RequestError

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    from medimg.models.classifier import TransferClassifier
    from medimg.serve._answer import Answer
    from medimg.serve._prediction_job import PredictionJob

__all__ = ["ModelThread"]

#: Weight of the latest duration in the mean.
_LATEST: Final = 0.2
_LONGEST_WAIT: Final = 120


class ModelThread:
    """Predicts on one request after another; requests beyond `queue` places are refused."""

    def __init__(self, model: TransferClassifier, queue: int) -> None:
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="medimg-model")
        self._lock = threading.Lock()
        self._queue = queue
        self._taken = 0
        self._mean_seconds = 1.0
        self._is_closed = False
        # what is imported and set up at the first image is not part of the first request
        self._warm_up = self._executor.submit(_warm_up, model)

    @property
    def is_ready(self) -> bool:
        """Whether it can predict now."""
        done = self._warm_up.done() and self._warm_up.exception() is None
        return done and not self._is_closed

    def take_place(self) -> Callable[[], None]:
        """Take a place in the queue, and return what releases it; RequestError if there is none."""
        with self._lock:
            if self._taken >= self._queue or self._is_closed:
                wait = math.ceil(self._mean_seconds * (self._taken + 1) / 2)
                raise RequestError(
                    HTTPStatus.SERVICE_UNAVAILABLE,
                    f"the service is busy: all {self._queue} places of its queue are taken; try again later",
                    {"Retry-After": str(min(max(wait, 1), _LONGEST_WAIT))},
                )
            self._taken += 1
        return self._release_place

    def _release_place(self) -> None:
        with self._lock:
            self._taken -= 1

    def submit(self, job: PredictionJob) -> Future[Answer]:
        """Append a job to the queue."""
        return self._executor.submit(self._run, job)

    def _run(self, job: PredictionJob) -> Answer:
        start = time.monotonic()
        try:
            return job.run()
        finally:
            taken = time.monotonic() - start
            self._mean_seconds += _LATEST * (taken - self._mean_seconds)

    def close(self) -> None:
        """Refuse further jobs, drop those that wait, and let the present one end."""
        self._is_closed = True
        self._executor.shutdown(wait=True, cancel_futures=True)


def _warm_up(model: TransferClassifier) -> None:
    import_module("pandas")
    weight = model.head.weight
    with module_mode(model, training=False), torch.inference_mode():
        model.embed(torch.zeros(1, *model.preprocess.image_shape, dtype=weight.dtype, device=weight.device))
