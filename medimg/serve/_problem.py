"""Errors as answers: problem details for HTTP (RFC 9457), and the status of each error of medimg."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from fastapi.responses import JSONResponse

from medimg.errors import MedimgError, MissingDependencyError, NotAnImageError, TrainingError
from medimg.io.dicomweb.transport import ServerAnswerError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Problem", "RequestError", "explain_error", "make_problem"]

#: Statuses of errors; of others it is 422.
_STATUSES: Final[tuple[tuple[type[Exception] | tuple[type[Exception], ...], HTTPStatus], ...]] = (
    (MissingDependencyError, HTTPStatus.NOT_IMPLEMENTED),
    # of a DICOMweb server
    ((ServerAnswerError, ConnectionError, TimeoutError, PermissionError), HTTPStatus.BAD_GATEWAY),
    (NotAnImageError, HTTPStatus.UNSUPPORTED_MEDIA_TYPE),
    (TrainingError, HTTPStatus.INTERNAL_SERVER_ERROR),
)


class RequestError(MedimgError):
    """A request that is refused: by its form, its size, or the state of the service."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.headers = dict(headers or {})


@dataclass(frozen=True, slots=True)
class Problem:
    """Problem details; `error` is the class of the error, `instance` names the request in the log."""

    type: str
    title: str
    status: int
    detail: str
    error: str
    instance: str


def make_problem(
    status: int, detail: str, error: str, request_id: str, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """Return an answer with problem details."""
    problem = Problem("about:blank", _title(status), status, detail, error, f"urn:uuid:{request_id}")
    return JSONResponse(
        asdict(problem),
        status_code=status,
        headers=dict(headers or {}),
        media_type="application/problem+json",
    )


def explain_error(error: MedimgError, request_id: str) -> JSONResponse:
    """Return the answer to a request that failed; messages of medimg hold no patient data."""
    headers = error.headers if isinstance(error, RequestError) else None
    return make_problem(_find_status(error), str(error), type(error).__name__, request_id, headers)


def _find_status(error: MedimgError) -> int:
    if isinstance(error, RequestError):
        return error.status
    if isinstance(error, ServerAnswerError) and isinstance(error, FileNotFoundError):
        return HTTPStatus.NOT_FOUND
    return next(
        (status for kinds, status in _STATUSES if isinstance(error, kinds)), HTTPStatus.UNPROCESSABLE_ENTITY
    )


def _title(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Error"
