"""Digests of pixels, perceptual _image_hash, and the search among many of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import scipy.fft
from hypothesis import given, settings
from hypothesis import strategies as st

from medimg.data.leakage import _image_hash
from medimg.data.leakage._fingerprints import Fingerprint
from medimg.data.leakage._image_hash import (
    THUMBNAIL,
    compare_details,
    count_different_bits,
    hash_perceptually,
    hash_pixels,
    make_thumbnail,
)
from medimg.data.leakage._near_duplicates import find_near_pairs

RNG = np.random.default_rng(4)


def scene(seed: int, side: int = 128) -> npt.NDArray[np.float64]:
    """Smooth shapes with some detail, 0 to 200."""
    rng = np.random.default_rng(seed)
    spectrum = np.zeros((side, side))
    spectrum[:24, :24] = rng.normal(size=(24, 24)) / (1 + np.add.outer(np.arange(24), np.arange(24)))
    found = scipy.fft.idctn(spectrum, norm="ortho")
    return np.asarray(200 * (found - found.min()) / np.ptp(found))


@pytest.mark.parametrize("dtype", ["u1", ">u2", "i2", ">i4", "i8", "u8", "f2", "f4", ">f8"])
def test_the_type_of_whole_numbers_does_not_matter(dtype: str) -> None:
    values = RNG.integers(0, 128, (6, 7))
    assert hash_pixels(values.astype(dtype)) == hash_pixels(values.astype(np.uint8))
    assert hash_pixels(values.astype(dtype)[:, ::-1]) == hash_pixels(values[:, ::-1].copy())


def test_unequal_pictures_have_unequal_digests() -> None:
    values = RNG.integers(-500, 500, (6, 8))
    others = [values + 1, values * 2, values.T, values[::-1], values.reshape(8, 6), values + 0.5]
    one_off = values.copy()
    one_off[3, 3] += 1
    digests = [hash_pixels(v) for v in [values, one_off, *others]]
    assert len(set(digests)) == len(digests)
    assert None not in digests


def test_fractions_zeros_and_what_is_no_number() -> None:
    values = RNG.normal(size=(5, 5)).astype(np.float32)
    assert hash_pixels(values) == hash_pixels(values.astype(np.float64))
    values[0, :3] = 0.0, np.nan, np.inf
    other = values.copy()
    other[0, 0] = -0.0
    other.view(np.uint32)[0, 1] |= 1
    assert np.isnan(other[0, 1])
    assert hash_pixels(values) == hash_pixels(other)


def test_gray_in_three_channels_is_gray_and_one_value_is_nobody() -> None:
    gray = RNG.integers(0, 255, (4, 5)).astype(np.uint8)
    assert hash_pixels(np.stack([gray] * 3)) == hash_pixels(gray)
    assert hash_pixels(np.stack([gray, gray, gray + 1])) != hash_pixels(gray)
    for blank in (np.zeros((4, 4)), np.full((4, 4), -1024), np.full((4, 4), np.nan)):
        assert make_thumbnail(blank) is None
    assert hash_pixels(np.zeros((4, 4))) is None


def test_the_hash_is_that_of_the_discrete_cosine_transform() -> None:
    pictures = RNG.integers(0, 256, (20, THUMBNAIL, THUMBNAIL)).astype(np.uint8)
    spectrum = scipy.fft.dctn(pictures.astype(np.float64), axes=(1, 2), norm="ortho")
    for picture, found in zip(spectrum, hash_perceptually(pictures), strict=True):
        lowest = picture[:8, :8].copy()
        lowest[0, 0] = picture[0, 8]
        bits = np.unpackbits(np.array([found]).view(np.uint8)).reshape(8, 8).astype(bool)
        assert np.array_equal(bits, lowest > np.median(lowest))


def test_counting_bits_with_and_without_numpy_2() -> None:
    values = RNG.integers(0, 2**63, (5, 9)).astype(np.uint64)
    expected = [[int(v).bit_count() for v in row] for row in values]
    assert count_different_bits(values, np.zeros_like(values)).tolist() == expected
    assert _image_hash._count_bits(values).tolist() == expected


@pytest.mark.parametrize(
    "change",
    [
        lambda p: p * 0.7 + 20,
        lambda p: 255 * (p / 255) ** 1.2,
        lambda p: np.kron(p, np.ones((2, 2))),
        lambda p: p[::2, ::2],
        lambda p: p + RNG.normal(0, 2, p.shape),
        np.rint,
    ],
    ids=["contrast", "gamma", "twice the size", "half the size", "noise", "rounded"],
)
def test_what_looks_alike_is_close(change: Callable[[Any], Any]) -> None:
    for seed in range(5):
        before, after = make_thumbnail(scene(seed)), make_thumbnail(change(scene(seed)))
        assert before is not None
        assert after is not None
        both = np.stack([before, after])
        one, other = hash_perceptually(both)
        assert count_different_bits(one, other) <= 6
        assert compare_details(both[:1], both[1:])[0] > 0.98


def a_print(pictures: list[npt.NDArray[np.uint8]]) -> Fingerprint:
    stacked = np.stack(pictures) if pictures else np.empty((0, THUMBNAIL, THUMBNAIL), np.uint8)
    return Fingerprint(frozenset(), hash_perceptually(stacked), stacked)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**20), count=st.integers(1, 40), sides=st.integers(1, 4))
def test_the_search_finds_what_a_plain_loop_finds(seed: int, count: int, sides: int) -> None:
    rng = np.random.default_rng(seed)
    base = [make_thumbnail(scene(n)) for n in range(6)]
    prints: list[Fingerprint | None] = []
    for _ in range(count):
        chosen = [base[k] for k in rng.integers(0, 6, rng.integers(0, 3))]
        noisy = [
            np.clip(p + rng.integers(-2, 3, p.shape), 0, 255).astype(np.uint8)
            for p in chosen
            if p is not None
        ]
        prints.append(a_print(noisy) if rng.random() < 0.9 else None)
    side = rng.integers(0, sides, count).tolist()
    expected = set()
    for a in range(count):
        for b in range(a + 1, count):
            one, other = prints[a], prints[b]
            if one is None or other is None or side[a] == side[b]:
                continue
            for i in range(len(one.hashes)):
                for j in range(len(other.hashes)):
                    bits = int(one.hashes[i] ^ other.hashes[j]).bit_count()
                    alike = compare_details(one.thumbnails[i : i + 1], other.thumbnails[j : j + 1])[0]
                    if bits <= 6 and alike >= 0.98:
                        expected.add((a, b))
    assert {(pair.first, pair.second) for pair in find_near_pairs(prints, side)} == expected


def test_a_search_that_finds_too_much_ends() -> None:
    picture = make_thumbnail(scene(0))
    assert picture is not None
    found = find_near_pairs([a_print([picture])] * 2000, list(range(2000)))
    assert 1000 <= len(found) < 6000


def test_a_thumbnail_of_what_is_partly_no_number() -> None:
    values = RNG.normal(100, 10, (64, 64)).astype(np.float32)
    broken = values.copy()
    broken[:2] = np.array([[np.nan], [-np.inf]])
    found, expected = (
        make_thumbnail(broken),
        make_thumbnail(np.where(np.isfinite(broken), broken, np.float32(0))),
    )
    assert found is not None
    assert expected is not None
    assert (found == expected).all()
