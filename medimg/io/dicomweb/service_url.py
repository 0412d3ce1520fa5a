"""URLs of DICOMweb servers and of what is on them; UIDs that are safe in a path."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import Final, TypeGuard
from urllib.parse import SplitResult, urljoin, urlsplit

from medimg.errors import ReadError

__all__ = [
    "ResourceUrl",
    "check_uid",
    "find_origin",
    "is_dicomweb_url",
    "is_loopback",
    "join_url",
    "parse_service_url",
]

_UID: Final = re.compile(r"[0-9]+(\.[0-9]+)*")
_MAX_UID: Final = 64
_RESOURCE: Final = re.compile(
    r"(?P<base>https?://[^/?#]+(?:/[^?#]*)?)/studies/(?P<study>[0-9.]+)"
    r"(?:/series/(?P<series>[0-9.]+)(?:/instances/(?P<instance>[0-9.]+))?)?/?",
    re.IGNORECASE,
)
_PORTS: Final = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class ResourceUrl:
    """A study, series or instance; `base` is the URL of the server, without a slash at its end."""

    base: str
    study: str
    series: str = ""
    instance: str = ""

    @property
    def path(self) -> str:
        """Path below the URL of the server."""
        names = {"studies": self.study, "series": self.series, "instances": self.instance}
        return "".join(f"/{name}/{uid}" for name, uid in names.items() if uid)

    @property
    def url(self) -> str:
        """The URL itself."""
        return self.base + self.path

    def in_series(self, uid: str) -> ResourceUrl:
        """Return a series of the study."""
        return replace(self, series=check_uid(uid, "Series Instance UID"), instance="")

    def in_instance(self, uid: str) -> ResourceUrl:
        """Return an instance of the series."""
        return replace(self, instance=check_uid(uid, "SOP Instance UID"))

    @classmethod
    def parse(cls, url: str) -> ResourceUrl:
        """Parse the URL of a study, series or instance; ReadError if it is none."""
        match = _RESOURCE.fullmatch(url)
        if match is None:
            raise ReadError(
                "this is not the URL of a study, series or instance of a DICOMweb server; expected "
                "https://host/path/studies/UID, /studies/UID/series/UID or "
                "/studies/UID/series/UID/instances/UID"
            )
        base = parse_service_url(match["base"])
        names = {"study": "Study", "series": "Series", "instance": "SOP"}
        uids = {
            name: check_uid(match[name], f"{title} Instance UID")
            for name, title in names.items()
            if match[name]
        }
        return cls(base, **uids)


def is_dicomweb_url(source: object) -> TypeGuard[str]:
    """Whether a source is the URL of a study, series or instance."""
    return isinstance(source, str) and _RESOURCE.fullmatch(source) is not None


def check_uid(uid: object, name: str) -> str:
    """Return a UID that is safe in a path; ReadError if it is none."""
    if not isinstance(uid, str) or len(uid) > _MAX_UID or not _UID.fullmatch(uid):
        raise ReadError(f"invalid {name}; expected up to {_MAX_UID} digits and dots (PS3.5 9.1)")
    return uid


def parse_service_url(url: object) -> str:
    """Return the URL of a server without a slash at its end; ReadError, without the URL, if it is invalid."""
    expected = "expected https://host[:port][/path]"
    if not isinstance(url, str):
        raise ReadError(f"the URL of a DICOMweb server can't be a {type(url).__name__}; {expected}")
    parts = _split(url)
    if parts is None or parts.scheme.lower() not in _PORTS or not parts.hostname:
        raise ReadError(f"invalid URL of a DICOMweb server; {expected}")
    if parts.username is not None or parts.password is not None:
        raise ReadError("the URL of a DICOMweb server must not hold a password; pass auth=(user, password)")
    if parts.query or parts.fragment:
        raise ReadError(f"the URL of a DICOMweb server can't have a query or a fragment; {expected}")
    if not url.isprintable() or " " in url or "\\" in url or ".." in parts.path.split("/"):
        raise ReadError(f"the URL of a DICOMweb server has characters that are not allowed; {expected}")
    return f"{parts.scheme.lower()}://{parts.netloc.lower()}{parts.path.rstrip('/')}"


def find_origin(url: str) -> tuple[str, str, int] | None:
    """Return scheme, host and port of a URL; None if it is invalid."""
    parts = _split(url)
    if parts is None or parts.scheme.lower() not in _PORTS or not parts.hostname:
        return None
    return parts.scheme.lower(), parts.hostname.lower(), parts.port or _PORTS[parts.scheme.lower()]


def join_url(base: str, url: str) -> str:
    """Return a URL that may be relative to another one; "" if it is invalid."""
    try:
        return urljoin(base, url)
    except ValueError:
        return ""


def _split(url: str) -> SplitResult | None:
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises ValueError if it is no number
    except ValueError:
        return None
    return parts


def is_loopback(host: str) -> bool:
    """Whether a host is this machine."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
