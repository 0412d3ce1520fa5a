"""Hashes are those of the standard library: they are stored in files."""

from __future__ import annotations

import hashlib
import json

from medimg.core.content_hash import content_hash, json_text, keyed_digest, keyed_hash


def test_content_hash_is_sha256_of_the_concatenation() -> None:
    parts: list[str | bytes | bytearray | memoryview] = ["grün", b"\x00", memoryview(b"ab"), bytearray(b"c")]
    expected = hashlib.sha256("grün".encode() + b"\x00abc").hexdigest()
    assert content_hash(parts) == content_hash(iter(parts)) == expected
    assert content_hash("grün") == hashlib.sha256("grün".encode()).hexdigest()
    assert content_hash([]) == hashlib.sha256().hexdigest()


def test_json_text_does_not_depend_on_the_order_of_keys() -> None:
    facts = {"b": [1, 2.5, None], "a": {"z": "ü", "y": True}}
    other = {"a": {"y": True, "z": "ü"}, "b": [1, 2.5, None]}
    assert json_text(facts) == json_text(other) == json.dumps(facts, sort_keys=True)
    assert json_text(facts, compact=True) == json.dumps(facts, sort_keys=True, separators=(",", ":"))
    assert json_text({"a": {3}}, default=repr) == '{"a": "{3}"}'


def test_keyed_hashes_are_blake2b() -> None:
    digest = hashlib.blake2b(b"1.2.3", key=b"salt", digest_size=8)
    assert keyed_digest(b"1.2.3", b"salt", 8) == digest.digest()
    assert keyed_hash(b"salt", size=8)("1.2.3") == digest.hexdigest()
    # file names that are not UTF-8
    assert len(keyed_hash(b"salt")("\udc80")) == 12
