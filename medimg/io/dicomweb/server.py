"""``medimg.dicomweb``: a DICOMweb server, searched, read and stored to."""

from __future__ import annotations

import os
import re
import ssl
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from medimg._public import set_module
from medimg._validation import check_choice, check_number, check_whole_number
from medimg.core.read_report import Skipped
from medimg.errors import ReadError
from medimg.io.dicomweb.file_cache import FileCache
from medimg.io.dicomweb.remote_series import load_one, read_series
from medimg.io.dicomweb.retrieval import Retriever
from medimg.io.dicomweb.series_search import search_series
from medimg.io.dicomweb.service_url import ResourceUrl, check_uid, is_dicomweb_url, parse_service_url
from medimg.io.dicomweb.store_instances import StoreResult, store_files
from medimg.io.dicomweb.transport import Credentials, Transport
from medimg.io.series_index import SeriesIndex, SkippedFiles
from medimg.io.sources import is_buffer

if TYPE_CHECKING:
    from collections.abc import Callable

    from pydicom.dataset import Dataset

    from medimg.core.stacking import Policy
    from medimg.core.volume import Volume
    from medimg.errors import MedimgError
    from medimg.io.series import ValueKind
    from medimg.io.sources import Files

__all__ = ["DicomWebServer", "dicomweb", "find_server", "separate_resources"]

_GIB: Final = 2**30
_LEAST_CACHE: Final = 2**20
_MAX_DEFAULTS: Final = 32
_HEADER_NAME: Final = re.compile(r"[A-Za-z0-9-]+")


