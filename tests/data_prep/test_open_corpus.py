"""The natural corpus: splits without leakage, shards that are complete or absent, lines that fail skipped
and counted."""

import argparse
import errno
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from data_prep import describe, engines, fetch, frozen, kokoro, nano, open_corpus, open_plan, speakers, texts
from data_prep.texts import Line
from omnilib.data import load_segment, read_manifest, sha256
from omnilib.errors import DataError, MissingTool
from omnilib.paths import ROOT
from tests.data_prep.kokoro_fakes import VOICES

KINDS = {
    "en": (
        "everyday",
        "number",
        "question",
        "exclamation",
        "dialogue",
        "smalltalk",
        "quote",
        "example",
        "gloss",
        "bible",
        "chapter",
    ),
    "zh": ("everyday", "number", "question", "exclamation", "dialogue", "smalltalk", "quote", "poem"),
}


class Buzz:
    """A stand-in engine: each letter is a tone, so different sentences sound different."""

    language = "en"

    def __init__(self, voice: str):
        self.pitch = 100 + len(voice)

    def say(self, text: str) -> engines.Spoken:
        letters = [c for c in text.lower() if c.isalpha()][:30]
        rate, step = 16_000, 800
        time = np.arange(step) / rate
        tones = [np.sin(2 * np.pi * (self.pitch + 20 * (ord(c) % 97)) * time) for c in letters]
        ends = [step * (i + 1) / rate for i in range(len(letters) + 2)]
        wave = np.concatenate([np.zeros(step), *tones, np.zeros(step)]).astype(np.float32)
        return engines.Spoken(wave, rate, ["pau", *letters, "pau"], ends)


def made_up(language: str, drawn: int = 0) -> list[Line]:
    """1,500 sentences of made-up words (or characters), every kind among them."""
    rng = np.random.default_rng(1)
    lines = []
    for number in range(1500):
        kind = KINDS[language][number % len(KINDS[language])]
        if language == "en":
            text = (
                " ".join("".join(chr(97 + c) for c in rng.integers(0, 26, 4)) for _ in range(6)).capitalize()
                + "."
            )
        else:
            text = "".join(chr(0x4E00 + c) for c in rng.integers(0, 3000, 9)) + "。"
        lines.append(Line("templates", kind, text))
    return lines


def shrink(patch) -> None:
    """A plan of some 200 short lines for Buzz."""
    patch.setattr(texts, "open_lines", made_up)
    patch.setattr(open_plan, "TEST_EVERYDAY", {"en": 20, "zh": 12})
    patch.setattr(open_plan, "TEST_REST", 30)
    patch.setattr(open_plan, "WIDE_SPEAKERS", {"en": 4, "zh": 2})
    patch.setattr(open_plan, "LONG_SPEAKERS", {"en": 2, "zh": 1})
    patch.setattr(open_plan, "LONG_SECONDS", 30.0)
    patch.setattr(open_plan, "HOURS", {"raw": 0.02, "en": 0.04, "zh": 0.02})
    patch.setattr(open_plan, "SHARD", {"synthetic": 8, "raw": 8})
    patch.setattr(open_corpus, "engine", lambda name, voice: Buzz(voice))
    patch.setattr(fetch, "missing", lambda folder=None: [])
    patch.setattr(fetch, "fetch", lambda *a: [])
    patch.setattr(kokoro, "voices", lambda *a: dict.fromkeys(VOICES))


@pytest.fixture
def tiny(monkeypatch):
    """The small plan, to be built in a test's own folder."""
    shrink(monkeypatch)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """One finished corpus of the small plan, for tests that only read it."""
    folder = tmp_path_factory.mktemp("corpus")
    with pytest.MonkeyPatch.context() as patch:
        shrink(patch)
        open_corpus.build(folder, workers=1)
    return folder


def words_of(records: list[dict], split: str) -> set[str]:
    return {" ".join(texts.words(r["text"], r["language"])) for r in records if r["split"] == split}


