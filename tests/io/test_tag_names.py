"""Names of attributes: every form, and what is no attribute."""

from __future__ import annotations

from typing import Any

import pytest

from medimg.errors import MedimgError
from medimg.io.tag_names import TagName, parse_tag_names


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("RepetitionTime", TagName("RepetitionTime", 0x00180080)),
        ("0018,0080", TagName("0018,0080", 0x00180080)),
        ("(0018, 0080)", TagName("(0018, 0080)", 0x00180080)),
        ("00180080", TagName("00180080", 0x00180080)),
        ("0x00180080", TagName("0x00180080", 0x00180080)),
        ("(0x0018, 0x0080)", TagName("(0x0018, 0x0080)", 0x00180080)),
        (0x00180080, TagName("RepetitionTime", 0x00180080)),
        ((0x0018, 0x0080), TagName("RepetitionTime", 0x00180080)),
        ("0019,100C", TagName("0019,100C", 0x0019100C)),
        (0x0019100C, TagName("0019,100c", 0x0019100C)),
        (
            "0019,xx0c,SIEMENS MR HEADER",
            TagName("0019,xx0c,SIEMENS MR HEADER", 0x0019000C, "SIEMENS MR HEADER"),
        ),
        ('(0019,XX0C,"SIEMENS")', TagName('(0019,XX0C,"SIEMENS")', 0x0019000C, "SIEMENS")),
        ((0x0019, 0x0C, "SIEMENS"), TagName("0019,xx0c,SIEMENS", 0x0019000C, "SIEMENS")),
    ],
)
def test_every_form_is_understood(name: Any, expected: TagName) -> None:
    assert parse_tag_names([name]) == (expected,)


@pytest.mark.parametrize(
    ("name", "kind", "hint"),
    [
        ("RepetitonTime", KeyError, "did you mean 'RepetitionTime'"),
        ("Repetition Time", KeyError, "did you mean 'RepetitionTime'"),
        ("kvp", KeyError, "did you mean 'KVP'"),
        ("", KeyError, "no DICOM attribute ''"),
        ("0018", KeyError, "no DICOM attribute"),
        ("0018,xx80,SIEMENS", ValueError, "group is odd"),
        ((0x0019, 0x100C, "SIEMENS"), ValueError, "two digits"),
        ((0x10019, 0x0C), ValueError, "no DICOM attribute"),
        ((0x0018, -1), ValueError, "no DICOM attribute"),
        (-5, ValueError, "no DICOM attribute -5"),
        (2**33, ValueError, "no DICOM attribute"),
        (0x0018, ValueError, "no DICOM attribute 24 in files"),
        ("PixelData", ValueError, r"series.read\(\)"),
        ("(FFFC,FFFC)", ValueError, "not an attribute of the header"),
        (["KVP"], TypeError, "type list"),
        (True, TypeError, "type bool"),
        (None, TypeError, "type NoneType"),
        ((0x0018,), TypeError, "type tuple"),
    ],
)
def test_what_is_no_attribute_is_an_error(name: Any, kind: type[Exception], hint: str) -> None:
    with pytest.raises(MedimgError, match=hint) as caught:
        parse_tag_names(["KVP", name])
    assert isinstance(caught.value, kind)