@set_module("medimg")
class DicomWebServer:
    """
    A DICOMweb server: an archive (PACS) that is searched, read and stored to over HTTP (PS3.18).

    Made by :func:`medimg.dicomweb`. Its repr has the name of the host only.
    """

    def __init__(self, base: str, transport: Transport, cache: FileCache | None) -> None:
        self._base = base
        self._retriever = Retriever(transport, cache)

    def __repr__(self) -> str:
        return f"DicomWebServer({self._retriever.transport.host})"

    def search(self, *, limit: int | None = None, **conditions: object) -> SeriesIndex:
        """
        Search for series (QIDO-RS); nothing else is read until it is used.

        Parameters
        ----------
        limit : int, optional
            Largest number of series; by default all, up to 100,000.
        **conditions
            Value, or several possible ones in a list, of ``modality``, ``description``, ``body_part``,
            ``patient_id``, ``study_uid`` or ``uid``, or of a DICOM keyword that the server searches by, such
            as ``StudyDate``, ``AccessionNumber`` or ``PatientName``. ``*`` and ``?`` in a text stand for any
            characters; a range of dates is ``"20240101-20241231"``, ``"20240101-"`` or ``"-20241231"``.

        Returns
        -------
        SeriesIndex
            Series found, possibly none, sorted by URL. The metadata of a series are read when its shape,
            affine or pixels are first used; until then its row of :meth:`SeriesIndex.to_pandas` has only what
            the search gives. If a series holds several stacks of images, reading it raises
            AmbiguousSeriesError: ``medimg.scan(series.path)`` lists them.

        Raises
        ------
        MedimgError
            If a condition is neither such a column nor a DICOM keyword; it is a ``KeyError``, too.
        ReadError
            If the server can't be reached, refuses the search, or answers with something else; it is a
            ``PermissionError``, ``TimeoutError`` or ``ConnectionError``, too.

        Warns
        -----
        MedimgWarning
            If the server also gives series that do not meet the conditions, which are left out.

        Examples
        --------
        >>> index = server.search(modality="CT", StudyDate="20240101-")  # doctest: +SKIP
        >>> index.to_pandas()[["description", "files"]]  # doctest: +SKIP
        >>> volume = index[0].read()  # doctest: +SKIP
        """
        if limit is not None:
            check_whole_number("limit", limit, least=1, error=ReadError)
        found, skipped = search_series(self._retriever, self._base, conditions, limit)
        return SeriesIndex(tuple(found), SkippedFiles(skipped))

    def read(
        self,
        study: str,
        series: str | None = None,
        instance: str | None = None,
        *,
        on_missing: Policy = "raise",
        on_duplicate: Policy = "warn",
        on_tilt: Policy = "warn",
        values: ValueKind = "auto",
    ) -> Volume:
        """
        Read one image (WADO-RS).

        Parameters
        ----------
        study : str
            Study Instance UID, or the URL of a study, series or instance of this server.
        series, instance : str, optional
            Series and SOP Instance UID; a study must have one series, if none is given.
        on_missing, on_duplicate, on_tilt : {"raise", "warn", "fix", "keep"}
            See :func:`medimg.read`.
        values : {"auto", "rescaled", "suv"}
            See :func:`medimg.read`.

        Returns
        -------
        Volume
            (C, D, H, W), as if its files were read.

        Raises
        ------
        AmbiguousSeriesError
            If there are several series.
        ReadError, SeriesError
            See :func:`medimg.read`, and :meth:`search` for what can go wrong with a server.

        Examples
        --------
        >>> server.read("1.2.840…", "1.2.840…")  # doctest: +SKIP
        Volume(1×133×512×512 int16, CT, HU, spacing 2×0.742×0.742 mm, SPL)
        """
        resource = self._locate(study, series, instance)
        return load_one(self._retriever, resource).read(
            on_missing=on_missing, on_duplicate=on_duplicate, on_tilt=on_tilt, values=values
        )

    def scan(self, study: str, series: str | None = None, instance: str | None = None) -> SeriesIndex:
        """
        Find the series of a study, a series or an instance by their metadata, without pixels (WADO-RS).

        Parameters
        ----------
        study, series, instance : str, optional
            As for :meth:`read`.

        Returns
        -------
        SeriesIndex
            Stacks of images, as :func:`medimg.scan` finds them in files; ``skipped`` lists the instances that
            are none, with the reason.

        Raises
        ------
        ReadError
            See :meth:`search`.
        """
        return self.scan_resource(self._locate(study, series, instance))[0]

    def scan_resource(self, resource: ResourceUrl) -> tuple[SeriesIndex, list[MedimgError]]:
        """
        Return what :meth:`scan` does, and the error of each skipped instance.

        Parameters
        ----------
        resource : ResourceUrl
            Study, series or instance.

        Returns
        -------
        tuple
            SeriesIndex and list of errors.
        """
        found, failed = read_series(self._retriever, resource)
        skipped = SkippedFiles(Skipped(name, str(error)) for name, error in failed)
        return SeriesIndex(tuple(found), skipped), [error for _, error in failed]

    def store(
        self, source: Files | Iterator[Dataset], *, study: str | None = None, on_error: str = "raise"
    ) -> StoreResult:
        """
        Store DICOM files (STOW-RS).

        Parameters
        ----------
        source : str, Path, bytes, pydicom Dataset, or list of these
            Folder, zip archive or files, or instances in memory, also those that
            :func:`medimg.export.make_results` yields. They are sent as they are, a few at a time.
        study : str, optional
            Study Instance UID that all instances must have.
        on_error : {"raise", "collect"}
            Whether instances that are not stored raise an error, or are only listed in the result.

        Returns
        -------
        StoreResult
            What the server confirms, and each instance that was not stored, with the reason.

        Raises
        ------
        StoreError
            If an instance was not stored and `on_error` is "raise"; its ``result`` has what was. It is a
            ``ConnectionError`` or ``TimeoutError``, too, if the server failed, and a ``PermissionError`` if
            it does not accept the credentials. Instances that the server has already may be sent again.
        ReadError
            If the source does not exist.

        Examples
        --------
        >>> server.store("results/report.dcm")  # doctest: +SKIP
        StoreResult(1 stored, 0 failed)
        """
        check_choice("on_error", on_error, ("raise", "collect"), error=ReadError)
        given = list(source) if isinstance(source, Iterator) and not is_buffer(source) else source
        return store_files(self._retriever.transport, given, study=study, collects=on_error == "collect")

    def _locate(self, study: str, series: str | None, instance: str | None) -> ResourceUrl:
        if instance is not None and series is None:
            raise ReadError("an instance is found by the UIDs of its study and series; pass series=, too")
        if is_dicomweb_url(study):
            found = ResourceUrl.parse(study)
            if found.base != self._base or series is not None:
                raise ReadError("the URL is not of this server, or series= was given with a URL")
            return found
        found = ResourceUrl(self._base, check_uid(study, "Study Instance UID"))
        if series is not None:
            found = found.in_series(series)
        return found if instance is None else found.in_instance(instance)