def test_splits_share_no_sentence_and_no_base_voice(tiny):
    records = open_plan.plan(voices=list(VOICES))
    test, dev, train = (words_of(records, split) for split in ("test", "dev", "train"))
    assert test and dev and train and not test & train and not dev & train and not test & dev
    for record in records:
        if record["part"] == "synthetic":
            weights, prosody = kokoro.parse(record["voice"])
            held = {*weights, prosody} & set(kokoro.HELD_OUT)
            assert bool(held) == (not record["seen_speaker"]), record["voice"]
            assert not held or held == {*weights, prosody}, "a mixture of held-out and trained voices leaks"
            assert record["seen_speaker"] or record["split"] == "test"
    unseen = {r["voice"] for r in records if not r["seen_speaker"]}
    assert set(kokoro.HELD_OUT) <= unseen and len(unseen) > len(kokoro.HELD_OUT)


def test_at_least_four_english_and_two_mandarin_voices_are_held_out():
    languages = ["zh" if voice.startswith("z") else "en" for voice in kokoro.HELD_OUT]
    assert languages.count("en") >= 4 and languages.count("zh") >= 2


def test_the_same_plan_comes_again_and_test_sentences_are_built_first(tiny):
    first, second = (open_plan.plan(voices=list(VOICES)) for _ in range(2))
    assert first == second and len({r["id"] for r in first}) == len(first)
    order = [items[0]["split"] for _, items in open_plan.shards_of(first)]
    assert order.index("train") == sum(split != "train" for split in order)
    assert open_plan.shards_of(first)[0][1][0]["set"] == "everyday"


def test_a_shard_of_other_words_has_another_name(tiny):
    records = open_plan.plan(voices=list(VOICES))
    names = {name for name, _ in open_plan.shards_of(records)}
    records[0]["text"] += " And more."
    assert len(names - {name for name, _ in open_plan.shards_of(records)}) == 1


def test_a_mixture_of_kinds_has_the_wanted_shares_from_the_start(tiny):
    shares = {"everyday": 60, "quote": 40}
    begin = list(open_plan.mixed(made_up("en"), shares))[:100]
    assert sum(line.kind == "everyday" for line in begin) == pytest.approx(60, abs=3)


def test_raw_lines_bring_new_words_from_the_start(tiny):
    records = open_plan.raw(made_up("en"), set(), 0.05)
    assert {r["part"] for r in records} == {"raw"} and {r["split"] for r in records} == {"train"}
    assert len({r["speaker"] for r in records}) > 10 and {r["engine"] for r in records} == {"flite", "piper"}


def test_two_builds_give_the_same_manifest_and_sound(tiny, built, tmp_path):
    assert open_corpus.build(tmp_path, workers=2) == sha256(built / "manifest.jsonl")
    sums = (tmp_path / "checksums.sha256").read_text()
    assert sums == (built / "checksums.sha256").read_text()
    assert (
        len(sums.splitlines())
        == len(list((tmp_path / "records").iterdir()))
        == len(open_plan.shards_of(open_plan.plan(voices=list(VOICES))))
    )


def test_a_killed_build_goes_on_where_it_was(tiny, built, tmp_path):
    digest = sha256(built / "manifest.jsonl")
    shutil.copytree(built, tmp_path, dirs_exist_ok=True)
    lists = sorted((tmp_path / "records").iterdir())
    kept = {p.name: p.stat().st_mtime_ns for p in lists[1:]}
    lists[0].unlink()  # sound without its record list was not finished
    (tmp_path / "audio" / "half.tmp").write_bytes(b"fLaC")
    assert open_corpus.build(tmp_path, workers=1) == digest
    assert {p.name: p.stat().st_mtime_ns for p in lists[1:]} == kept and not list(
        tmp_path.glob("audio/*.tmp")
    )


