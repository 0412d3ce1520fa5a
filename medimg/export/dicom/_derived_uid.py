"""UIDs that follow from what they identify, so that the same result has the same UID."""

from __future__ import annotations

import uuid
from typing import Final

from medimg.core.content_hash import content_hash, json_text

__all__ = ["derive_uid"]

#: A version-8 UUID of an agreed digest; see RFC 9562, 5.8, and DICOM PS3.5 B.2.
_VERSION, _VARIANT = 0x8, 0b10
_SPACE: Final = "medimg.export 1"


def derive_uid(*facts: object) -> str:
    """
    Return the UID of facts that JSON can hold: "2.25." and the number of a UUID made of their SHA-256.

    >>> derive_uid("SR", ["1.2.3"]) == derive_uid("SR", ["1.2.3"]) != derive_uid("SC", ["1.2.3"])
    True
    """
    number = int(content_hash(json_text([_SPACE, *facts]))[:32], 16)
    number = number & ~(0xF << 76) | _VERSION << 76
    number = number & ~(0b11 << 62) | _VARIANT << 62
    return f"2.25.{uuid.UUID(int=number).int}"
