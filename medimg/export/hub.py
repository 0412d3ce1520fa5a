"""Models on the Hugging Face hub: a checkpoint with its model card."""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from medimg._validation import check_text, printable
from medimg.errors import CheckpointError, also
from medimg.io.files.atomic import hash_file
from medimg.io.files.hub_files import MODEL_FILE, check_repository, push_files

if TYPE_CHECKING:
    from medimg.evaluation.report.report import Report
    from medimg.models.classifier import TransferClassifier

__all__ = ["push_to_hub"]

_CARD: Final = "README.md"


def push_to_hub(
    model: TransferClassifier,
    repository: str,
    *,
    report: Report | None,
    license: str | None,
    private: bool,
    token: str | None,
    revision: str | None,
    message: str | None,
) -> str:
    """Upload a model and its card as one commit; see :meth:`medimg.TransferClassifier.push_to_hub`."""
    name = check_repository(repository)
    if "@" in name:
        raise CheckpointError(f"{printable(name)} has a revision; pass it as revision=, and owner/name alone")
    if license is not None:
        check_text("license", license, error=CheckpointError)
    if token is not None:
        _check_token(token)
    if report is not None and not callable(getattr(report, "to_model_card", None)):
        raise also(CheckpointError, TypeError)(
            f"report must be what medimg.evaluate returned, or None; found a {type(report).__name__}"
        )
    with tempfile.TemporaryDirectory() as folder:
        file = model.save(Path(folder, MODEL_FILE))
        digest = hash_file(file)
        card = Path(folder, _CARD)
        if report is not None:
            report.to_model_card(card)
        text = card.read_text(encoding="utf-8") if report is not None else _describe(model)
        card.write_text(f"{_front_matter(license)}\n{text}\n{_usage(name, digest)}", encoding="utf-8")
        return push_files(
            name,
            {MODEL_FILE: file, _CARD: card},
            private=private,
            token=token,
            revision=revision,
            message=message or f"{type(model).__name__} {model.backbone_name}",
        )


def _check_token(token: object) -> None:
    """Refuse what can't be in a header: the error of the library for HTTP would quote it."""
    if not isinstance(token, str) or not re.fullmatch(r"[!-~]+", token):
        raise CheckpointError(
            "token has characters, such as spaces or line ends, that no token has; copy it from the hub again"
        )


def _front_matter(license: str | None) -> str:
    """Return what the hub searches, as YAML, of which JSON values are a part."""
    fields: dict[str, object] = {
        "library_name": "medimg",
        "pipeline_tag": "image-classification",
        "tags": ["medical", "dicom"],
    }
    if license is not None:
        fields["license"] = license
    return "\n".join(["---", *(f"{name}: {json.dumps(value)}" for name, value in fields.items()), "---"])


def _describe(model: TransferClassifier) -> str:
    """Return the card of a model without a report."""
    classes = ", ".join(_escape(name) for name in model.classes)
    return (
        f"# {_escape(model.backbone_name)}\n\n"
        f"- classes: {classes}\n"
        f"- task: {model.task}\n"
        f"- preprocessing fingerprint: {model.preprocess.fingerprint}\n\n"
        "Its evaluation was not published with it. It is not a medical device.\n"
    )


def _escape(text: str) -> str:
    """Return a name from data without Markdown and HTML."""
    return "".join(f"&#{ord(c)};" if c in "\\`*_{}[]()<>#+!|&~-\n" else c for c in printable(text))


def _usage(repository: str, digest: str) -> str:
    return f"""## How to use

```python
import medimg

model = medimg.load("hf:{repository}", sha256="{digest}")
table = model.predict("folder/of/dicom")
```
"""
