"""Where the images of a request come from: its body, or a DICOMweb server."""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Protocol

from medimg.errors import ReadError
from medimg.io.dicomweb.server import find_server
from medimg.io.dicomweb.service_url import ResourceUrl
from medimg.io.scan import build_index
from medimg.serve._problem import RequestError
from medimg.serve._unpacked_size import check_unpacked

if TYPE_CHECKING:
    from collections.abc import Collection

    from medimg.errors import MedimgError
    from medimg.io.series_index import SeriesIndex
    from medimg.serve._upload import Upload
    from medimg.serve.limits import ServiceLimits

__all__ = ["JobSource", "ServerSource", "UploadSource"]


class JobSource(Protocol):
    """Images of a request."""

    def scan(self, limits: ServiceLimits) -> tuple[SeriesIndex, list[MedimgError]]:
        """Return the series, and the error of each skipped file."""
        ...

    def close(self) -> None:
        """Let further reading fail."""
        ...


@dataclass(frozen=True, slots=True)
class UploadSource:
    """Files of the body."""

    upload: Upload

    def scan(self, limits: ServiceLimits) -> tuple[SeriesIndex, list[MedimgError]]:
        files = self.upload.files()
        check_unpacked(files, limits)
        return build_index(files, progress=False)

    def close(self) -> None:
        self.upload.close()


@dataclass(frozen=True, slots=True)
class ServerSource:
    """A study, series or instance of a DICOMweb server."""

    resource: ResourceUrl

    @classmethod
    def parse(cls, url: str, allowed: Collection[str]) -> ServerSource:
        """Return the source of a URL; RequestError if it is of a server that was not named at the start."""
        try:
            resource = ResourceUrl.parse(url)
        except ReadError as error:
            raise RequestError(HTTPStatus.BAD_REQUEST, str(error)) from None
        if resource.base not in allowed:
            raise RequestError(
                HTTPStatus.FORBIDDEN,
                "the URL is not of a DICOMweb server that the service reads from; those are named when it is "
                "started",
            )
        return cls(resource)

    def scan(self, limits: ServiceLimits) -> tuple[SeriesIndex, list[MedimgError]]:
        index, errors = find_server(self.resource).scan_resource(self.resource)
        if len(index) + len(errors) > limits.max_files:
            raise RequestError(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the study has more than {limits.max_files} series"
            )
        return index, errors

    def close(self) -> None:
        """Requests to the server have deadlines of their own."""
