"""Shards: one length a shard, readable by `datasets`, resumable, streamed without loss and with little padding."""

import hashlib
import json

import numpy as np
import pytest
import soundfile

from data_prep import shards
from data_prep.shards import main, write_shards
from omnilib.errors import DataError
from omnilib.shards import Shards

RATE = 8000


@pytest.fixture
def manifest(tmp_path):
    """60 pieces of 1-6 s: 48 whole FLAC files and 12 pieces of one WAV, two of them test."""
    folder = tmp_path / "in"
    (folder / "audio").mkdir(parents=True)
    rng, records = np.random.default_rng(0), []
    long = (0.1 * rng.standard_normal(RATE * 40)).astype(np.float32)
    soundfile.write(folder / "audio/long.wav", long, RATE, subtype="PCM_16")
    for index in range(60):
        count = int(rng.integers(RATE, 3 * RATE if index >= 48 else 6 * RATE))
        place, start = ("audio/long.wav", 3.0 * (index - 48)) if index >= 48 else (f"audio/{index}.flac", 0.0)
        if index < 48:
            soundfile.write(folder / place, 0.1 * rng.standard_normal(count), RATE, subtype="PCM_16")
        records.append(
            {"id": f"r{index:02d}", "path": place, "start": start, "duration": count / RATE, "rate": RATE, "text": f"line {index}", "language": "en",
             "speaker": "s", "source": "noise", "licence": "CC0-1.0", "split": "test" if index in (0, 59) else "train", "dnsmos": 3.5}
        )  # fmt: skip
    path = folder / "manifest.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return path


def test_datasets_reads_the_shards_and_the_sound_is_the_recordings(tmp_path, manifest):
    import datasets

    write_shards(manifest, tmp_path / "out", seconds=30)
    train = datasets.load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    records = {r["id"]: r for r in map(json.loads, manifest.read_text().splitlines())}
    assert sorted(train["id"]) == sorted(i for i, r in records.items() if r["split"] == "train")
    for row in train.select(range(0, len(train), 7)):
        record = records[row["id"]]
        first = round(record["start"] * RATE)
        wanted, _ = soundfile.read(
            manifest.parent / record["path"],
            start=first,
            frames=round(record["duration"] * RATE),
            dtype="int16",
        )
        (tmp_path / "one.flac").write_bytes(row["audio"]["bytes"])
        assert np.array_equal(soundfile.read(tmp_path / "one.flac", dtype="int16")[0], wanted)
        assert json.loads(row["more"]) == {"dnsmos": 3.5}


def test_loader_gives_every_record_once_an_epoch_over_all_ranks(tmp_path, manifest):
    write_shards(manifest, tmp_path / "out", seconds=30)
    seen = []
    for rank in range(2):
        for waves, lengths, records in Shards(tmp_path / "out", batch_seconds=20, rank=rank, world=2).batches(
            epoch=1
        ):
            assert waves.shape == (len(records), lengths.max()) and waves.size <= 20 * RATE
            assert [round(r["duration"] * RATE) for r in records] == lengths.tolist()
            assert all(
                not wave[n:].any() and np.abs(wave[:n]).max() > 0.1
                for wave, n in zip(waves, lengths, strict=True)
            )
            seen += [r["id"] for r in records]
    assert sorted(seen) == [f"r{i:02d}" for i in range(1, 59)]


def test_loader_resumes_in_mid_epoch_and_shuffles_between_epochs(tmp_path, manifest):
    write_shards(manifest, tmp_path / "out", seconds=30)
    loader = Shards(tmp_path / "out", batch_seconds=10)
    ids = [[[r["id"] for r in records] for _, _, records in loader.batches(epoch)] for epoch in (0, 1)]
    assert ids[0] != ids[1]
    assert [[r["id"] for r in records] for _, _, records in loader.batches(0, skip=7)] == ids[0][7:]


