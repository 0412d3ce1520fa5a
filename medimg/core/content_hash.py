"""Hashes of content and of code (SHA-256), and keyed hashes of identifiers (BLAKE2b)."""

from __future__ import annotations

import functools
import hashlib
import json
import re
import secrets
import types
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, TypeAlias

__all__ = [
    "Buffer",
    "KeyedHash",
    "content_hash",
    "describe_callable",
    "json_text",
    "keyed_digest",
    "keyed_hash",
]

#: Bytes in memory; `str` is hashed as UTF-8.
Buffer: TypeAlias = str | bytes | bytearray | memoryview
#: Replaces an identifier by a hash that can't be looked up.
KeyedHash: TypeAlias = Callable[[str], str]

_DEEPEST: Final = 8  # callables within callables
#: Where an object is in memory, in its text.
_ADDRESS: Final = re.compile(r" at 0x[0-9a-fA-F]+")


def content_hash(content: Buffer | Iterable[Buffer]) -> str:
    """
    Return the SHA-256 of bytes or text, or of several one after another, as 64 hexadecimal digits.

    Examples
    --------
    >>> content_hash("abc") == content_hash([b"a", "bc"])
    True
    """
    parts = [content] if isinstance(content, str | bytes | bytearray | memoryview) else content
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode() if isinstance(part, str) else part)
    return digest.hexdigest()


def json_text(facts: Any, *, compact: bool = False, default: Callable[[Any], Any] | None = None) -> str:
    """
    Return canonical JSON (keys sorted), so that equal facts have equal hashes.

    Examples
    --------
    >>> json_text({"b": 1, "a": [2, None]}), json_text([1, 2], compact=True)
    ('{"a": [2, null], "b": 1}', '[1,2]')
    """
    separators = (",", ":") if compact else None
    return json.dumps(facts, sort_keys=True, separators=separators, default=default)


def keyed_digest(content: bytes, key: bytes, size: int) -> bytes:
    """Return the keyed BLAKE2b digest of bytes, `size` bytes long."""
    return hashlib.blake2b(content, key=key, digest_size=size).digest()


def keyed_hash(key: bytes | None = None, *, size: int = 6) -> KeyedHash:
    """
    Return a function that hashes identifiers with a key to `2 * size` hexadecimal digits.

    Without a key a random one is used and not stored, so that the hashes can't be looked up.

    Examples
    --------
    >>> pseudonym = keyed_hash()
    >>> pseudonym("a") == pseudonym("a") != pseudonym("b"), pseudonym("a") == keyed_hash()("a")
    (True, False)
    """
    salt = secrets.token_bytes(32) if key is None else key
    # file names that are not UTF-8 contain surrogates
    return lambda name: keyed_digest(name.encode(errors="surrogatepass"), salt, size).hex()


def name_callable(value: object) -> str:
    """
    Return the name of a function, class or object, with its module.

    >>> name_callable(functools.partial(json_text, 3))
    'medimg.core.content_hash.json_text'
    """
    while isinstance(value, functools.partial):
        value = value.func
    named: Any = value if hasattr(value, "__qualname__") else type(value)
    return f"{named.__module__}.{named.__qualname__}"


def describe_callable(value: Any) -> str:
    """
    Return the type of a callable with a digest: of a function of its compiled code and defaults.

    >>> describe_callable(lambda x: x) == describe_callable(lambda x: x * 0)
    False
    """
    return f"{type(value).__qualname__} {content_hash(json_text(_list_facts(value)))[:16]}"


def _list_facts(value: Any, depth: int = 0) -> list[Any]:
    """Return the parts of a callable or of a constant in it that tell it from others."""
    if isinstance(value, functools.partial):
        parts: Sequence[Any] = (value.func, *value.args, *sorted(value.keywords.items()))
    elif isinstance(value, types.MethodType):
        parts = (value.__func__, value.__self__)
    elif isinstance(value, types.FunctionType):
        import inspect

        nonlocals = inspect.getclosurevars(value).nonlocals
        parts = (value.__code__, *(value.__defaults__ or ()), *nonlocals.items())
    elif isinstance(value, types.CodeType):
        parts = (value.co_code.hex(), *value.co_names, *value.co_consts)
    elif isinstance(value, tuple | list):
        parts = value
    else:
        return [type(value).__qualname__, _ADDRESS.sub("", repr(value))]
    return [_list_facts(part, depth + 1) for part in parts] if depth < _DEEPEST else []
