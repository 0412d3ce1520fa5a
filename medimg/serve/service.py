"""``medimg.serve.make_app``: a model as an ASGI application."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from medimg._public import set_module
from medimg._validation import check_batch_size, check_item_unit, check_texts
from medimg.errors import MissingDependencyError, TrainingError, also
from medimg.serve.limits import ServiceLimits

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Literal

    from fastapi import FastAPI

    from medimg.models.classifier import TransferClassifier

__all__ = ["check_extra", "make_app"]


@set_module("medimg.serve")
def make_app(
    model: TransferClassifier,
    *,
    unit: Literal["series", "image", "slice"] = "series",
    batch_size: int = 32,
    limits: ServiceLimits | None = None,
    dicomweb: Sequence[str] = (),
    allowed_hosts: Sequence[str] = ("*",),
) -> FastAPI:
    """
    Return a model as an ASGI application, to be run by uvicorn, hypercorn or any other server.

    ``POST /predict`` takes an image, or a zip of images, and answers with predictions as JSON, or results in
    DICOM; ``GET
    /health``, ``/ready`` and ``/version`` describe the service, ``/openapi.json`` its interface. Errors are
    problem details (RFC 9457). One thread predicts on one request after another. The application has no
    authentication.

    Parameters
    ----------
    model : TransferClassifier
        Model, in evaluation mode, on the device that it predicts on; it must not be changed afterwards.
    unit : {"series", "image"}
        Unit of a prediction for requests that state none: a series, or each image, such as a slice.
    batch_size : int
        Number of images per batch.
    limits : ServiceLimits, optional
        Limits of size, number and time.
    dicomweb : sequence of str
        Base URLs of DICOMweb servers whose studies and series requests may name by URL; none by default. A
        connection that :func:`medimg.dicomweb` made before is used, with its credentials.
    allowed_hosts : sequence of str
        Names by which clients may reach the service (header ``Host``), without port; by default any.
        Addresses, such as 127.0.0.1, are always allowed. ``["localhost"]`` protects a service on loopback
        from pages in a browser on the same machine (DNS rebinding).

    Returns
    -------
    fastapi.FastAPI
        Application; it may be mounted in another one.

    Raises
    ------
    TrainingError
        If it is not a model, a setting is invalid, or parameters were changed after calibration.
    ReadError
        If the URL of a DICOMweb server is invalid.
    MissingDependencyError
        If FastAPI or python-multipart is not installed: they are part of the extra ``serve``.

    Examples
    --------
    >>> import medimg
    >>> from medimg.serve import ServiceLimits, make_app
    >>> model = medimg.load("run/model.safetensors")  # doctest: +SKIP
    >>> app = make_app(model, limits=ServiceLimits(max_upload_mb=256))  # doctest: +SKIP
    """
    check_extra("fastapi", "python_multipart")
    from medimg.io.dicomweb.service_url import parse_service_url
    from medimg.models.classifier import TransferClassifier
    from medimg.models.predict import check_calibration
    from medimg.serve._app import build_app
    from medimg.serve._request_guard import parse_hosts

    if not isinstance(model, TransferClassifier):
        raise also(TrainingError, TypeError)(
            f"expected a TransferClassifier; found a {type(model).__name__}: read it by medimg.load(path)"
        )
    if limits is not None and not isinstance(limits, ServiceLimits):
        raise also(TrainingError, TypeError)(
            f"limits must be ServiceLimits or None; found a {type(limits).__name__}"
        )
    check_calibration(model)
    return build_app(
        model,
        unit=check_item_unit(unit, error=TrainingError),
        batch_size=check_batch_size(batch_size),
        limits=limits or ServiceLimits(),
        servers=frozenset(map(parse_service_url, check_texts("dicomweb", list(dicomweb)))),
        hosts=parse_hosts(allowed_hosts),
    )


def check_extra(*modules: str) -> None:
    """Raise MissingDependencyError if a library of the extra is not installed."""
    for name in modules:
        try:
            import_module(name)
        except ImportError as error:
            raise MissingDependencyError(
                f"the service needs {name}, which can't be imported ({error}); install it with: pip install "
                '"medimg[serve]"'
            ) from error