_lock = threading.Lock()
#: Servers by their base URLs: those of medimg.dicomweb, and others that URLs were read from.
_servers: dict[str, DicomWebServer] = {}
_others: OrderedDict[str, DicomWebServer] = OrderedDict()


@set_module("medimg")
def dicomweb(
    url: str,
    *,
    headers: Mapping[str, str] | None = None,
    auth: tuple[str, str] | Callable[..., object] | None = None,
    token: Callable[[], str] | None = None,
    verify: bool | str | os.PathLike[str] = True,
    cert: str | os.PathLike[str] | tuple[str | os.PathLike[str], str | os.PathLike[str]] | None = None,
    timeout: float = 60.0,
    retries: int = 4,
    cache: str | os.PathLike[str] | None = None,
    cache_bytes: int = 10 * _GIB,
) -> DicomWebServer:
    """
    Connect to a DICOMweb server; nothing is sent until it is used.

    From then on, URLs of its studies, series and instances are read with this connection, in this process:
    ``medimg.read("https://host/dicom-web/studies/1.2/series/3.4")``, and likewise :func:`medimg.scan`,
    datasets, and ``model.predict``. URLs of other servers are read with the defaults.

    Parameters
    ----------
    url : str
        Base URL, such as ``"https://host/dicom-web"``: what comes before ``/studies``.
    headers : mapping of str to str, optional
        Headers of each request, such as an API key.
    auth : (user, password) or requests.auth.AuthBase, optional
        Basic authentication, or an object that signs requests. Without `auth`, `token` and `headers`, the
        entry of the host in ``.netrc`` is used if there is one.
    token : callable, optional
        Function without arguments that returns a bearer token (OAuth 2). It is called for the first request,
        and again when the server refuses the token (401).
    verify : bool, str or Path
        Path of the certificates of the authorities (CA) that the server's is verified by, a file or folder;
        True for those that ``REQUESTS_CA_BUNDLE`` names, else certifi's. It can't be switched off.
    cert : str, Path or pair of these, optional
        Certificate of this client (mutual TLS), a PEM file with its private key, or the paths of both. The
        key must not be encrypted.
    timeout : float
        Seconds that the server may be silent. A request that fails is repeated only as long as no more than
        this time has passed.
    retries : int
        Largest number of repetitions of a request after a broken connection, or an answer 429, 502, 503 or
        504, with growing pauses, or those that the server asks for (Retry-After).
    cache : str or Path, optional
        Folder of the user, closed to others, for files that were read. It holds patient data.
    cache_bytes : int
        Largest size of the cache; files that were not used for the longest time are removed first.

    Returns
    -------
    DicomWebServer

    Raises
    ------
    ReadError
        If an argument is invalid, or the cache folder can be opened by others.
    MissingDependencyError
        If requests is not installed: ``pip install 'medimg[pacs]'``.

    Warns
    -----
    MedimgWarning
        When credentials are sent over ``http://`` to another machine.

    Notes
    -----
    Credentials are sent to this host alone, not to others that it redirects to. They are in no repr, message
    or file; a pickle, as worker processes get it, has them.

    Proxies are those of the environment: ``HTTP_PROXY``, ``HTTPS_PROXY`` and ``NO_PROXY``.

    Examples
    --------
    >>> import medimg
    >>> medimg.dicomweb("https://pacs.example.org/dicom-web", auth=("reader", "secret"))
    DicomWebServer(pacs.example.org)
    """
    base = parse_service_url(url)
    credentials = Credentials(_check_headers(headers), _check_auth(auth), _check_token(token))
    if credentials.auth is not None and credentials.token is not None:
        raise ReadError("auth= and token= exclude each other; pass one of them")
    transport = Transport(
        base,
        credentials,
        verify=_check_verify(verify),
        cert=_check_cert(cert),
        timeout=check_number("timeout", timeout, above=0, error=ReadError),
        retries=check_whole_number("retries", retries, least=0, most=20, error=ReadError),
    )
    size = check_whole_number("cache_bytes", cache_bytes, least=_LEAST_CACHE, error=ReadError)
    server = DicomWebServer(base, transport, None if cache is None else FileCache(Path(cache), size))
    with _lock:
        _servers[base] = server
    return server


