"""Validation raises on everything that would spoil training, and on nothing else."""

import json

import numpy as np
import pytest
import soundfile
from curation_steps import STEPS, corpus, recipe

from data_prep.pipeline import curate
from data_prep.shards import write_shards
from data_prep.validate import main, validate
from omnilib.errors import DataError

RATE = 16_000


@pytest.fixture
def manifest(tmp_path):
    """Ten good records: six files of one sentence each, and four pieces of a longer file."""
    records = []
    for index in range(10):
        path, start = (f"audio/{index}.wav", 0.0) if index < 6 else ("audio/long.wav", 2.0 * (index - 6))
        split, text = (
            ("test", "A sentence of the test.") if index == 0 else ("train", f"The sentence number {index}.")
        )
        records.append(
            {"id": f"r{index}", "path": path, "start": start, "duration": 2.0, "rate": RATE, "text": text, "language": "en", "speaker": "s",
             "source": "tones", "licence": "CC0-1.0", "split": split}
        )  # fmt: skip
        (tmp_path / "audio").mkdir(exist_ok=True)
        soundfile.write(tmp_path / path, np.zeros(RATE * (2 if index < 6 else 9)), RATE)
    records[4] |= {"language": "zh", "text": "\u4eca\u5929\u5929\u6c14\u5f88\u597d"}
    return save(tmp_path, records)


def save(folder, records):
    path = folder / "manifest.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return path


def test_good_records_pass(manifest):
    assert validate(manifest) == 10 and main([str(manifest)]) == 0


SPOILED = {
    "missing_audio": {"path": "audio/absent.wav"},
    "wrong_rate": {"rate": 24_000},
    "wrong_duration": {"duration": 2.2},
    "empty_text": {"text": " ... "},
    "wrong_script": {"text": "\u4eca\u5929\u5929\u6c14"},
    "impossible_speed": {"text": "word " * 40},
    "test_text_in_train": {"text": "a sentence, of the TEST"},
}
SPOILED_TOO = [
    ("wrong_duration", {"duration": 1.5}),  # shorter than its whole file
    ("wrong_duration", {"duration": None}),
    ("bad_offset", {"start": -1.0}),
    ("bad_offset", {"duration": -2.0}),
    ("wrong_type", {"start": "soon"}),
    ("wrong_type", {"text": 7}),
    ("outside_the_folder", {"path": "../x.wav"}),
    ("empty_text", {"text": None}),
    ("wrong_script", {"language": "zh"}),
    ("impossible_speed", {"duration": 2.0, "text": "x"}),
]


@pytest.mark.parametrize(("reason", "change"), [*SPOILED.items(), *SPOILED_TOO])
def test_a_spoiled_record_is_named_with_its_reason(manifest, tmp_path, reason, change, capsys):
    records = [json.loads(line) for line in manifest.read_text().splitlines()]
    records[3] |= change
    save(tmp_path, records)
    assert main([str(manifest), "--report", str(tmp_path / "report.jsonl")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    found = [json.loads(x) for x in (tmp_path / "report.jsonl").read_text().splitlines()]
    assert ("r3", reason) in {(f["id"], f["reason"]) for f in found} and {f["id"] for f in found} == {"r3"}
    assert line.startswith("error: ") and reason in line


def test_every_bad_line_is_named_by_number_and_reason(manifest, tmp_path, capsys):
    good = manifest.read_text().splitlines()
    manifest.write_text(
        "\n".join([good[0], "{half", *good[1:], good[3], "[]", json.dumps({"id": "x"})]) + "\n"
    )
    assert main([str(manifest), "--report", str(tmp_path / "report.jsonl")]) == 2
    found = [json.loads(line) for line in (tmp_path / "report.jsonl").read_text().splitlines()]
    assert [(f["id"], f["reason"]) for f in found] == [
        ("manifest.jsonl:2", "not_json"),
        ("r3", "repeated_id"),
        ("manifest.jsonl:13", "not_json"),
        ("x", "missing_field"),
    ]
    assert found[1]["detail"].startswith("line 12: ")
    assert "4 problems (not_json 2, repeated_id 1, missing_field 1)" in capsys.readouterr().err


def test_a_file_cut_in_half_is_found(manifest, tmp_path):
    path = tmp_path / "audio/3.wav"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match="truncated_audio 1"):
        validate(manifest)


def test_a_piece_beyond_the_end_of_its_file_is_found(manifest, tmp_path):
    records = [json.loads(line) for line in manifest.read_text().splitlines()]
    records[9] |= {"start": 8.0}
    with pytest.raises(DataError, match=r"1 problems \(wrong_duration 1\); first: 'r9'"):
        validate(save(tmp_path, records))


def test_a_label_that_the_voices_contradict_is_found(manifest, tmp_path):
    from data_prep.steps.voices import pack

    rng = np.random.default_rng(0)
    voices = {"anna": rng.standard_normal(64), "bert": rng.standard_normal(64)}
    records = [json.loads(line) for line in manifest.read_text().splitlines()]
    for index, record in enumerate(records):
        name = "anna" if index % 2 else "bert"
        record |= {"speaker": name, "voice": pack(voices[name] + 0.2 * rng.standard_normal(64))}
    assert validate(save(tmp_path, records)) == 10
    records[5]["speaker"] = "bert"
    with pytest.raises(DataError, match=r"1 problems \(wrong_speaker 1\); first: 'r5'"):
        validate(save(tmp_path, records))


def test_what_the_pipeline_wrote_matches_its_checksum_until_someone_edits_it(tmp_path):
    curate(corpus(tmp_path / "in", 3), recipe(tmp_path, *STEPS), tmp_path / "out", workers=1)
    path = tmp_path / "out/manifest.jsonl"
    with pytest.raises(DataError) as error:
        validate(path)
    assert "checksum" not in str(error.value)  # tones have no text, which is what it complains of
    path.write_text(path.read_text().replace("set1", "set2"))
    with pytest.raises(DataError, match="'manifest.jsonl' checksum, not the file the pipeline wrote"):
        validate(path)


@pytest.mark.parametrize("damage", ["missing_shard", "checksum", "index"])
def test_damaged_shards_are_found(manifest, tmp_path, damage, capsys):
    index = write_shards(manifest, tmp_path / "shards", seconds=8)
    assert validate(tmp_path / "shards") == len(index["shards"]) > 1
    shard = tmp_path / "shards" / index["shards"][1]["path"]
    if damage == "missing_shard":
        shard.unlink()
    elif damage == "checksum":
        content = bytearray(shard.read_bytes())
        content[len(content) // 2] ^= 1
        shard.write_bytes(content)
    else:
        (tmp_path / "shards/index.json").write_text("{")
    assert main([str(tmp_path / "shards")]) == 2 and damage in capsys.readouterr().err.splitlines()[-1]
