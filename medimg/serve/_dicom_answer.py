"""Answers in DICOM: the results of a request as instances, alone or as multipart (PS3.18 8.6)."""

from __future__ import annotations

import io
import re
import uuid
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, Literal, cast, get_args
from urllib.request import parse_http_list

from fastapi.responses import Response

from medimg._validation import printable
from medimg.export import make_results
from medimg.export.dicom.write_results import ResultKind
from medimg.io.dicom.header.attributes import quiet_pydicom
from medimg.io.dicomweb.multipart import MultipartBody
from medimg.serve._problem import RequestError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pandas as pd
    from fastapi import Request

    from medimg.io.series import Series
    from medimg.models.classifier import TransferClassifier

__all__ = ["AnswerType", "choose_answer_type", "encode_results", "make_dicom_response", "parse_kinds"]

AnswerType = Literal["application/json", "application/dicom", "multipart/related"]
_QUALITY: Final = re.compile(r"0(\.[0-9]{0,3})?|1(\.0{0,3})?")
_KINDS: Final = get_args(ResultKind)


def choose_answer_type(request: Request) -> AnswerType:
    """Return the type of the answer that the header Accept prefers; RequestError if it allows none."""
    ranges = [_Range.parse(part) for part in parse_http_list(",".join(request.headers.getlist("accept")))]
    if not ranges:
        return "application/json"
    # of those with the same quality, the first of the header
    ranked = [(*_rank(answer, ranges), -number, answer) for number, answer in enumerate(get_args(AnswerType))]
    quality, _, _, best = max(ranked)
    if quality > 0:
        return cast("AnswerType", best)
    raise RequestError(
        HTTPStatus.NOT_ACCEPTABLE,
        "the header Accept allows no type of the answers: application/json, application/dicom, or "
        'multipart/related; type="application/dicom"',
    )


@dataclass(frozen=True, slots=True)
class _Range:
    """A range of types that a client accepts, and its quality (RFC 9110 12.5.1)."""

    name: str
    part_type: str
    quality: float

    @classmethod
    def parse(cls, text: str) -> _Range:
        name, *fields = (field.strip().lower() for field in text.split(";"))
        settings = {
            key.strip(): value.strip(' "') for key, _, value in (one.partition("=") for one in fields)
        }
        quality = settings.get("q", "1")
        return cls(
            name,
            settings.get("type", "application/dicom"),
            float(quality) if _QUALITY.fullmatch(quality) else 1.0,
        )

    def fit(self, answer: AnswerType) -> int:
        """Return how narrowly the range describes a type; 0 if it does not."""
        if answer == "multipart/related" and self.part_type != "application/dicom":
            return 0
        names = ("*/*", f"{answer.partition('/')[0]}/*", answer)
        return names.index(self.name) + 1 if self.name in names else 0


def _rank(answer: AnswerType, ranges: list[_Range]) -> tuple[float, int]:
    """Return the quality of a type, that of its narrowest range, and how early that range is."""
    fits = [(one.fit(answer), -number, one.quality) for number, one in enumerate(ranges)]
    fit, early, quality = max(fits)
    return (quality, early) if fit else (0.0, 0)


def parse_kinds(request: Request, answer: AnswerType) -> tuple[ResultKind, ...]:
    """Return the kinds of results in DICOM that the query asks for; none for an answer in JSON."""
    stated = request.query_params.get("results")
    if answer == "application/json":
        if stated is not None:
            raise RequestError(
                HTTPStatus.BAD_REQUEST,
                "results= is for answers in DICOM; send the header Accept: multipart/related; "
                'type="application/dicom"',
            )
        return ()
    if stated is None:
        return ("sr",) if answer == "application/dicom" else ("sr", "sc")
    kinds = tuple(kind for kind in _KINDS if kind in stated.split(","))
    if not kinds or set(stated.split(",")) - set(_KINDS):
        raise RequestError(
            HTTPStatus.BAD_REQUEST,
            f"results= must be some of {', '.join(_KINDS)}, separated by commas; found "
            f"{printable(stated, 40)!r}",
        )
    return kinds


def encode_results(
    model: TransferClassifier, series: Series, table: pd.DataFrame, kinds: tuple[ResultKind, ...]
) -> Iterator[bytes]:
    """Yield the results of a series as DICOM files; ConversionError if it is of another format."""
    for dataset in make_results(model, [series], kinds=kinds, predictions=table, progress=False):
        file = io.BytesIO()
        with quiet_pydicom():
            dataset.save_as(file, enforce_file_format=True)
        yield file.getvalue()


def make_dicom_response(instances: list[bytes], answer: AnswerType) -> Response:
    """Return instances as the answer; RequestError if several do not fit the type."""
    if answer == "application/dicom":
        if len(instances) != 1:
            raise RequestError(
                HTTPStatus.NOT_ACCEPTABLE,
                f"there are {len(instances)} results, and application/dicom is one; send the header Accept: "
                'multipart/related; type="application/dicom"',
            )
        return Response(instances[0], media_type=answer)
    body = MultipartBody(uuid.uuid4().hex, [(len(one), partial(iter, [one])) for one in instances])
    return Response(b"".join(body), headers=body.headers)