def test_shards_hold_records_of_like_length_and_padding_is_small(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    soundfile.write(folder / "a.flac", np.zeros(RATE * 12), RATE)
    rng = np.random.default_rng(0)
    base = {
        "path": "a.flac",
        "start": 0.0,
        "rate": RATE,
        "source": "s",
        "licence": "CC0-1.0",
        "split": "train",
    }
    records = [base | {"id": f"r{i}", "duration": round(float(rng.uniform(1, 12)), 2)} for i in range(400)]
    (folder / "manifest.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    index = write_shards(folder / "manifest.jsonl", tmp_path / "out", seconds=300)
    ratios = [s["longest"] / s["shortest"] for s in index["shards"]]
    assert np.median(ratios) < 1.35 and all(s["seconds"] >= 300 for s in index["shards"][:-1])
    assert 0 < Shards(tmp_path / "out", batch_seconds=60).padding_waste() < 0.05


def test_writing_again_does_nothing_twice_and_takes_up_no_stale_shard(tmp_path, manifest, monkeypatch):
    made = []
    flac = shards.flac
    monkeypatch.setattr(
        shards, "flac", lambda record, audio: made.append(record["id"]) or flac(record, audio)
    )
    first = write_shards(manifest, tmp_path / "out", seconds=30)
    assert sorted(made) == [f"r{i:02d}" for i in range(60)]
    (tmp_path / "out" / first["shards"][0]["path"]).unlink()
    made.clear()
    assert write_shards(manifest, tmp_path / "out", seconds=30) == first
    assert len(made) == first["shards"][0]["records"]
    lines = manifest.read_text().splitlines()
    manifest.write_text("\n".join(lines[:-20]) + "\n")
    write_shards(manifest, tmp_path / "out", seconds=30)
    assert sum(len(records) for _, _, records in Shards(tmp_path / "out").batches()) == 39


def test_two_workers_write_the_same_bytes_and_the_checksums_hold(tmp_path, manifest):
    assert write_shards(manifest, tmp_path / "one", seconds=60) == write_shards(
        manifest, tmp_path / "two", seconds=60, workers=2
    )
    for line in (tmp_path / "two/checksums.sha256").read_text().splitlines():
        digest, path = line.split("  ")
        assert hashlib.sha256((tmp_path / "two" / path).read_bytes()).hexdigest() == digest


def test_full_disk_is_one_line_and_leaves_no_half_shard(tmp_path, manifest, monkeypatch, capsys):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shards.parquet, "write_table", full)
    assert shards.main(["--manifest", str(manifest), "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: cannot write") and not list(
        (tmp_path / "out").rglob("*.parquet")
    )


def test_missing_split_and_missing_duration_say_what_to_do(tmp_path, manifest):
    with pytest.raises(DataError, match=r"no shards of split 'train'.*data_prep\.shards"):
        Shards(tmp_path)
    text = manifest.read_text().replace('"duration": ', '"duration": null, "was": ', 1)
    manifest.write_text(text)
    with pytest.raises(DataError, match="'r00' has no duration"):
        write_shards(manifest, tmp_path / "out")


def test_bad_lines_and_unreadable_audio_are_left_out_and_counted(tmp_path, manifest, capsys):
    lines = manifest.read_text().splitlines()
    (manifest.parent / json.loads(lines[2])["path"]).write_bytes(b"not audio")
    manifest.write_text("\n".join(["{half", *lines, lines[0]]) + "\n")
    for _ in range(2):  # the second run finds the shards written
        assert main(["--manifest", str(manifest), "--out", str(tmp_path / "shards")]) == 0
        assert "bad rows, left out: not_json 1, repeated_id 1, unreadable_audio 1" in capsys.readouterr().out
    index = json.loads((tmp_path / "shards/index.json").read_text())
    assert sum(shard["records"] for shard in index["shards"]) == len(lines) - 1


def test_shards_of_a_manifest_that_is_mostly_bad_are_not_written(tmp_path, manifest):
    with manifest.open("a") as file:
        file.write("{half\n" * len(manifest.read_text().splitlines()))
    with pytest.raises(DataError, match=r"rows are bad \(not_json .*--max-bad"):
        write_shards(manifest, tmp_path / "shards")
    assert not (tmp_path / "shards/index.json").exists()
