"""Manifests are checked, batches are a function of (seed, step), padding stays small."""

import json
import wave

import numpy as np
import pytest

from omnilib import data
from omnilib.errors import DataError


def record(**changes) -> dict:
    values = dict(
        id="a",
        path="shard.wav",
        start=0.0,
        duration=1.0,
        rate=24000,
        text="hello",
        language="en",
        speaker="s",
        source="x",
        licence="CC0",
        split="train",
    )
    return {**values, **changes}


def write_shard(
    folder, seconds: float = 4.0, rate: int = 24000, samples: np.ndarray | None = None
) -> np.ndarray:
    samples = (np.arange(round(seconds * rate)) % 20000).astype("<i2") if samples is None else samples
    with wave.open(str(folder / "shard.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.tobytes())
    return samples


def manifest(tmp_path, *lines) -> None:
    (tmp_path / "m.jsonl").write_text(
        "".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in lines)
    )


def test_manifest_round_trip_and_hash_are_stable(tmp_path):
    records = [record(id="b"), record(id="a", text="你好", language="zh")]
    first = data.write_manifest(tmp_path / "m.jsonl", records)
    second = data.write_manifest(tmp_path / "n.jsonl", [dict(reversed(r.items())) for r in records])
    assert first == second == data.sha256(tmp_path / "m.jsonl")
    assert data.read_manifest(tmp_path / "m.jsonl") == records
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (["{broken"], "m.jsonl:1: not JSON"),
        ([{"id": "a"}], "m.jsonl:1: missing path"),
        ([record(), record()], "m.jsonl:2: id 'a' stands twice"),
        ([record(path="../../etc/passwd")], "leaves the corpus folder"),
        ([record(path="/etc/passwd")], "leaves the corpus folder"),
        (["[1, 2]"], "m.jsonl:1: not a record"),
        ([""], "m.jsonl:1: not JSON"),
    ],
)
def test_bad_manifest_names_the_line(tmp_path, lines, told):
    manifest(tmp_path, *lines)
    with pytest.raises(DataError) as error:
        data.read_manifest(tmp_path / "m.jsonl")
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_manifest_says_how_to_build_it(tmp_path):
    with pytest.raises(DataError, match="omni data build-nano"):
        data.read_manifest(tmp_path / "none.jsonl")


def test_load_segment_reads_exactly_its_samples(tmp_path):
    samples = write_shard(tmp_path)
    segment = data.load_segment(record(start=1.5, duration=0.5), tmp_path)
    assert segment.shape == (12000,)
    assert np.array_equal((segment.numpy() * 32768).astype(np.int16), samples[36000:48000])
    part = data.load_segment(record(start=1.5, duration=0.5), tmp_path, start=0.25, duration=0.1)
    assert np.array_equal(part.numpy(), segment.numpy()[6000:8400])


@pytest.mark.parametrize("speed", [0.8, 1.25])
def test_a_copy_is_the_recording_played_faster_or_slower(tmp_path, speed):
    """A tone of 400 Hz comes out `speed` times as high, in step with the recording, and ends in silence, never in the next line."""
    tone = np.sin(2 * np.pi * 400 * np.arange(24000) / 24000) * 8000
    write_shard(
        tmp_path, samples=np.concatenate([np.zeros(12000), tone, np.full(24000, 5000.0)]).astype("<i2")
    )
    data.open_shard.cache_clear()
    copy = record(start=0.5, duration=1.4, recorded=1.0, speed=speed)
    wave = data.load_segment(copy, tmp_path).numpy()
    spoken = round(24000 / speed)
    assert len(wave) == 1.4 * 24000 and np.abs(wave[spoken:]).max(initial=0.0) == 0.0
    expected = np.sin(2 * np.pi * 400 * speed * np.arange(spoken) / 24000) * 8000 / 32768
    assert np.abs(wave[200 : spoken - 200] - expected[200:-200]).max() < 0.01
    part = data.load_segment(copy, tmp_path, start=0.2, duration=0.1).numpy()
    assert len(part) == 2400 and np.abs(part - wave[4800:7200])[100:-100].max() < 0.01
    assert len(data.load_segment(copy, tmp_path, start=1.39)) == 240


def test_load_segment_of_a_missing_or_short_shard_is_a_data_error(tmp_path):
    with pytest.raises(DataError, match="shard.wav"):
        data.load_segment(record(), tmp_path)
    write_shard(tmp_path, seconds=1.0)
    data.open_shard.cache_clear()
    with pytest.raises(DataError, match="ends before"):
        data.load_segment(record(start=0.5, duration=1.0), tmp_path)


def test_batch_depends_only_on_seed_and_step(tmp_path):
    write_shard(tmp_path)
    records = [record(id=str(i), duration=1 + i / 10) for i in range(20)]
    make = lambda seed: data.Segments(records, tmp_path, batch_seconds=6, seconds=0.5, seed=seed)  # noqa: E731
    one, other = make(3), make(3)
    for step in (0, 1, 7):
        other.batch(step + 100)  # what was drawn before must not matter
        assert (one.batch(step)[0] == other.batch(step)[0]).all()
    assert [r["id"] for r in make(3).records_at(0)] != [r["id"] for r in make(4).records_at(0)]


def test_whole_utterances_of_a_batch_have_similar_lengths(tmp_path):
    write_shard(tmp_path)
    records = [record(id=str(i), duration=0.5 + i / 60) for i in range(200)]
    segments = data.Segments(records, tmp_path, batch_seconds=20)
    for step in range(10):
        durations = [r["duration"] for r in segments.records_at(step)]
        assert max(durations) <= 1.2 * min(durations)


def test_too_short_corpus_is_a_data_error(tmp_path):
    with pytest.raises(DataError, match="at least 9"):
        data.Segments([record()], tmp_path, batch_seconds=20, seconds=9)


def test_buckets_cover_each_index_once_within_budget_and_waste_little():
    lengths = [int(n) for n in np.random.default_rng(0).integers(20, 1500, 4000)]
    batches = data.bucket_batches(lengths, budget=12000, seed=1, epoch=2)
    assert sorted(i for b in batches for i in b) == list(range(len(lengths)))
    assert all(len(b) * max(lengths[i] for i in b) <= 12000 for b in batches)
    assert data.padding_waste(batches, lengths) <= 0.05
    assert batches == data.bucket_batches(lengths, budget=12000, seed=1, epoch=2)
    assert batches != data.bucket_batches(lengths, budget=12000, seed=1, epoch=3)


def test_a_sample_longer_than_the_budget_gets_its_own_batch():
    assert sorted(data.bucket_batches([10, 500, 10], budget=100, seed=0, epoch=0), key=len) in (
        [[1], [0, 2]],
        [[1], [2, 0]],
    )
