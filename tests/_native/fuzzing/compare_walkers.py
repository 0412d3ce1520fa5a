"""
Compare the two header walkers, compiled and plain, on mutations of headers.

    python -m tests._native.fuzzing.compare_walkers FOLDER --mutations 1000000
"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path

from medimg._native.library import load_library
from medimg.io.dicom.header.elements import UnusualHeaderError
from medimg.io.dicom.pixels._header_walk import (
    CompiledHeaderWalker,
    Header,
    HeaderWalker,
    PlainHeaderWalker,
)
from medimg.io.dicom.pixels._single_frame_reader import list_value_tags

_HEAD = 16384
#: Bytes that mean something in a header.
_TELLING = (
    b"\xff\xff\xff\xff",
    b"\xfe\xff\x00\xe0",
    b"\xfe\xff\xdd\xe0",
    b"SQ\0\0",
    b"UN",
    b"\0\0",
    b"\x10\0\xe0\x7f",
)


def mutate(head: bytes, rng: random.Random) -> bytes:
    """Return a header with a few changes, most of them small."""
    changed = bytearray(head)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(128, max(129, len(changed)))
        kind = rng.randrange(6)
        if kind == 0:
            changed[at : at + 1] = bytes([rng.randrange(256)])
        elif kind == 1:
            changed[at : at + 4] = rng.choice(_TELLING)
        elif kind == 2:
            del changed[at : at + rng.randint(1, 8)]
        elif kind == 3:
            changed[at:at] = rng.choice(_TELLING)
        elif kind == 4:
            del changed[at:]
        else:
            other = rng.randrange(128, max(129, len(changed)))
            changed[at:at] = changed[other : other + rng.randint(1, 64)]
    return bytes(changed)


def walk(walker: HeaderWalker, head: bytes) -> Header | None:
    """Return the header, or None if it is unusual."""
    try:
        return walker.read_header(head)
    except UnusualHeaderError:
        return None


def main() -> None:
    """Compare the walkers; exit with 1 at the first difference."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--mutations", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    library = load_library()
    if library is None:
        sys.exit("there is no compiled library")
    tags, rng = list_value_tags("auto"), random.Random(args.seed)
    compiled, plain = CompiledHeaderWalker(library, tags), PlainHeaderWalker(tags)
    files = [path for path in sorted(args.folder.rglob("*")) if path.is_file()]
    heads = []
    for path in files:
        with path.open("rb") as file:
            head = file.read(_HEAD)
        if walk(compiled, head) != walk(plain, head):
            sys.exit("the walkers differ on a file")
        if walk(plain, head) is not None:
            heads.append(head)
    heads = rng.sample(heads, min(len(heads), 500))
    walked = 0
    for _ in range(args.mutations):
        head = mutate(rng.choice(heads), rng)
        expected = walk(plain, head)
        if walk(compiled, head) != expected:
            Path("difference.bin").write_bytes(head)
            sys.exit("the walkers differ on difference.bin")
        walked += expected is not None
    print(f"{len(files):,} files, {args.mutations:,} mutations, {walked:,} of them sound: no difference")


if __name__ == "__main__":
    main()
