"""Steps that see every record: speed fence, speakers, duplicates, split, long recordings; and speech tokens."""

import io

import numpy as np
import pytest
import soundfile
from frozen_audio import RATE, Shelf, reasons, run, spoken, two_voices, wave_of

from data_prep.steps import duplicates
from data_prep.steps.duplicates import Duplicates, Fingerprint, best_match, masks
from data_prep.steps.longform import LongForm
from data_prep.steps.speed import Speed
from data_prep.steps.split import Split, letters, voice_of
from data_prep.steps.voices import Speakers, Turns, Voiceprint, cluster, pack, unpack


@pytest.fixture
def shelf(tmp_path):
    return Shelf(tmp_path)


def record(name: str, **fields) -> dict:
    base = {
        "id": name,
        "source": "radio",
        "language": "en",
        "speaker": "ann",
        "duration": 5.0,
        "text": "some words",
        "split": None,
    }
    return base | {"licence": "CC0", "rate": RATE, "start": 0.0} | fields


# ---- speed -----------------------------------------------------------------------------------------------------------


def test_speech_far_too_fast_or_slow_for_its_source_is_dropped():
    normal = [record(f"n{i}", text="x" * (70 + i % 7)) for i in range(30)]
    odd = [record("slow", text="x" * 10), record("fast", text="x" * 200)]
    elsewhere = record("other", source="phone", text="x" * 200)  # its source has too few records for a fence
    results = Speed().run([*normal, *odd, elsewhere], None)
    assert reasons(results) == [None] * 30 + ["speed_outlier"] * 2 + [None]
    assert results[0]["chars_per_second"] == 14.0


# ---- voices ----------------------------------------------------------------------------------------------------------


def unit(rng, *parts: np.ndarray) -> np.ndarray:
    vector = sum(parts) + 0.03 * rng.standard_normal(64)
    return vector / np.linalg.norm(vector)


def test_packing_a_vector_keeps_its_direction():
    vector = unit(np.random.default_rng(0), np.random.default_rng(1).standard_normal(64))
    assert unpack(pack(vector)) @ vector > 0.999


def test_a_label_that_the_voice_contradicts_is_found_even_among_many():
    rng = np.random.default_rng(0)
    people = {name: unit(rng, rng.standard_normal(64)) for name in ("ann", "bob", "cid")}
    records, wrong = [], set()
    for index in range(60):
        name = list(people)[index % 3]
        voice = name if index % 4 else list(people)[(index + 1) % 3]  # a quarter of the labels is wrong
        if voice != name:
            wrong.add(f"r{index}")
        records.append(record(f"r{index}", speaker=name, voice=pack(unit(rng, people[voice]))))
    unlabelled = record("none", speaker=None, voice=pack(people["ann"]))
    results = Speakers().run([*records, unlabelled], None)
    assert {r["id"] for r in results if "dropped" in r} == wrong


def test_a_label_of_few_records_is_contradicted_only_by_a_voice_that_is_certain():
    rng = np.random.default_rng(0)
    people = {name: unit(rng, rng.standard_normal(64)) for name in ("ann", "bob", "cid", "dan")}
    voices = {f"ann{i}": ("ann", "ann") for i in range(5)} | {
        "wrong": ("bob", "ann"),
        "bob0": ("bob", "bob"),
        "cid0": ("cid", "cid"),
    }
    voices |= {
        "dan0": ("dan", "cid"),
        "dan1": ("dan", "cid"),
    }  # no label with a voice of its own contradicts these
    records = [
        record(name, speaker=label, voice=pack(unit(rng, people[voice])))
        for name, (label, voice) in voices.items()
    ]
    near = unit(rng, people["ann"], 0.8 * people["bob"])  # like ann, but not for certain
    records.append(record("near", speaker="eve", voice=pack(near)))
    assert [r["id"] for r in Speakers(certain=0.9).run(records, None) if "dropped" in r] == ["wrong"]
    assert not [r for r in Speakers().run(records, None) if "dropped" in r]