def test_a_shard_that_was_damaged_after_it_was_finished_is_spoken_again(tiny, built, tmp_path):
    digest, sums = sha256(built / "manifest.jsonl"), (built / "checksums.sha256").read_text()
    shutil.copytree(built, tmp_path, dirs_exist_ok=True)
    first, second, third = sorted((tmp_path / "audio").iterdir())[:3]
    first.write_bytes(first.read_bytes()[:2000])
    second.unlink()
    (tmp_path / "records" / f"{third.stem}.jsonl").write_text('{"id": ')
    assert open_corpus.records_of(tmp_path, second.stem) is None
    assert open_corpus.build(tmp_path, workers=1) == digest
    assert (tmp_path / "checksums.sha256").read_text() == sums


def test_the_command_killed_in_the_middle_goes_on_and_ends_the_same(tiny, built, tmp_path):
    script = (
        "import sys, pytest; from pathlib import Path; from tests.data_prep import test_open_corpus as tests\n"
        "tests.shrink(pytest.MonkeyPatch()); tests.open_corpus.build(Path(sys.argv[1]), workers=1)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, stderr=subprocess.DEVNULL
    ) as builder:
        for _ in range(1200):
            if len(list(tmp_path.glob("records/*.jsonl"))) >= 3 or builder.poll() is not None:
                break
            time.sleep(0.02)
        builder.kill()
    assert list(tmp_path.glob("records/*.jsonl")) and not (tmp_path / "manifest.jsonl").exists()
    time.sleep(2 * 0.1)
    assert open_corpus.build(tmp_path, workers=1) == sha256(built / "manifest.jsonl")
    assert (tmp_path / "checksums.sha256").read_text() == (built / "checksums.sha256").read_text()


def test_a_disk_that_is_full_when_the_manifest_is_written_gives_one_line(tiny, built, monkeypatch, tmp_path):
    shutil.copytree(built, tmp_path / "c")

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(open_corpus, "write_manifest", full)
    with pytest.raises(SystemExit, match=r"No space left on device.*finished shards are kept"):
        nano.main(["--out", str(tmp_path / "c"), "--collect"])
    assert sha256(tmp_path / "c" / "manifest.jsonl") == sha256(built / "manifest.jsonl")


def test_utterances_are_whole_rows_read_from_flac_and_have_phoneme_times(built, tmp_path):
    shutil.copytree(built, tmp_path, dirs_exist_ok=True)
    records = read_manifest(tmp_path / "manifest.jsonl")
    assert {r["part"] for r in records} == {"synthetic", "raw"}
    for record in records[::7]:
        wave = load_segment(record, tmp_path)
        assert len(wave) % engines.STEP == 0 and len(wave) == round(record["duration"] * record["rate"])
        assert wave.square().mean().sqrt() > 0.02 and record["phoneme_ends"][-1] == record["duration"]
        part = load_segment(record, tmp_path, 0.1, 0.2)
        assert part.equal(wave[2400 : 2400 + len(part)]) and len(part) == 4800
    (tmp_path / records[0]["path"]).write_bytes(b"not flac")
    with pytest.raises(DataError, match="rebuild the corpus"):
        load_segment(records[0], tmp_path)


