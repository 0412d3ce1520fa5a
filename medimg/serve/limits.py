"""Limits of the service: what a request may cost."""

from __future__ import annotations

from dataclasses import dataclass

from medimg._public import set_module
from medimg._validation import check_number, check_whole_number
from medimg.errors import MedimgError

__all__ = ["ServiceLimits"]

_MEGABYTE = 2**20


@set_module("medimg.serve")
@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceLimits:
    """
    Limits of a service: what a request may cost, and how many wait.

    Parameters
    ----------
    max_upload_mb : int
        Size of a request's body, in MiB; a larger one is refused with the status 413.
    max_unpacked_mb : int
        Size of the files after decompression, of the decoded pixels of a series (4 bytes each), and of its
        preprocessed images, in MiB each: what a small body can expand to.
    max_files : int
        Number of files in a body, members of archives included.
    upload_memory_mb : int
        Part of a body that is kept in memory, in MiB; the rest is written to a temporary file without a name,
        which the system removes when the process ends in any way.
    queue : int
        Number of requests that are received, wait or are predicted on at the same time; more are refused
        with the status 503 before they are read.
    upload_timeout : float
        Seconds within which a client has to send its body (status 408).
    request_timeout : float
        Seconds within which a received body has to be predicted on, waiting included (status 504).

    Raises
    ------
    MedimgError
        If a limit is not a positive number.

    Examples
    --------
    >>> from medimg.serve import ServiceLimits
    >>> ServiceLimits(max_upload_mb=64).queue
    16
    """

    max_upload_mb: int = 1024
    max_unpacked_mb: int = 4096
    max_files: int = 20_000
    upload_memory_mb: int = 16
    queue: int = 16
    upload_timeout: float = 60.0
    request_timeout: float = 300.0

    def __post_init__(self) -> None:
        for name in ("max_upload_mb", "max_unpacked_mb", "max_files", "queue"):
            check_whole_number(name, getattr(self, name), least=1, error=MedimgError)
        check_whole_number("upload_memory_mb", self.upload_memory_mb, least=0, error=MedimgError)
        for name in ("upload_timeout", "request_timeout"):
            check_number(name, getattr(self, name), above=0, error=MedimgError)

    @property
    def upload_bytes(self) -> int:
        """Maximum size of a body."""
        return self.max_upload_mb * _MEGABYTE

    @property
    def unpacked_bytes(self) -> int:
        """Maximum size of what a body expands to."""
        return self.max_unpacked_mb * _MEGABYTE

    @property
    def memory_bytes(self) -> int:
        """Part of a body that is kept in memory."""
        return self.upload_memory_mb * _MEGABYTE