def test_two_records_of_a_label_that_are_one_voice_protect_each_other():
    rng = np.random.default_rng(0)
    ann = unit(rng, rng.standard_normal(64))
    twin = unit(rng, ann, 0.3 * unit(rng, rng.standard_normal(64)))  # somebody who sounds like ann
    records = [record(f"ann{i}", speaker="ann", voice=pack(unit(rng, ann))) for i in range(5)]
    records += [record(f"twin{i}", speaker="twin", voice=pack(twin)) for i in range(2)]
    assert not [r for r in Speakers(certain=0.8).run(records, None) if "dropped" in r]
    assert [r["id"] for r in Speakers(certain=0.8).run(records[:-1], None) if "dropped" in r] == ["twin0"]


def test_clusters_are_numbered_as_they_appear():
    a, b = np.eye(2)
    assert cluster(np.stack([b, a, b, a]), 0.7) == [0, 1, 0, 1] and cluster(a[None], 0.7) == [0]


@pytest.mark.slow
def test_real_voices_are_told_apart(shelf):
    one, two = two_voices()
    people = [spoken(speaker=one)[:5], spoken(speaker=two)[:5]]
    records = [shelf.add(wave_of(r), speaker=r["speaker"]) for person in people for r in person]
    records[0]["speaker"], truth = two, {records[0]["id"]}
    prints = run(Voiceprint(), records, shelf)
    assert {r["id"] for r in Speakers().run(prints, None) if "dropped" in r} == truth
    waves = [wave_of(person[i]) for i in range(3) for person in people]
    ends = np.cumsum([len(w) for w in waves]) / RATE
    dialogue = shelf.add(np.concatenate(waves)) | {
        "speech": [[e - len(w) / RATE, e] for e, w in zip(ends, waves, strict=True)]
    }
    (numbered,) = run(Turns(), [dialogue], shelf)
    assert numbered["turns"] == [0, 1] * 3


# ---- duplicates ------------------------------------------------------------------------------------------------------


def opus(wave: np.ndarray) -> np.ndarray:
    """Through Opus at about 6 kbit/s."""
    file = io.BytesIO()
    soundfile.write(file, wave, RATE, format="OGG", subtype="OPUS", compression_level=1.0)
    file.seek(0)
    return soundfile.read(file, dtype="float32")[0]


def test_copies_are_found_however_they_were_changed_and_nothing_else(shelf):
    waves = [wave_of(r) for r in spoken(role="eval")[:12]]
    changes = {
        "exact": lambda w: w,
        "louder": lambda w: np.clip(1.7 * w, -1, 1),
        "shifted": lambda w: np.concatenate([np.zeros(int(0.083 * RATE), np.float32), w]),
        "opus": opus,
        "cut": lambda w: opus(w[int(0.307 * RATE) :] * 0.4),
        "inside": lambda w: np.concatenate([np.zeros(RATE, np.float32), w, 0.01 * w[::-1]]),
    }
    records = [shelf.add(w, text=None) for w in waves]
    for number, change in enumerate(changes.values()):
        records += [shelf.add(change(waves[2 * number + k])) for k in (0, 1)]
    results = run(Duplicates(), run(Fingerprint(), records, shelf), shelf)
    pairs = {frozenset((r["id"], r["duplicate_of"])) for r in results if "dropped" in r}
    assert pairs == {frozenset((records[i]["id"], records[12 + i]["id"])) for i in range(12)}


