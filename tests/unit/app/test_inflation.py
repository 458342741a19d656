"""Every codec of Kafka, sound, broken and bursting."""

from __future__ import annotations

import contextlib
import gzip
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.inflation import CODECS, CannotInflate, inflate
from bench.kafka_batches import COMPRESS

LIMIT = 2**20


@pytest.mark.parametrize("codec", COMPRESS)
@settings(max_examples=25, deadline=None)
@given(data=st.binary(max_size=300))
def test_what_was_compressed_comes_back(codec: int, data: bytes) -> None:
    """Each codec as the clients of Kafka write it."""
    assert inflate(codec, COMPRESS[codec](data), LIMIT) == data


def test_a_large_batch_is_inflated_step_by_step() -> None:
    """What takes many steps comes out whole, also where a step ends just at the end of the input."""
    for size in (2**20 - 1, 2**20, 2**20 + 1, 5 * 2**20):
        assert inflate(1, gzip.compress(bytes(size)), 8 * LIMIT) == bytes(size)


def test_gzip_members_follow_one_another() -> None:
    """A gzip stream may be several, and may end in zeros."""
    assert inflate(1, gzip.compress(b"ab") + gzip.compress(b"c") + b"\0\0", LIMIT) == b"abc"


@pytest.mark.parametrize("codec", CODECS)
def test_a_bomb_is_stopped_at_the_limit(codec: int) -> None:
    """What inflates beyond the limit says so, and takes little more memory than the limit on the way."""
    bomb = COMPRESS[codec](bytes(64 * LIMIT))
    tracemalloc.start()
    with pytest.raises(CannotInflate, match=f"a {CODECS[codec]} batch inflates to more than 1 MiB; send smaller"):
        inflate(codec, bomb, LIMIT)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5 * LIMIT + 2 * len(bomb)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("damage", ["cut", "noise"])
def test_corrupt_data_is_named(codec: int, damage: str) -> None:
    """Nothing but ``CannotInflate`` comes out, with the codec and what to look for."""
    sound = COMPRESS[codec](bytes(range(256)) * 40)
    broken = sound[: len(sound) // 2] if damage == "cut" else b"\xff" * 60
    with pytest.raises(CannotInflate, match=f"a {CODECS[codec]} batch"):
        inflate(codec, broken, LIMIT)


@pytest.mark.parametrize("codec", CODECS)
@settings(max_examples=100, deadline=None)
@given(data=st.binary(max_size=80))
def test_noise_never_raises_anything_else(codec: int, data: bytes) -> None:
    """Any bytes either inflate or are refused."""
    for noise in (data, COMPRESS[codec](b"seed" * 9)[: len(data)] + data):
        with contextlib.suppress(CannotInflate):
            assert len(inflate(codec, noise, LIMIT)) <= LIMIT


def test_an_unknown_codec_is_named() -> None:
    """Kafka may learn a new one: the message lists those that are read."""
    with pytest.raises(CannotInflate, match="codec 6 is unknown; send with gzip, snappy, lz4, zstd or none"):
        inflate(6, b"x", LIMIT)