def test_a_line_the_engine_cannot_speak_is_skipped_and_counted(tiny, monkeypatch, tmp_path, capsys):
    say, poor = Buzz.say, open_plan.plan(voices=list(VOICES))[0]["text"]

    def partly(self, text):
        if text == poor:
            raise RuntimeError("the engine stumbles")
        return say(self, text)

    monkeypatch.setattr(Buzz, "say", partly)
    open_corpus.build(tmp_path, workers=1)
    (skipped,) = [json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    assert (
        skipped["text"] == poor
        and "stumbles" in skipped["why"]
        and "1 lines were skipped" in capsys.readouterr().out
    )
    assert poor not in {r["text"] for r in read_manifest(tmp_path / "manifest.jsonl")}


def test_a_missing_engine_stops_the_build(tiny, monkeypatch, tmp_path):
    def absent(self, text):
        raise MissingTool("buzz is missing: apt-get install buzz")

    monkeypatch.setattr(Buzz, "say", absent)
    with pytest.raises(MissingTool, match="apt-get install buzz"):
        open_corpus.build(tmp_path, workers=1)
    assert not list((tmp_path / "records").iterdir())


def test_a_full_disk_gives_one_line_and_leaves_complete_shards_only(tiny, built, monkeypatch, tmp_path):
    digest = sha256(built / "manifest.jsonl")
    write, count = open_corpus.soundfile.write, [0]

    def full(path, *args, **settings):
        count[0] += 1
        if count[0] > 3:
            path.write_bytes(b"fLaC")
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, *args, **settings)

    monkeypatch.setattr(open_corpus.soundfile, "write", full)
    with pytest.raises(DataError, match=r"No space left on device.*run again; finished shards are kept"):
        open_corpus.build(tmp_path / "part", workers=1)
    done = {p.stem for p in (tmp_path / "part" / "records").iterdir()}
    assert len(done) >= 3 and done == {p.stem for p in (tmp_path / "part" / "audio").iterdir()}
    monkeypatch.setattr(open_corpus.soundfile, "write", write)
    assert open_corpus.build(tmp_path / "part", workers=1) == digest


def test_too_small_a_disk_is_said_before_anything_is_spoken(tiny, monkeypatch, tmp_path):
    usage = type("Usage", (), {"free": 1e6})
    monkeypatch.setattr(open_corpus.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DataError, match="has 0.0 GB free, the corpus needs"):
        open_corpus.build(tmp_path, workers=1)
    assert not list((tmp_path / "records").iterdir())


def test_a_worker_that_is_killed_ends_the_build_with_one_line(tiny, monkeypatch, tmp_path):
    say, builder, poor = Buzz.say, os.getpid(), open_plan.plan(voices=list(VOICES))[30]["text"]

    def killed(self, text):
        if text == poor and os.getpid() != builder:
            os.kill(os.getpid(), 9)
        return say(self, text)

    monkeypatch.setattr(Buzz, "say", killed)
    with pytest.raises(DataError, match="a worker process died.*finished shards are kept"):
        open_corpus.build(tmp_path, workers=1)
    monkeypatch.setattr(Buzz, "say", say)
    assert open_corpus.build(tmp_path, workers=1)


def test_workers_end_when_their_parent_is_killed():
    script = (
        "import os, time; from concurrent.futures import ProcessPoolExecutor; from data_prep import open_corpus\n"
        "open_corpus.WATCH = 0.05\n"
        "pool = ProcessPoolExecutor(1, open_corpus.get_context('fork'), initializer=open_corpus.follow_parent)\n"
        "print(pool.submit(os.getpid).result(), flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as parent:
        worker = int(parent.stdout.readline())
        parent.kill()
    for _ in range(100):
        state = Path(f"/proc/{worker}/stat")
        if not state.exists() or ") Z" in state.read_text():
            return
        time.sleep(0.05)
    pytest.fail("the worker of a killed build lives on")


def test_the_folder_of_another_plan_or_a_damaged_one_is_refused(tiny, tmp_path):
    open_corpus.build(tmp_path, workers=1, only_collect=True)
    with pytest.raises(DataError, match="another --hours"):
        open_corpus.build(tmp_path, hours=0.1, workers=1)
    plan = tmp_path / "plan.jsonl"
    plan.write_text(plan.read_text()[:-50])
    with pytest.raises(DataError, match="missing or damaged: delete"):
        open_corpus.build(tmp_path, workers=1)


def test_without_kokoro_the_plain_engines_speak_and_one_line_says_what_is_lost(
    tiny, monkeypatch, tmp_path, capsys
):
    monkeypatch.setattr(fetch, "missing", lambda folder=None: ["kokoro-js"])
    open_corpus.build(tmp_path, workers=1, dry_run=True)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "Kokoro" in line]
    assert (
        "kokoro-js is missing" in line and "no natural voices" in line and "python -m data_prep.fetch" in line
    )
    records = [json.loads(line) for line in (tmp_path / "plan.jsonl").read_text().splitlines()]
    assert {r["engine"] for r in records} == {"flite", "piper", "gcin"}
    unseen = {s.name for s in speakers.SPEAKERS if not s.lines}
    assert {r["speaker"] for r in records if r["set"] == "everyday"} == unseen
    assert not unseen & {r["speaker"] for r in records if r["split"] == "train"}