def test_a_larger_corpus_uses_longer_keys_and_a_sample_of_windows(shelf, monkeypatch):
    assert [len({*masks(n)}) for n in (10, 1 << 20, 1 << 22, 1 << 24, 1 << 30)] == [4, 4, 4, 4, 1]
    assert [int(masks(n)[0]).bit_count() for n in (10, 1 << 22, 1 << 24, 1 << 30)] == [18, 20, 22, 24]
    waves = [wave_of(r) for r in spoken(role="eval")[:8]]
    records = run(Fingerprint(), [shelf.add(w) for w in [*waves, *(0.5 * w[2000:] for w in waves)]], shelf)
    monkeypatch.setattr(duplicates, "WINDOWS", 300)  # of about 4,000
    assert [r["id"] for r in Duplicates().run(records, shelf.audio) if "dropped" not in r] == [
        f"r{i:03d}" for i in range(1, 9)
    ]


def test_the_longest_copy_stays_whatever_the_order(shelf):
    wave = wave_of(spoken(role="eval")[0])
    records = run(
        Fingerprint(), [shelf.add(wave[RATE:]), shelf.add(wave), shelf.add(wave[: 2 * len(wave) // 3])], shelf
    )
    for order in (records, records[::-1]):
        kept = [r["id"] for r in Duplicates().run(order, shelf.audio) if "dropped" not in r]
        assert kept == ["r002"]


def test_one_text_by_one_speaker_is_kept_once(shelf):
    rng = np.random.default_rng(0)
    texts = [("ann", "Good day!"), ("ann", "good day"), ("bob", "good day"), ("ann", None), ("ann", None)]
    records = [shelf.add(0.1 * rng.standard_normal(2 * RATE), speaker=s, text=t) for s, t in texts]
    results = Duplicates().run(run(Fingerprint(), records, shelf), shelf.audio)
    assert reasons(results) == [None, "duplicate_text", None, None, None]


# ---- split -----------------------------------------------------------------------------------------------------------


def test_no_speaker_and_no_text_of_a_held_out_set_is_in_train():
    records = [record(f"r{i}", speaker=f"s{i % 40}", text=f"Text {i % 150}") for i in range(400)]
    results = Split(test=0.05, dev=0.05).run(records, None)
    sets = {
        name: [r for r in results if r["split"] == name and "dropped" not in r]
        for name in ("train", "dev", "test")
    }
    assert all(sets.values()) and len(sets["test"]) == pytest.approx(20, abs=10)
    for one, other in (("train", "test"), ("train", "dev"), ("dev", "test")):
        assert not {voice_of(r) for r in sets[one]} & {voice_of(r) for r in sets[other]}
    held = {letters(r) for r in sets["dev"] + sets["test"]}
    assert not held & {letters(r) for r in sets["train"]}
    assert (
        all(letters(r) in held for r in results if "dropped" in r)
        and Split(test=0.05, dev=0.05).run(records[::-1], None)[::-1] == results
    )


def test_a_given_split_stays_and_one_voice_alone_stays_in_train():
    records = [
        record("a", split="test", text="one"),
        record("b", speaker="bob", text="ONE."),
        record("c", speaker="bob", text="two"),
    ]
    results = Split(test=0.5).run(records, None)
    assert [(r["split"], r.get("dropped", {}).get("reason")) for r in results] == [
        ("test", None),
        ("train", "held_out_text"),
        ("train", None),
    ]


# ---- long recordings and tokens --------------------------------------------------------------------------------------


@pytest.fixture
def sentences(shelf):
    """Forty sentences of two speakers, five seconds each, train; one of them in dev."""
    time = np.arange(5 * RATE) / RATE
    return [
        shelf.add(
            0.1 * np.sin(2 * np.pi * (200 + 10 * i) * time) + 0.01,
            text=f"Sentence {i}.",
            speaker="ab"[i % 2],
            language="en",
            split="dev" if i == 7 else "train",
        )
        for i in range(40)
    ]


def test_long_recordings_hold_their_parts_where_they_say(shelf, sentences):
    results = LongForm(least=12, most=40).run(sentences, shelf.audio)
    made = [r for r in results if r.get("long")]
    assert results[:40] == sentences and len(made) >= 3
    used = [p["id"] for r in made for p in r["parts"]]
    assert len(used) == len(set(used)) and sentences[7]["id"] not in used
    by_id = {r["id"]: r for r in sentences}
    for long in made:
        assert 12 <= long["duration"] <= 40.1 and {by_id[p["id"]]["speaker"] for p in long["parts"]} == {
            long["speaker"]
        }
        assert long["text"] == " ".join(p["text"] for p in long["parts"])
        wave = shelf.audio.wave(long)
        assert len(wave) == round(long["duration"] * RATE)
        for part, after in zip(long["parts"], [*long["parts"][1:], None], strict=True):
            start = round(part["start"] * RATE)
            inner = slice(start + RATE, start + 2 * RATE)
            np.testing.assert_allclose(
                wave[inner], shelf.audio.wave(by_id[part["id"]])[RATE : 2 * RATE], atol=1e-3
            )
            if after:
                gap = after["start"] - part["end"]
                assert (
                    0.09 <= gap <= 1.51
                    and not wave[round(part["end"] * RATE) + 2 : round(after["start"] * RATE) - 2].any()
                )


def test_long_recordings_do_not_depend_on_order_and_lengths_are_spread(shelf, sentences):
    step = LongForm(least=10, most=60)
    lengths = [len(list(step.groups(("voice", seed), sentences))) for seed in range(3)]
    assert (
        step.run(sentences[::-1], shelf.audio)[40:] == step.run(sentences, shelf.audio)[40:]
        and len(set(lengths)) > 1
    )
    long = [record(f"r{i:05d}") for i in range(6000)]
    ends = [group[-1][0] + 5.0 for group in LongForm(least=30, most=330).groups(("x",), long)]
    counts, _ = np.histogram(ends, bins=3, range=(30, 330))
    assert min(counts) > 0.6 * max(counts)


def test_a_natural_pause_of_the_recording_is_kept(shelf):
    records = [
        record(f"r{i}", parent="p", segment_start=6.0 * i + (3.0 if i == 2 else 0.0)) for i in range(3)
    ]
    ((first, second, third),) = LongForm(least=5, most=100).groups(("x",), records)
    assert second[0] - first[0] - 5.0 == pytest.approx(1.0) and 0.1 <= third[0] - second[0] - 5.0 <= 1.5


def test_tokens_are_those_of_the_training_code(shelf):
    import torch

    from data_prep.steps.tokens import Tokens
    from omnilib.audio import log_mel_128
    from omnilib.train.encode import blocks_of
    from omnilib.voice.speaker import SpeakerEncoder
    from omnilib.voice.tokenizer import SpeechTokenizer

    step = Tokens()
    records = [shelf.add(wave_of(r)) for r in spoken(role="eval")[:2]]
    results = run(step, records, shelf)
    tokenizer = SpeechTokenizer.load(step.tokenizer)
    for result in results:
        assert len(blocks_of(result)) == 1 and abs(len(result["tokens"]) - 25 * result["duration"]) <= 1
        wave = torch.from_numpy(shelf.audio.wave(result, 16_000).copy())
        codes, count = tokenizer.encode(log_mel_128(wave[None]), torch.tensor([len(wave) // 160]))
        assert result["tokens"] == codes[0][: int(count[0])].tolist()
        assert len(result["speaker_vector"]) == SpeakerEncoder.load(step.speaker).config.dim


def test_words_that_do_not_overlap_at_an_offset_are_no_copies():
    short, long = np.arange(1, 5, dtype=np.uint32), np.arange(1, 105, dtype=np.uint32)
    assert (
        best_match(short, long, np.array([-6, 200]), 0.0)
        == best_match(long, short, np.array([-200, 6]), 0.0)
        == 1.0
    )
    assert (
        best_match(short, long, np.array([-6, 0, 1]), 0.6)
        == best_match(long, short, np.array([0]), 0.6)
        == 0.0
    )
    assert (
        best_match(short, long, np.array([-2]), 0.6) == 1.0 > best_match(short, long, np.array([-2]), 0.5)
    )  # half of it meets something
