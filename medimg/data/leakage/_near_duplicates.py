"""Near-duplicates among many images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from medimg.data.leakage._image_hash import compare_details, count_different_bits

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator, Sequence

    import numpy.typing as npt

    from medimg.data.leakage._fingerprints import Fingerprint

__all__ = ["MOST_PAIRS", "NearPair", "find_near_pairs"]

#: Most bits of 64 in which the hashes of near-duplicates differ. Of 300 chest X-rays saved again as JPEG of
#: quality 30, at half the size, with noise, or with another gamma or contrast, all are within 6.
_MOST_BITS: Final = 6
#: Least correlation of details of near-duplicates. The closest of 3.2 million pairs of chest X-rays of
#: different children reaches 0.83; images saved again as above have at least 0.96.
_LEAST_SIMILARITY: Final = 0.9
#: Pairs after which the search ends.
MOST_PAIRS: Final = 1000
_ROWS: Final = 256
_VERIFIED_AT_ONCE: Final = 4096


class NearPair(NamedTuple):
    """Two series with images that look alike, and the highest similarity of these."""

    first: int
    second: int
    similarity: float


def find_near_pairs(prints: Sequence[Fingerprint | None], groups: Sequence[Hashable]) -> list[NearPair]:
    """
    Return pairs of series of different groups with near-duplicate images, the most similar first.

    All hashes are compared with all, in blocks; pairs with close hashes are compared in the details of their
    thumbnails. At most about 1,000 pairs.
    """
    shown = [n for n, p in enumerate(prints) if p is not None and len(p.hashes)]
    if not shown:
        return []
    several = [p for p in prints if p is not None and len(p.hashes)]
    owner = np.repeat(shown, [len(p.hashes) for p in several])
    numbers: dict[Hashable, int] = {}
    group = np.array([numbers.setdefault(s, len(numbers)) for s in groups])[owner]
    hashes = np.concatenate([p.hashes for p in several])
    thumbnails = np.concatenate([p.thumbnails for p in several])
    best: dict[tuple[int, int], float] = {}
    for one, other in _find_candidates(hashes, group):
        alike = compare_details(thumbnails[one], thumbnails[other])
        for n in np.flatnonzero(alike >= _LEAST_SIMILARITY):
            pair = int(owner[one[n]]), int(owner[other[n]])
            best[pair] = max(best.get(pair, 0.0), float(alike[n]))
        if len(best) >= MOST_PAIRS:
            break
    pairs = [NearPair(a, b, value) for (a, b), value in best.items()]
    return sorted(pairs, key=lambda pair: (-pair.similarity, pair.first, pair.second))


def _find_candidates(
    hashes: npt.NDArray[np.uint64], group: npt.NDArray[np.int64]
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Yield indices (n,), (n,) of pairs of different groups whose hashes are close, each pair once."""
    for start in range(0, len(hashes), _ROWS):
        stop = min(start + _ROWS, len(hashes))
        close = count_different_bits(hashes[start:stop, None], hashes[None, start:]) <= _MOST_BITS
        one, other = np.nonzero(close)
        one, other = one + start, other + start
        wanted = (one < other) & (group[one] != group[other])
        one, other = one[wanted], other[wanted]
        for n in range(0, len(one), _VERIFIED_AT_ONCE):
            yield one[n : n + _VERIFIED_AT_ONCE], other[n : n + _VERIFIED_AT_ONCE]