def test_long_form_joins_are_a_third_of_the_natural_hours_and_one_speaker_each(built):
    records = {r["id"]: r for r in read_manifest(built / "synthetic.jsonl")}
    joined = open_corpus.longform(list(records.values()), seconds=(4.0, 20.0))
    assert sum(j["duration"] for j in joined) >= sum(r["duration"] for r in records.values()) / 3
    for item in joined:
        assert {records[p["id"]]["speaker"] for p in item["parts"]} == {item["speaker"]} and item[
            "duration"
        ] >= 4.0
        assert all(a["end"] < b["start"] for a, b in zip(item["parts"], item["parts"][1:], strict=False))


def test_long_texts_have_their_lengths_and_no_training_sentence(tiny, monkeypatch):
    monkeypatch.setattr(texts, "open_lines", lambda language, drawn: [Line(x.source, k, f"{x.text} {n}") for n in "abcdefghijklmnopqrstuvwxyz" for x, k in
                        ((line, line.kind) for line in made_up("en"))])  # fmt: skip
    long = open_plan.long_texts(list(VOICES))
    lengths = [item["words"] for item in long]
    assert len(long) == 13 and all(300 <= n <= 500 for n in lengths[:10])
    assert all(1500 <= n <= 1700 for n in lengths[10:12]) and 9000 <= lengths[12] <= 10000
    assert {item["speaker"] for item in long} <= {s.name for s in open_plan.test_speakers("en", list(VOICES))}


def test_the_card_names_hours_words_and_licences(built):
    digest = sha256(built / "manifest.jsonl")
    text = (built / "card.md").read_text()
    for wanted in (
        digest,
        "| en |",
        "| zh |",
        "once",
        "distinct",
        "lines skipped",
        "Apache-2.0",
        "long-form joins",
    ):
        assert wanted in text
    assert open_corpus.fingerprint(built) == {"plan": sha256(built / "plan.jsonl"), "manifest": digest}


def test_a_corpus_is_described_by_engine_voice_and_word(built, tmp_path, capsys):
    shutil.copytree(built, tmp_path, dirs_exist_ok=True)
    nano.main(["--out", str(tmp_path), "--describe"])
    found = json.loads((tmp_path / "description.json").read_text())
    records = read_manifest(built / "manifest.jsonl")
    hours = sum(r["duration"] for r in records) / 3600
    for groups in ("engines", "voices", "splits", "kinds"):
        assert sum(g["utterances"] for g in found[groups].values()) == len(records) == found["utterances"]
        assert sum(g["hours"] for g in found[groups].values()) == pytest.approx(hours, abs=0.02)
    assert set(found["engines"]) == {"kokoro", "flite", "piper"} and "kokoro mixtures, en" in found["voices"]
    spoken = [
        w
        for r in records
        if (r["language"], r["split"]) == ("en", "train")
        for w in texts.words(r["text"], "en")
    ]
    english = found["words"]["en"]
    assert english["words"] == len(spoken) and english["distinct"] == len(set(spoken))
    assert sum(english[name] for name in describe.TIMES) == english["distinct"]
    out = capsys.readouterr().out
    assert f"| en | {english['words']} | {english['distinct']} |" in out and "| kokoro |" in out


