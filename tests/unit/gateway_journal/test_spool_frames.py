"""Frames: what was written whole is read whole, whatever happened to the bytes around it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agenticmail_enterprise.catalog.errors import JournalFull
from agenticmail_enterprise.gateway.spool import (
    CARRIED,
    COMPLETE,
    HEAD,
    INTENT,
    OUTCOME,
    OVERHEAD,
    PREFIX,
    STRIDE,
    Frame,
    Segment,
    Spool,
    body_limit,
    read_frames,
)

SIZE = 64 * 1024
Written = list[tuple[int, int, bytes]]

frames = st.lists(
    st.tuples(st.sampled_from((INTENT, OUTCOME, COMPLETE, CARRIED)), st.integers(0, 2**48 - 1), st.binary(max_size=300)),
    min_size=1, max_size=20,
)  # fmt: skip


def spool_in(folder: Path) -> Spool:
    return Spool(folder, SIZE)


def image(folder: Path, written: Written) -> tuple[bytes, int, list[int]]:
    """A segment with these frames: its bytes, its seed, and where each frame ends."""
    segment = Segment.create(folder, 1, SIZE)
    segment.remove()
    spool = spool_in(folder)
    ends = []
    for frame in written:
        spool.append(*frame)
        ends.append(spool.written - STRIDE)
    data, seed = spool.current.read_all(), spool.current.seed
    for each in spool.remaining():
        each.remove()
    return data, seed, ends


def plain(found: list[Frame]) -> Written:
    return [(frame.kind, frame.ticket, frame.body) for frame in found]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("frames")


@given(written=frames)
def test_all_that_was_written_is_read(folder: Path, written: Written) -> None:
    data, seed, ends = image(folder, written)
    found, damages = read_frames(data, seed)
    assert plain(found) == written
    assert [frame.end for frame in found] == ends
    assert not damages


@given(written=frames, data=st.data())
def test_a_truncated_segment_loses_only_what_was_cut(folder: Path, written: Written, data: st.DataObject) -> None:
    whole, seed, ends = image(folder, written)
    cut = data.draw(st.integers(0, ends[-1]))
    found, _ = read_frames(whole[:cut], seed)
    assert plain(found) == [frame for frame, end in zip(written, ends, strict=True) if end <= cut]


@given(written=frames, data=st.data())
def test_a_flipped_bit_loses_one_frame_and_no_other(folder: Path, written: Written, data: st.DataObject) -> None:
    whole, seed, ends = image(folder, written)
    at = data.draw(st.integers(0, ends[-1] - 1))
    bad = bytearray(whole)
    bad[at] ^= 1 << data.draw(st.integers(0, 7))
    hit = next(number for number, end in enumerate(ends) if at < end)
    found, damages = read_frames(bytes(bad), seed)
    assert plain(found)[:hit] == written[:hit]
    assert plain(found) == written[:hit] + written[hit + 1 :]
    assert len(damages) == 1
    assert damages[0].torn == (hit == len(written) - 1)


@given(written=frames, junk=st.binary(min_size=1, max_size=2000), data=st.data())
def test_junk_at_the_tail_never_raises_and_loses_nothing(
    folder: Path, written: Written, junk: bytes, data: st.DataObject
) -> None:
    whole, seed, ends = image(folder, written)
    start = data.draw(st.integers(ends[-1], ends[-1] + 40))
    found, _ = read_frames(whole[:start] + junk + whole[start + len(junk) :], seed)
    assert plain(found)[: len(written)] == written


@given(noise=st.binary(max_size=4000), seed=st.integers(0, 2**32 - 1))
def test_noise_is_no_frame(noise: bytes, seed: int) -> None:
    found, damages = read_frames(noise, seed)
    assert found == []
    assert len(damages) <= 1


def test_a_length_that_became_zero_hides_nothing(folder: Path) -> None:
    written = [(INTENT, 1, b"1234567"), (OUTCOME, 1, b"after")]
    whole, seed, ends = image(folder, written)
    found, damages = read_frames(bytes(4) + whole[4:], seed)
    assert plain(found) == written[1:]
    assert (damages[0].start, damages[0].end, damages[0].torn) == (0, ends[0], False)


def test_a_frame_inside_a_callers_arguments_is_not_believed(folder: Path) -> None:
    """A caller may send bytes that look like a frame; damage to the real one must not bring them to life."""
    import zlib

    payload = PREFIX.pack(OUTCOME, 7) + b'{"outcome":"ok"}'
    for seed in (0, 1, 0xFFFFFFFF):
        forged = HEAD.pack(len(payload), zlib.crc32(payload, seed)) + payload
        whole, real, ends = image(folder, [(INTENT, 7, b"x" * 50 + forged + b"y" * 50), (INTENT, 8, b"after")])
        bad = bytearray(whole)
        bad[OVERHEAD + 3] ^= 0xFF
        found, _ = read_frames(bytes(bad), real)
        assert plain(found) == [(INTENT, 8, b"after")]
        assert ends[1] == found[0].end


def test_what_an_earlier_use_of_the_file_left_is_not_read(tmp_path: Path) -> None:
    spool = spool_in(tmp_path)
    for ticket in range(100):
        spool.append(COMPLETE, ticket, b"old" * 100)
    segment = spool.current
    segment.reuse(9)
    assert read_frames(segment.read_all(), segment.seed) == ([], [])
    spool._take(segment)
    spool.append(COMPLETE, 1, b"new")
    found, damages = read_frames(segment.read_all(), segment.seed)
    assert (plain(found), damages) == ([(COMPLETE, 1, b"new")], [])
    spool.close()


def test_a_full_segment_is_followed_by_the_spare_and_then_by_nothing(tmp_path: Path) -> None:
    spool = spool_in(tmp_path)
    spool.add_spare(spool.make(spool.number()))
    body = b"x" * body_limit(SIZE)
    promised = spool.free // (len(body) + OVERHEAD)
    for ticket in range(promised):
        spool.append(COMPLETE, ticket, body)
    assert [segment.number for segment in spool.closed] == [1]
    assert spool.current.number == 2
    written = promised
    while spool._pos + len(body) + OVERHEAD <= spool._size:
        spool.append(COMPLETE, written, body)
        written += 1
    with pytest.raises(JournalFull):
        spool.append(COMPLETE, written, body)
    found = [
        frame.ticket for segment in spool.remaining() for frame in read_frames(segment.read_all(), segment.seed)[0]
    ]
    assert found == list(range(written))
    spool.close()


@given(sizes=st.lists(st.integers(0, body_limit(SIZE)), min_size=1, max_size=60))
def test_what_free_promises_is_kept(folder: Path, sizes: list[int]) -> None:
    """`free` never promises a byte that a later frame does not find: outcomes are set aside by it."""
    spool = spool_in(folder)
    spool.add_spare(spool.make(spool.number()))
    try:
        for ticket, size in enumerate(sizes):
            if spool.free < size + OVERHEAD:
                break
            spool.append(COMPLETE, ticket, bytes(size))
            assert spool.free >= 0
        while spool.free >= OVERHEAD + 1:
            spool.append(OUTCOME, 0, b"x")
    finally:
        for segment in spool.remaining():
            segment.remove()


def test_spool_files_are_for_their_owner_only(tmp_path: Path) -> None:
    spool = spool_in(tmp_path)
    assert os.stat(spool.current.path).st_mode & 0o777 == 0o600
    spool.close()