def find_server(resource: ResourceUrl) -> DicomWebServer:
    """Return the connection to the server of a resource: that of :func:`dicomweb`, or a default one."""
    with _lock:
        server = _servers.get(resource.base) or _others.get(resource.base)
        if server is None:
            transport = Transport(resource.base, Credentials({}))
            server = _others[resource.base] = DicomWebServer(resource.base, transport, None)
            while len(_others) > _MAX_DEFAULTS:
                _others.popitem(last=False)
        return server


def separate_resources(source: object) -> tuple[list[ResourceUrl], object, bool]:
    """Return the URLs of DICOMweb servers in a source, the rest of it, and whether there is a rest."""
    if is_dicomweb_url(source):
        return [ResourceUrl.parse(source)], [], False
    if not isinstance(source, Sequence) or isinstance(source, str | bytes | bytearray | memoryview):
        return [], source, True
    urls = [ResourceUrl.parse(item) for item in source if is_dicomweb_url(item)]
    others = [item for item in source if not is_dicomweb_url(item)]
    return urls, others, bool(others or not urls)


def _check_headers(headers: object) -> Mapping[str, str]:
    if headers is None:
        return {}
    if not isinstance(headers, Mapping):
        raise ReadError(f"headers must be a mapping of names to texts; found a {type(headers).__name__}")
    for name, value in headers.items():
        is_valid = isinstance(name, str) and _HEADER_NAME.fullmatch(name) is not None
        # never with the value, which may be a secret
        if not is_valid or not isinstance(value, str) or not value.isprintable() or not value.isascii():
            raise ReadError("headers must be names of letters, digits and dashes, with texts of one line")
    return dict(headers)


def _check_auth(auth: object) -> Any:
    if auth is None or callable(auth):
        return auth
    if not isinstance(auth, Sequence) or len(auth) != 2 or not all(isinstance(part, str) for part in auth):
        raise ReadError("auth must be (user, password), or a requests.auth.AuthBase")
    return tuple(part.encode() for part in auth)


def _check_token(token: object) -> Any:
    if token is not None and not callable(token):
        raise ReadError("token must be a function that returns a bearer token, as tokens expire")
    return token


def _check_verify(verify: object) -> bool | str:
    if verify is True:
        return True
    if not isinstance(verify, str | os.PathLike):
        raise ReadError(
            "verify must be True or the path of the certificates of an authority (CA): without verification, "
            "anybody on the network could read along; for a self-signed certificate pass its own path"
        )
    path = Path(verify)
    if not path.exists():
        raise ReadError(f"verify: there is no file or folder {path}")
    if path.is_file():
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
        except OSError:
            raise ReadError(f"verify: {path} holds no certificate; expected a PEM file") from None
    return str(path)


def _check_cert(cert: object) -> str | tuple[str, str] | None:
    if cert is None:
        return None
    paths = [cert] if not isinstance(cert, Sequence) or isinstance(cert, str) else list(cert)
    names = [str(path) for path in paths if isinstance(path, str | os.PathLike)]
    if not 1 <= len(names) <= 2 or len(names) < len(paths):
        raise ReadError("cert must be a path, or the paths of a certificate and of its private key")
    for name in names:
        if not Path(name).is_file():
            raise ReadError(f"cert: there is no file {name}")

    def refuse() -> str:
        # OpenSSL would ask for it on the terminal
        raise ReadError(f"cert: the private key in {names[-1]} is encrypted; save it without a password")

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(
            names[0], names[1] if names[1:] else None, refuse
        )
    except ReadError:
        raise
    except OSError:
        raise ReadError(
            f"cert: {names[0]} and its private key can't be used; expected PEM files that belong together"
        ) from None
    return names[0] if len(names) == 1 else (names[0], names[1])