def test_a_corpus_that_is_not_there_or_of_another_plan_is_not_described(built, tmp_path):
    with pytest.raises(SystemExit, match="no corpus in .*: build it, or collect what is finished"):
        nano.main(["--out", str(tmp_path), "--describe"])
    shutil.copytree(built, tmp_path / "c")
    plan = (tmp_path / "c" / "plan.jsonl").read_text().splitlines()
    (tmp_path / "c" / "plan.jsonl").write_text("\n".join(plan[1:]))
    with pytest.raises(SystemExit, match="1 utterances of .* are not in its plan"):
        nano.main(["--out", str(tmp_path / "c"), "--describe"])
    (tmp_path / "c" / "plan.jsonl").write_text(plan[0][:50])
    with pytest.raises(SystemExit, match="is damaged"):
        nano.main(["--out", str(tmp_path / "c"), "--describe"])


def lessen(patch) -> None:
    """Fewer lines of each role, no prompts of a person."""
    patch.setattr(frozen, "human", lambda: [])
    patch.setattr(frozen, "EVERYDAY_LINES", {"en": 5, "zh": 3})
    patch.setattr(frozen, "OPEN_LINES", 1)
    patch.setattr(frozen, "SEEN_SPEAKERS", {"en": 2, "zh": 1})
    patch.setattr(frozen, "TRAIN_SPEAKERS", {"en": 2, "zh": 1})
    patch.setattr(frozen, "TRAIN_LINES", 2)
    patch.setattr(frozen, "GALLERY", 3)


@pytest.fixture
def few(monkeypatch):
    lessen(monkeypatch)


@pytest.fixture(scope="module")
def froze(built, tmp_path_factory):
    """The frozen set of the small corpus, for tests that only read it."""
    folder = tmp_path_factory.mktemp("froze") / "frozen"
    with pytest.MonkeyPatch.context() as patch:
        lessen(patch)
        frozen.freeze(built, folder)
    return folder


def test_the_frozen_set_has_every_role_in_both_languages_and_no_recording_twice(built, froze):
    records = read_manifest(froze / "manifest.jsonl")
    for language in ("en", "zh"):
        mine = [r for r in records if r["language"] == language]
        speakers = {
            role: {r["speaker"] for r in mine if r["role"] == role} for role in {r["role"] for r in mine}
        }
        assert set(speakers) == {"reference", "pair", "eval", "open", "seen", "gallery", "train"}
        assert speakers["eval"] | speakers["seen"] | speakers["open"] <= speakers["reference"]
        assert not speakers["eval"] & (speakers["gallery"] | speakers["train"] | speakers["seen"])
        assert 2 <= len(speakers["gallery"]) <= 3
        assert {r["set"] for r in mine if r["role"] == "eval"} == {"everyday"}
        assert {r["split"] for r in mine if r["role"] == "train"} == {"train"}
        judged = [r for r in mine if r["role"] in ("eval", "seen", "open")]
        assert {r["split"] for r in judged} == {"test"}
    assert len({r["id"] for r in records}) == len({r["path"] for r in records}) == len(records)
    assert (froze / "longform.jsonl").read_bytes() == (built / "long_texts.jsonl").read_bytes()


def test_judged_mandarin_is_lossless_but_for_the_last_bits(froze):
    for record in read_manifest(froze / "manifest.jsonl"):
        kept = record["language"] == "zh" and record["role"] in ("eval", "reference")
        assert Path(record["path"]).suffix == (".flac" if kept else ".ogg")
        if kept:
            wave, rate = soundfile.read(froze / record["path"], dtype="int16")
            assert rate == 16_000 and not (wave % 4).any() and wave.any()


def test_all_frozen_lines_are_every_everyday_sentence_and_the_references(built, few, tmp_path):
    frozen.freeze(built, tmp_path / "all", every=True)
    records = read_manifest(tmp_path / "all" / "manifest.jsonl")
    assert {r["role"] for r in records} == {"reference", "eval", "seen"}
    corpus = read_manifest(built / "manifest.jsonl")
    used = {r["id"] for r in records if r["role"] == "reference"}
    everyday = {r["id"] for r in corpus if r["set"] == "everyday"} - used
    assert {r["id"] for r in records if r["role"] == "eval"} == everyday


