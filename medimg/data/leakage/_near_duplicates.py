"""Pictures that look alike, among many."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from medimg.data.leakage._image_hash import hamming, similarity

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator, Sequence

    import numpy.typing as npt

    from medimg.data.leakage._fingerprints import Fingerprint

__all__ = ["MOST_PAIRS", "NearPair", "near_pairs"]

#: Bits of 64 that the hashes of near-duplicates differ in at most. Of 300 chest X-rays saved again as JPEG of
#: quality 30, at half the size, with noise, or with another gamma or contrast, all are within 6.
_MOST_BITS: Final = 6
#: From here on they are near-duplicates. The closest of 3.2 million pairs of chest X-rays of different
#: children reaches 0.83; pictures saved again as above have at least 0.96.
_LEAST_SIMILARITY: Final = 0.9
#: Where there are more, what they are is clear.
MOST_PAIRS: Final = 1000
_ROWS: Final = 256
_VERIFIED_AT_ONCE: Final = 4096


class NearPair(NamedTuple):
    """Two series with pictures that look alike, and how much the most alike ones are."""

    first: int
    second: int
    similarity: float


def near_pairs(prints: Sequence[Fingerprint | None], sides: Sequence[Hashable]) -> list[NearPair]:
    """
    Return pairs of series on different sides of which a picture of one looks like one of the other.

    Hashes are compared all with all, in blocks; where they are close, details of the thumbnails are.

    Parameters
    ----------
    prints : sequence of Fingerprint or None
        Of each series.
    sides : sequence
        Of each series.

    Returns
    -------
    list of NearPair
        The most alike first; at most 1,000 or a few more.
    """
    shown = [n for n, p in enumerate(prints) if p is not None and len(p.hashes)]
    if not shown:
        return []
    several = [p for p in prints if p is not None and len(p.hashes)]
    owner = np.repeat(shown, [len(p.hashes) for p in several])
    numbers: dict[Hashable, int] = {}
    side = np.array([numbers.setdefault(s, len(numbers)) for s in sides])[owner]
    hashes = np.concatenate([p.hashes for p in several])
    thumbnails = np.concatenate([p.thumbnails for p in several])
    best: dict[tuple[int, int], float] = {}
    for one, other in _candidates(hashes, side):
        alike = similarity(thumbnails[one], thumbnails[other])
        for n in np.flatnonzero(alike >= _LEAST_SIMILARITY):
            pair = int(owner[one[n]]), int(owner[other[n]])
            best[pair] = max(best.get(pair, 0.0), float(alike[n]))
        if len(best) >= MOST_PAIRS:
            break
    pairs = [NearPair(a, b, value) for (a, b), value in best.items()]
    return sorted(pairs, key=lambda pair: (-pair.similarity, pair.first, pair.second))


def _candidates(
    hashes: npt.NDArray[np.uint64], side: npt.NDArray[np.int64]
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Yield indices of pairs on two sides whose hashes are close, each pair once."""
    for start in range(0, len(hashes), _ROWS):
        stop = min(start + _ROWS, len(hashes))
        close = hamming(hashes[start:stop, None], hashes[None, start:]) <= _MOST_BITS
        one, other = np.nonzero(close)
        one, other = one + start, other + start
        wanted = (one < other) & (side[one] != side[other])
        one, other = one[wanted], other[wanted]
        for n in range(0, len(one), _VERIFIED_AT_ONCE):
            yield one[n : n + _VERIFIED_AT_ONCE], other[n : n + _VERIFIED_AT_ONCE]
