"""
The same work by each library, in its documented fast way.

A module is one column of the table. Its functions are named as the kinds of work are: each takes a
:class:`~benchmarks.peers.job.Job`, prepares what is not to be timed, and returns what is. What a module
lacks, the library can't do; ``CANNOT`` may say why.
"""

from __future__ import annotations

from benchmarks.peers.job import CannotError, Job
from benchmarks.peers.registry import COLUMNS, COMMON, NOT_ITS_WORK, Task, available, task

__all__ = ["COLUMNS", "COMMON", "NOT_ITS_WORK", "CannotError", "Job", "Task", "available", "task"]
