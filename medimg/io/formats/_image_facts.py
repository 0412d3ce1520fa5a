"""Facts of an image that raw-array formats have no field for: written as one line of JSON, and read back."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from medimg.errors import ConversionError

if TYPE_CHECKING:
    from medimg.core.volume import Volume

__all__ = ["FACTS_FIELD", "ImageFacts", "as_units"]

#: Key of the facts in a header.
FACTS_FIELD: Final = "medimg"
#: A Code String (PS3.5 6.2).
_MODALITY: Final = re.compile(r"[A-Z0-9_ ]{0,16}")
#: No separators of headers, as damage can join a line and the next one, which may have a name.
_STATED_UNITS: Final = re.compile(r"[^\s:=#]{1,16}")
#: ITK does not read a MetaImage whose header has much longer lines.
_MAX_JSON: Final = 4000
_MAX_TEXT: Final = 64


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """Modality, units, names of channels and display of an image; nothing that identifies a patient."""

    modality: str = ""
    units: str = "raw"
    channels: tuple[str, ...] = ()
    inverted: bool = False
    display_range: tuple[float, float] | None = None

    @classmethod
    def of_volume(cls, volume: Volume) -> ImageFacts:
        """Return the facts of a volume; ConversionError if its modality or units are no such text."""
        if not _is_modality(volume.modality):
            raise ConversionError(
                "the modality of the volume is not a code such as CT, of up to 16 capitals and digits; "
                "correct it by dataclasses.replace(volume, modality=...)"
            )
        if not _is_units(volume.units):
            raise ConversionError(
                f"the units of the volume are not up to {_MAX_TEXT} printable characters; correct them by "
                "dataclasses.replace(volume, units=...)"
            )
        plain = ("",) if len(volume) == 1 else tuple(map(str, range(len(volume))))
        named = not volume.is_color and volume.channels != plain
        facts = cls(
            modality=volume.modality,
            units=volume.units,
            channels=volume.channels if named else (),
            inverted=volume.inverted,
            display_range=volume.display_range,
        )
        short = len(facts.to_json()) <= _MAX_JSON and _are_names(list(facts.channels))
        return facts if short else cls(facts.modality, facts.units, (), facts.inverted, facts.display_range)

    def to_json(self) -> str:
        """Return the facts that differ from the defaults as ASCII without line breaks; "" if none do."""
        stated: dict[str, Any] = {
            "modality": self.modality,
            "units": "" if self.units == "raw" else self.units,
            "channels": self.channels,
            "inverted": self.inverted,
            "display_range": self.display_range,
        }
        stated = {key: value for key, value in stated.items() if value}
        return json.dumps(stated) if stated else ""

    @classmethod
    def parse(cls, text: str) -> tuple[ImageFacts, tuple[str, ...]]:
        """Return the facts of a header, and a warning if they are damaged, and none of them is used."""
        try:
            return cls(**_check(json.loads(text))), ()
        except (ValueError, TypeError, RecursionError):
            note = (
                f"the header's field {FACTS_FIELD} is damaged: modality and units of the values are unknown"
            )
            return cls(), (note,)

    def as_fields(self, channels: int) -> dict[str, Any]:
        """Return the fields of a `Raster` of so many channels; names of another number are not used."""
        return {
            "modality": self.modality,
            "units": self.units,
            "channel_names": self.channels if len(self.channels) == channels else (),
            "inverted": self.inverted,
            "display_range": self.display_range,
        }


def as_units(stated: str) -> str:
    """Return the units that a field of a format states; "raw" if they can't be those of values."""
    return stated if _STATED_UNITS.fullmatch(stated) and stated.isprintable() else "raw"


def _check(found: Any) -> dict[str, Any]:
    """Return checked fields; raise a TypeError or ValueError for anything else."""
    fields = dict(found)
    low, high = fields.get("display_range") or (0, 1)
    is_valid = (
        _is_modality(fields.get("modality", ""))
        and _is_units(fields.get("units", "raw"))
        and isinstance(fields.get("inverted", False), bool)
        and _are_names(fields.get("channels", []))
        and -1e9 < float(low) < float(high) < 1e9
    )
    if not is_valid:
        raise ValueError
    if "channels" in fields:
        fields["channels"] = tuple(fields["channels"])
    if "display_range" in fields:
        fields["display_range"] = (float(low), float(high))
    return fields


def _is_modality(value: object) -> bool:
    return isinstance(value, str) and _MODALITY.fullmatch(value) is not None


def _is_units(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= _MAX_TEXT and value.isprintable()


def _are_names(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(name, str) and len(name) <= _MAX_TEXT and name.isprintable() for name in value
    )
