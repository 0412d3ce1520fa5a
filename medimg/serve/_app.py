"""The application: paths, and a request from its body to its answer."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack, asynccontextmanager
from dataclasses import asdict
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

import torch
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from medimg import __version__
from medimg._validation import check_item_unit, printable
from medimg.errors import DatasetError, MedimgError
from medimg.serve._answer import Answer, ModelFacts, State
from medimg.serve._body import FILE_TYPES, JSON_TYPE, MULTIPART_TYPES, receive_body
from medimg.serve._dicom_answer import choose_answer_type, make_dicom_response, parse_kinds
from medimg.serve._job_source import ServerSource, UploadSource
from medimg.serve._model_thread import ModelThread
from medimg.serve._prediction_job import PredictionJob, Unit
from medimg.serve._problem import Problem, RequestError, explain_error, make_problem
from medimg.serve._request_guard import RequestGuard
from medimg.serve._request_log import RequestLog
from medimg.serve._upload import Upload

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from concurrent.futures import Future

    from medimg.export.dicom.write_results import ResultKind
    from medimg.models.classifier import TransferClassifier
    from medimg.serve._job_source import JobSource
    from medimg.serve.limits import ServiceLimits

__all__ = ["build_app"]

_PATHS: Final = ("/predict", "/health", "/ready", "/version", "/openapi.json")
#: FastAPI can send spans, with URLs, and exceptions, with messages, to a collector.
_NO_TELEMETRY: Final = {"tracing": False, "metrics": False, "logs": False, "auto_configure": False}
_IN_DICOM: Final[dict[str, Any]] = {"application/dicom": {}, "multipart/related": {}}
_SETTINGS: Final = ("unit", "results")
_REFUSALS: Final = {
    400: "The body or the query is malformed",
    403: "The URL is not of a DICOMweb server that was named when the service was started",
    404: "The DICOMweb server has no such study, series or instance",
    406: "The client accepts neither JSON nor DICOM",
    408: "The client was too slow",
    413: "The body is too large, or expands to too much",
    415: "The body has an unknown type, or is no image",
    421: "The header Host has a name that was not allowed when the service was started",
    422: "The images can't be read, or don't fit the model",
    500: "An unexpected error; the log has it under the number of the request",
    501: "A library is missing on the service",
    502: "The DICOMweb server can't be read from",
    503: "All places of the queue are taken; Retry-After has the seconds to wait",
    504: "The prediction took too long",
    507: "There is no room for the body",
}


def build_app(
    model: TransferClassifier,
    *,
    unit: Unit,
    batch_size: int,
    limits: ServiceLimits,
    servers: frozenset[str],
    hosts: frozenset[str],
) -> FastAPI:
    """Return the application of a model; `servers` are base URLs of DICOMweb servers, `hosts` own names."""
    service = _Service(model, unit, batch_size, limits, servers)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.thread.close)

    app = FastAPI(
        title="medimg",
        version=__version__,
        description="Predictions of a classifier on medical images",
        # their pages load scripts from elsewhere
        docs_url=None,
        redoc_url=None,
        # a redirect would go to the host that the client states
        redirect_slashes=False,
        lifespan=lifespan,
        telemetry=_NO_TELEMETRY,
    )
    app.add_middleware(RequestGuard, hosts=hosts)
    # the outermost
    app.add_middleware(RequestLog, paths=_PATHS)
    app.add_exception_handler(MedimgError, _answer_error)
    app.add_exception_handler(HTTPException, _answer_http_error)
    refusals = {
        status: {"description": text, "content": {"application/problem+json": {}}, "model": Problem}
        for status, text in _REFUSALS.items()
    }
    app.add_api_route(
        "/predict",
        service.predict,
        methods=["POST"],
        summary="Predict on an image, or a zip of images",
        responses={200: {"model": Answer, "content": _IN_DICOM}, **refusals},
        openapi_extra=_describe_request(unit, takes_url=bool(servers)),
    )
    app.add_api_route("/health", service.health, summary="Whether the process is alive")
    app.add_api_route(
        "/ready", service.ready, summary="Whether it can predict", responses={503: {"model": State}}
    )
    app.add_api_route("/version", service.version, summary="The model")
    for path, handler in (("/health", service.health), ("/ready", service.ready)):
        app.add_api_route(path, handler, methods=["HEAD"], include_in_schema=False)
    return app


class _Service:
    """A model, its thread, and the handlers of the paths."""

    def __init__(
        self,
        model: TransferClassifier,
        unit: Unit,
        batch_size: int,
        limits: ServiceLimits,
        servers: frozenset[str],
    ) -> None:
        self._model, self._unit, self._batch_size, self._limits = model, unit, batch_size, limits
        self._servers = servers
        self._facts = ModelFacts.of(model)
        self.thread = ModelThread(model, limits.queue)

    async def health(self) -> State:
        return State("alive")

    async def ready(self) -> JSONResponse:
        if self.thread.is_ready:
            return JSONResponse(asdict(State("ready")))
        return JSONResponse(asdict(State("not ready")), status_code=HTTPStatus.SERVICE_UNAVAILABLE)

    async def version(self) -> ModelFacts:
        return self._facts

    async def predict(self, request: Request) -> Response:
        answer_type = choose_answer_type(request)
        unit = _parse_unit(request, self._unit)
        kinds = parse_kinds(request, answer_type)
        if kinds and unit != "series":
            raise RequestError(HTTPStatus.BAD_REQUEST, "results in DICOM are of series; expected unit=series")
        with ExitStack() as stack:
            stack.callback(self.thread.take_place())
            upload = Upload(self._limits)
            stack.callback(upload.close)
            url = await receive_body(request, upload, self._limits, takes_url=bool(self._servers))
            source = UploadSource(upload) if url is None else ServerSource.parse(url, self._servers)
            job = self._make_job(source, unit, kinds)
            future = self.thread.submit(job)
            # whatever becomes of the request, a job keeps its place and its files until it ends
            held = stack.pop_all()
            future.add_done_callback(lambda _: held.close())
        answer = await self._wait(request, job, future)
        return make_dicom_response(job.instances, answer_type) if kinds else JSONResponse(asdict(answer))

    def _make_job(self, source: JobSource, unit: Unit, kinds: tuple[ResultKind, ...]) -> PredictionJob:
        return PredictionJob(self._model, self._facts, source, unit, self._batch_size, self._limits, kinds)

    async def _wait(self, request: Request, job: PredictionJob, future: Future[Answer]) -> Answer:
        """Return the answer of a job; end the job if the client goes, or it takes too long."""
        answer = asyncio.wrap_future(future)
        gone = asyncio.ensure_future(_wait_until_gone(request))
        try:
            both: set[asyncio.Future[Any]] = {answer, gone}
            await asyncio.wait(
                both, timeout=self._limits.request_timeout, return_when=asyncio.FIRST_COMPLETED
            )
            if answer.done():
                return answer.result()
            if gone.done():
                raise ClientDisconnect
            raise RequestError(
                HTTPStatus.GATEWAY_TIMEOUT,
                f"the prediction was not done within {self._limits.request_timeout:g} s; send fewer images "
                "at once, or try again later",
            )
        except (MemoryError, torch.OutOfMemoryError):
            raise RequestError(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "the service has not enough memory for the images; send fewer at once",
            ) from None
        finally:
            gone.cancel()
            if not answer.done():
                job.cancel()
                answer.cancel()


async def _wait_until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _parse_unit(request: Request, default: Unit) -> Unit:
    """Return the unit that the query states; RequestError if there is another setting, or it is unknown."""
    others = [name for name in request.query_params if name not in _SETTINGS]
    if others:
        raise RequestError(
            HTTPStatus.BAD_REQUEST,
            f"unknown setting {printable(others[0], 40)!r} in the query; expected unit or results",
        )
    try:
        return check_item_unit(request.query_params.get("unit", default))
    except DatasetError as error:
        raise RequestError(HTTPStatus.BAD_REQUEST, printable(error)) from None


async def _answer_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, MedimgError)
    return explain_error(error, request.state.request_id)


async def _answer_http_error(request: Request, error: Exception) -> JSONResponse:
    """Answer to a path or method that does not exist."""
    assert isinstance(error, HTTPException)
    text = f"{error.detail}; expected one of {', '.join(_PATHS)}"
    return make_problem(error.status_code, text, "HTTPError", request.state.request_id, error.headers)


def _describe_request(unit: Unit, *, takes_url: bool) -> dict[str, Any]:
    """Return the description of a request's query and body in OpenAPI."""
    binary = {"schema": {"type": "string", "format": "binary"}}
    files = {"type": "array", "items": binary["schema"]}
    url = {"schema": {"type": "object", "properties": {"url": {"type": "string"}}, "required": ["url"]}}
    form = {"schema": {"type": "object", "properties": {"file": files}}}
    return {
        "parameters": [
            {
                "name": "unit",
                "in": "query",
                "description": "Unit of a prediction",
                "schema": {"type": "string", "enum": ["series", "image"], "default": unit},
            },
            {
                "name": "results",
                "in": "query",
                "description": "Kinds of results in answers in DICOM, of sr, sc and pm, separated by commas",
                "schema": {"type": "string", "pattern": "^(sr|sc|pm)(,(sr|sc|pm))*$"},
            },
        ],
        "requestBody": {
            "required": True,
            "description": "An image file, a zip of images, or several files as parts",
            "content": {
                **dict.fromkeys(FILE_TYPES, binary),
                "image/*": binary,
                **dict.fromkeys(MULTIPART_TYPES, form),
                **({JSON_TYPE: url} if takes_url else {}),
            },
        },
    }
