"""The fast inflater gives what Python's own modules give, for sound, damaged and unusual data."""

from __future__ import annotations

import gzip
import io
import os
import random
import tracemalloc
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medimg.errors import DecodeError, ReadError, TruncatedError
from medimg.io.files import decompress
from medimg.io.files.decompress import open_inflated
from tests.sampling import SLOW


def unpacked(data: bytes, piece: int = 2**16) -> bytes:
    """What medimg unpacks, with the file read in pieces of some length."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decompress, "_PIECE_BYTES", piece)
        return open_inflated(io.BytesIO(data), "x").read()


@st.composite
def contents(draw: st.DrawFn) -> bytes:
    rng = random.Random(draw(st.integers(0, 999)))
    count = draw(st.sampled_from([0, 1, 10, 300, 5000, 70_000]))
    kind = draw(st.sampled_from(["noise", "zeros", "letters"]))
    if kind == "zeros":
        return bytes(count)
    return rng.randbytes(count) if kind == "noise" else bytes(rng.choices(b"abcd", k=count))


@settings(deadline=None, max_examples=150 if SLOW else 60)
@given(
    members=st.lists(st.tuples(contents(), st.sampled_from([0, 1, 6, 9])), min_size=1, max_size=3),
    padding=st.sampled_from([0, 1, 600]),
    piece=st.sampled_from([5, 1000, 2**16]),
)
def test_members_as_the_gzip_module_reads_them(
    members: list[tuple[bytes, int]], padding: int, piece: int
) -> None:
    packed = bytes(padding).join(gzip.compress(data, level) for data, level in members) + bytes(padding)
    assert unpacked(packed, piece) == gzip.decompress(packed) == b"".join(data for data, _ in members)


def test_a_piece_can_end_anywhere() -> None:
    data = os.urandom(40)
    packed = gzip.compress(data) + gzip.compress(data[::-1])
    for piece in range(1, len(packed) + 1):
        assert unpacked(packed, max(2, piece)) == data + data[::-1]


@settings(deadline=None, max_examples=50)
@given(data=contents(), level=st.integers(0, 9), bits=st.integers(9, 15))
def test_zlib_data(data: bytes, level: int, bits: int) -> None:
    squeezer = zlib.compressobj(level, zlib.DEFLATED, bits)
    assert unpacked(squeezer.compress(data) + squeezer.flush()) == data


def plainly(data: bytes) -> bytes | None:
    """The reference for one damaged member: zlib; None if it finds damage or no end."""
    try:
        inflater = zlib.decompressobj(31)
        found = inflater.decompress(data)
    except zlib.error:
        return None
    return found if inflater.eof else None


@settings(deadline=None, max_examples=400 if SLOW else 150)
@given(
    data=contents(),
    level=st.sampled_from([0, 1, 6]),
    damage=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=2),
    near=st.sampled_from(["start", "end", "anywhere"]),
    cut=st.sampled_from([0, 0, 1, 8, 9, 30]),
)
def test_damage_is_found_where_zlib_finds_it(
    data: bytes, level: int, damage: list[tuple[float, int]], near: str, cut: int
) -> None:
    packed = bytearray(gzip.compress(data, level, mtime=0))
    for share, value in damage:
        reach = len(packed) - 1 if near == "anywhere" else min(len(packed) - 1, 20)
        place = round(share * reach)
        packed[-1 - place if near == "end" else place] = value
    packed = packed[: len(packed) - cut]
    packed[:2] = b"\x1f\x8b"
    packed[3:4] = bytes(flags & 0x1F for flags in packed[3:4])  # of reserved flags, zlib only complains
    expected = plainly(bytes(packed))
    if expected is not None:
        assert unpacked(bytes(packed)) == expected
        return
    with pytest.raises(ReadError):
        unpacked(bytes(packed))


def test_kinds_of_damage() -> None:
    packed = gzip.compress(bytes(range(256)) * 40)
    for length in (1, 5, 15, len(packed) // 2, len(packed) - 1):
        with pytest.raises(TruncatedError, match="copy it again"):
            unpacked(packed[:length])
    for place in (-8, -1):
        damaged = bytearray(packed)
        damaged[place] ^= 1
        with pytest.raises(DecodeError, match=r"\(Incorrect checksum found\)"):
            unpacked(bytes(damaged))
    with pytest.raises(DecodeError):
        unpacked(packed[:10] + b"\xff" * 50)
    squeezer = zlib.compressobj(6, zlib.DEFLATED, 15, 8, 0, b"a dictionary")
    with pytest.raises(DecodeError, match="Dictionary"):
        unpacked(squeezer.compress(bytes(99)) + squeezer.flush())


def test_what_follows_the_data_is_no_part_of_them() -> None:
    packed = gzip.compress(b"values")
    for rest in (b"x", b"\x1f", b"\0\0\x1f", b"rubbish" * 20_000):
        assert unpacked(packed + rest) == b"values"
        assert unpacked(packed + rest, 30) == b"values"


def test_a_bomb_takes_little_memory() -> None:
    packed = gzip.compress(bytes(2**28), 1)
    tracemalloc.start()
    try:
        file = open_inflated(io.BytesIO(packed), "x")
        total = sum(len(piece) for piece in iter(lambda: file.read(2**20), b""))
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert total == 2**28
    assert most < 8 * 2**20


def test_every_gzip_file_of_the_data_sets(real_data: Path) -> None:
    files = [p for p in sorted(real_data.rglob("*.gz")) if p.stat().st_size < 2**25]
    for path in files:
        packed = path.read_bytes()
        if packed[:2] == b"\x1f\x8b":
            assert unpacked(packed) == gzip.decompress(packed), path.name
    assert len(files) > 50
