"""The templates of the page and the model card: loading, escaping and filters."""

from __future__ import annotations

import base64
import io
import re
from functools import cache, partial
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from medimg._plot_style import choose_line_style
from medimg.evaluation.report._formats import (
    format_count,
    format_duration,
    format_interval,
    format_number,
    format_percent,
    format_quantity,
    format_setting,
)
from medimg.evaluation.report._metric_names import describe_metric
from medimg.plotting.html_repr import replace_controls

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

__all__ = ["escape_markdown", "escape_statement", "render_template"]

_SPECIAL: Final = re.compile(r"([\\`*_{}\[\]#|~$])")
#: Headings, underlines of headings, rules, fences and tables, which would divide the card.
_BLOCK: Final = re.compile(r"^(\s*)(#|=+\s*$|-+\s*$|[-*_](?:\s*[-*_]){2,}\s*$|```|~~~|\|)", re.MULTILINE)
#: A link, inline or by reference, to anything but pages and addresses.
_LINK: Final = re.compile(r"\](?=\s*:|\((?!\s*(?:https?://|mailto:)))", re.IGNORECASE)
_MOST_PIXELS: Final = 448  # of an image in the page, along its longer side


def render_template(name: str, **context: Any) -> str:
    """Render a template; whatever is put into it is escaped, for Markdown if its name ends in ``.md.j2``."""
    page = _make_environment(is_markdown=name.endswith(".md.j2")).get_template(name).render(context)
    return replace_controls(page)


@cache
def _make_environment(*, is_markdown: bool) -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("medimg.evaluation.report"),
        autoescape=True,
        finalize=escape_markdown if is_markdown else None,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "duration": format_duration,
        "integer": format_count,
        "interval": format_interval,
        "jpeg": partial(_encode_image, format="JPEG", quality=88),  # a tenth as large, with small errors
        "line_style": choose_line_style,
        "metric": describe_metric,
        "number": format_number,
        "percent": format_percent,
        "png": partial(_encode_image, format="PNG", optimize=True),
        "quantity": format_quantity,
        "setting": format_setting,
        "statement": escape_statement,
    }
    return environment


def escape_markdown(value: object) -> Markup:
    """Make a text neither Markdown nor HTML, and one line; what is marked as safe stays."""
    from markupsafe import Markup

    if isinstance(value, Markup):
        return value
    one_line = " ".join(str(value).split())
    escaped = one_line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return Markup(_SPECIAL.sub(r"\\\1", escaped))


def escape_statement(value: str) -> Markup:
    """Keep emphasis, lists and links of a statement in Markdown, but no HTML, headings or scripts."""
    from markupsafe import Markup

    text = "\n".join(value.splitlines()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return Markup(_LINK.sub(r"\\]", _BLOCK.sub(r"\1\\\2", text)))


def _encode_image(pixels: NDArray[np.uint8], *, format: Literal["JPEG", "PNG"], **options: Any) -> str:
    """Encode pixels, (H, W) or (H, W, 3), as a ``data:`` URI, made smaller if they are many."""
    from PIL import Image

    buffer = io.BytesIO()
    image = Image.fromarray(pixels)
    image.thumbnail((_MOST_PIXELS, _MOST_PIXELS))
    image.save(buffer, format=format, **options)
    return f"data:image/{format.lower()};base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