def test_a_reference_is_not_spoken_too_fast_for_the_pieces_of_its_transcript():
    def record(name: str, words: int, seconds: float) -> dict:
        return {"id": name, "text": "aaa " * words, "duration": seconds, "language": "en"}

    fast, slow, short = record("fast", 40, 5.0), record("slow", 20, 5.6), record("short", 2, 1.0)
    assert frozen.nearest("reference", [short, fast, slow], 3) == [slow, fast, short]
    assert frozen.nearest("pair", [fast, slow, short], 1) in ([fast], [short])


def test_sentences_written_by_hand_are_frozen_first():
    line = lambda n, kind, chosen: {  # noqa: E731
        "id": f"x-{n}", "speaker": "ann", "part": "synthetic", "language": "en", "kind": kind, "set": chosen,
        "seen_speaker": False, "split": "test", "duration": 2.0, "text": "the light of the morning",
    }  # fmt: skip
    records = [line(n, "everyday", "everyday") for n in range(300)]
    records += [line(n, "newcomer", "everyday") for n in range(300, 360)] + [line(400, "gloss", "open")]
    chosen = [r for role, r in frozen.choose(records) if role == "eval"]
    assert [r["kind"] for r in chosen].count("newcomer") == 60 and len(chosen) == frozen.EVERYDAY_LINES["en"]


def test_a_frozen_set_that_is_too_large_or_cannot_be_written_leaves_the_earlier_one(
    built, froze, few, tmp_path, monkeypatch
):
    shutil.copytree(froze, tmp_path / "frozen")
    before = sorted(p.name for p in (tmp_path / "frozen" / "audio").iterdir())
    monkeypatch.setattr(frozen, "MOST_BYTES", 1000)
    with pytest.raises(DataError, match="more than 0.0 MB: freeze fewer lines"):
        frozen.freeze(built, tmp_path / "frozen")

    def full(*args, **settings):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(frozen.soundfile, "write", full)
    with pytest.raises(SystemExit, match="No space left on device.*the earlier subset is still there"):
        frozen.main(["--corpus", str(built), "--out", str(tmp_path / "frozen")])
    assert sorted(p.name for p in (tmp_path / "frozen" / "audio").iterdir()) == before
    assert [p.name for p in tmp_path.iterdir()] == ["frozen"]


def test_an_unfinished_corpus_or_a_folder_of_other_files_is_not_frozen(built, few, tmp_path):
    shutil.copytree(built, tmp_path / "part")
    records = [r for r in read_manifest(built / "manifest.jsonl") if r["language"] == "en"]
    (tmp_path / "part" / "manifest.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    with pytest.raises(DataError, match="no recording for 'eval' in zh, 'reference' in zh: finish it"):
        frozen.freeze(tmp_path / "part", tmp_path / "frozen")
    (tmp_path / "part" / "long_texts.jsonl").unlink()
    with pytest.raises(DataError, match="no long_texts.jsonl"):
        frozen.freeze(tmp_path / "part", tmp_path / "frozen")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(DataError, match="holds other files"):
        frozen.freeze(built, tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").exists()


def test_a_plain_corpus_of_one_part_is_spoken_by_the_quick_engines_though_kokoro_is_here(tiny, tmp_path):
    hours = nano.hours_of("raw=0,en=0,zh=0.01")
    open_corpus.build(tmp_path, hours, workers=1, train_only=True, plain=True)
    plan = [json.loads(line) for line in (tmp_path / "plan.jsonl").read_text().splitlines()]
    assert plan and {(r["language"], r["engine"], r["split"]) for r in plan} == {("zh", "gcin", "train")}
    with pytest.raises(DataError, match="of other engines"):
        open_corpus.build(tmp_path, hours, workers=1, train_only=True)


@pytest.mark.parametrize("given", ["raw=1", "raw=0,en=0,zh=0", "raw=1,en=-1,zh=1", "raw=1,en=nan,zh=1"])
def test_hours_name_every_part_and_something_to_speak(given):
    with pytest.raises(argparse.ArgumentTypeError):
        nano.hours_of(given)
