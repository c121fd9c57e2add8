"""Synthetic speech: sampled uniformly by length, rewritten only when asked, spoken by engines, programs or servers, resumable."""

import base64
import io
import json
import sys
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
import soundfile

from data_prep import engines, speakers, synthetic
from data_prep.speakers import Speaker
from data_prep.synthetic import Command, Engines, Http, Rewriter, answers, build, finished, sample
from omnilib.data import read_manifest
from omnilib.errors import ConfigError, DataError, MissingTool
from omnilib.paths import ROOT

SENTENCE = "The light of morning was on the water. "
FROZEN = ROOT / "data_prep" / "frozen" / "manifest.jsonl"


class Hum:
    """A stand-in engine: one tone a word."""

    language = "en"

    def __init__(self, voice: str):
        self.voice = voice

    def say(self, text: str) -> engines.Spoken:
        time = np.arange(800 * len(text.split())) / 16_000
        wave = np.pad(np.sin(2 * np.pi * (150 + 10 * len(self.voice)) * time), 800).astype(np.float32)
        return engines.Spoken(
            wave, 16_000, ["pau", "a", "pau"], [0.05, len(wave) / 16_000 - 0.05, len(wave) / 16_000]
        )


@pytest.fixture
def hum(monkeypatch):
    """Two training voices and one that only the test split may hear."""
    monkeypatch.setitem(engines.ENGINES, "hum", Hum)
    people = [
        Speaker("hum", "ann", 1.0, 10),
        Speaker("hum", "bob", 1.1, 10),
        Speaker("hum", "eve", 1.2, 0),
    ]
    monkeypatch.setattr(speakers, "SPEAKERS", people)


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")
    return path


@pytest.fixture
def lamini(tmp_path):
    """Answers of 3 to 23 s, short ones far more common."""
    heads = [f"Line {a} {b}. " for b in "klmnopqrst" for a in "abcdefghij"]
    rows = [
        {"instruction": "Say", "response": head + SENTENCE * n}
        for n in range(1, 9)
        for head in heads[: 100 // n]
    ]
    return write(tmp_path / "lamini.jsonl", rows)


SPAN = {"span": (4.0, 24.0), "bins": 4}


def test_answers_of_both_kinds_are_read_without_markup(tmp_path):
    rows = [
        {"instruction": "Hi?", "response": "**Two** apples."},
        {"instruction": "写", "input": "", "output": "我有2个苹果。"},
        {
            "conversations": [
                {"from": "human", "value": "skip"},
                {"from": "assistant", "value": "One."},
                {"from": "assistant", "value": "Two."},
            ]
        },
        {"response": "***"},
    ]
    texts = list(answers(write(tmp_path / "a.jsonl", rows)))
    assert [(t["language"], t["text"]) for t in texts] == [
        ("en", "Two apples."),
        ("zh", "我有两个苹果。"),
        ("en", "One. Two."),
    ]


def test_sampling_is_uniform_over_length_and_repeatable(lamini):
    texts = list(answers(lamini))
    chosen, bins = sample(texts, 0.1, (4.0, 24.0), 4, seed=1)
    assert {b["taken"] for b in bins} == {bins[0]["wanted"]} and len(chosen) == 4 * bins[0]["wanted"]
    available = [b["available"] for b in bins]
    assert available[0] > 1.5 * available[-1]  # the input was far from uniform
    assert sample(texts[::-1], 0.1, (4.0, 24.0), 4, seed=1)[0] == chosen
    assert sample(texts, 0.1, (4.0, 24.0), 4, seed=2)[0] != chosen
    hours = sum(synthetic.seconds(t["text"], t["language"]) for t in chosen) / 3600
    assert hours == pytest.approx(0.1, rel=0.3)


def test_a_bin_with_too_few_texts_is_reported_not_made_up_for(lamini):
    texts = [t for t in answers(lamini) if synthetic.seconds(t["text"], "en") < 14]
    chosen, bins = sample(texts, 0.05, (4.0, 24.0), 4, seed=0)
    assert [b["taken"] for b in bins][2:] == [0, 0] and bins[0]["taken"] == bins[0]["wanted"]
    assert len(chosen) == sum(b["taken"] for b in bins)


def test_pruning_while_reading_does_not_change_the_sample(lamini, monkeypatch):
    texts = list(answers(lamini))
    many = [t | {"id": f"{t['id']}-{i}"} for t in texts for i in range(5)]
    pruned = sample(many, 0.02, (4.0, 24.0), 2, seed=0)[0]
    order = sorted(many, key=lambda t: synthetic.number(0, t["id"]))
    assert len(many) > 300
    assert {t["id"] for t in pruned} == {t["id"] for t in sample(order, 0.02, (4.0, 24.0), 2, seed=0)[0]}


def test_languages_keep_the_papers_shares(lamini, tmp_path):
    rows = [{"output": f"{digit}天地玄黄宇宙洪荒日月盈昃辰宿列张。" * 3} for digit in "一二三四五六七八九十"]
    chinese = write(tmp_path / "belle.jsonl", rows)
    texts = [*answers(lamini), *answers(chinese)]
    _, bins = sample(texts, 1.0, (4.0, 24.0), 4, seed=0)
    wanted = {b["language"]: b["wanted"] for b in bins}
    assert wanted["zh"] / wanted["en"] == pytest.approx(9 / 7, rel=0.05)


def test_engines_speak_the_sample_in_training_voices(hum, lamini, tmp_path):
    out = tmp_path / "out"
    digest = build([lamini], out, 0.02, licence="CC BY-NC 4.0", **SPAN)
    records = read_manifest(out / "manifest.jsonl")
    assert len(records) == 4 and {r["speaker"] for r in records} <= {"synthetic-ann_100", "synthetic-bob_110"}
    for record in records:
        wave, rate = soundfile.read(out / record["path"])
        assert rate == record["rate"] == 24_000 and len(wave) / rate == pytest.approx(
            record["duration"], abs=1e-3
        )
        assert np.abs(wave).max() > 0.05
        assert (record["source"], record["licence"], record["split"]) == ("synthetic", "CC BY-NC 4.0", None)
    assert len({r["duration"] for r in records}) == 4
    assert build([lamini], tmp_path / "again", 0.02, licence="CC BY-NC 4.0", **SPAN) == digest


def test_a_stopped_run_goes_on_where_it_was(hum, lamini, tmp_path, monkeypatch):
    whole = build([lamini], tmp_path / "whole", 0.04, **SPAN)
    out, said = tmp_path / "out", []
    say = Hum.say
    monkeypatch.setattr(Hum, "say", lambda self, text: said.append(text) or say(self, text))
    build([lamini], out, 0.04, **SPAN)
    everything = len(said)
    spoken = out / "spoken.jsonl"
    data = spoken.read_bytes().splitlines(keepends=True)
    spoken.write_bytes(b"".join(data[:-2]) + data[-2][:30])  # killed while writing the last but one
    (out / "manifest.jsonl").unlink()
    said.clear()
    assert build([lamini], out, 0.04, **SPAN) == whole
    assert 0 < len(said) < everything / 2
    assert len(finished(spoken)) == len(data)


def test_a_folder_of_other_settings_is_left_alone(hum, lamini, tmp_path):
    build([lamini], tmp_path / "out", 0.02, **SPAN)
    with pytest.raises(DataError, match="other texts or settings"):
        build([lamini], tmp_path / "out", 0.02, seed=5, **SPAN)


def test_a_text_that_cannot_be_said_is_dropped_and_the_rest_goes_on(hum, lamini, tmp_path, monkeypatch):
    say = Hum.say

    def moody(self, text):
        if "Line a" in text:
            raise ValueError("no recording of ㄎ")
        return say(self, text)

    monkeypatch.setattr(Hum, "say", moody)
    build([lamini], tmp_path / "out", 0.3, **SPAN)
    lost = [json.loads(line) for line in (tmp_path / "out" / "dropped.jsonl").read_text().splitlines()]
    kept = read_manifest(tmp_path / "out" / "manifest.jsonl")
    assert lost and kept and not any("Line a" in r["text"] for r in kept)
    assert {r["dropped"]["reason"] for r in lost} == {"cannot_say"} and "ㄎ" in lost[0]["dropped"]["detail"]


def test_a_synthesiser_that_only_fails_stops_the_run(lamini, tmp_path):
    command = Command(f"{sys.executable} -c \"import sys; sys.exit('no such model')\" {{text}} {{output}}")
    with pytest.raises(DataError, match=r"10 texts in a row failed .*no such model"):
        build([lamini], tmp_path / "out", 0.3, command, references_manifest=FROZEN, **SPAN)
    assert (tmp_path / "out" / "spoken.jsonl").read_text() == ""  # they will be tried again


def test_a_server_that_dies_half_way_costs_no_texts(hum, lamini, tmp_path, monkeypatch):
    whole = build([lamini], tmp_path / "whole", 0.15, **SPAN)
    count, say = iter(range(10_000)), Hum.say

    def dying(self, text):
        if next(count) > 40:
            raise RuntimeError("connection lost")
        return say(self, text)

    with monkeypatch.context() as patch, pytest.raises(DataError, match="connection lost"):
        patch.setattr(Hum, "say", dying)
        build([lamini], tmp_path / "out", 0.15, **SPAN)
    assert finished(tmp_path / "out" / "spoken.jsonl")
    assert build([lamini], tmp_path / "out", 0.15, **SPAN) == whole


def test_a_missing_engine_stops_the_run(hum, lamini, tmp_path, monkeypatch):
    def missing(self, text):
        raise MissingTool("hum is missing: apt-get install hum")

    monkeypatch.setattr(Hum, "say", missing)
    with pytest.raises(MissingTool, match="apt-get install hum"):
        build([lamini], tmp_path / "out", 0.02, **SPAN)


# ---- other synthesisers ----------------------------------------------------------------------------------------------------

PROGRAM = """
import sys, wave, array, math
text, reference, said, place = sys.argv[1:]
assert wave.open(reference).getnframes() > 0 and said
with wave.open(place if place.endswith(".wav") else place + "/generated.wav", "wb") as out:
    out.setnchannels(2); out.setsampwidth(2); out.setframerate(16000)
    tone = [int(9000 * math.sin(i / 20)) for i in range(50 * len(text))]
    out.writeframes(array.array("h", [s for t in tone for s in (t, t)]).tobytes())
"""


@pytest.mark.parametrize("place", ["{output}", "{folder}"])
def test_any_program_can_speak_with_a_reference_voice(place, lamini, tmp_path):
    program = tmp_path / "speak it.py"
    program.write_text(PROGRAM)
    command = Command(f"{sys.executable} '{program}' {{text}} {{reference}} {{reference_text}} {place}")
    one = build([lamini], tmp_path / "one", 0.03, command, references_manifest=FROZEN, **SPAN)
    two = build([lamini], tmp_path / "two", 0.03, command, references_manifest=FROZEN, workers=2, **SPAN)
    assert one == two
    records = read_manifest(tmp_path / "one" / "manifest.jsonl")
    assert {r["duration"] for r in records} == {round(50 * len(r["text"]) / 16_000, 4) for r in records}
    assert soundfile.info(tmp_path / "one" / records[0]["path"]).channels == 1
    assert len({r["reference"] for r in records}) > 1  # random voices
    frozen = read_manifest(FROZEN)
    tests = {r["speaker"] for r in frozen if r["split"] == "test"} - {
        r["speaker"] for r in frozen if r["split"] != "test"
    }
    assert tests and not {r["speaker"].removeprefix("synthetic-") for r in records} & tests


def test_references_take_turns_over_speakers(tmp_path):
    voices = synthetic.references(FROZEN, tmp_path, "en", seed=0, count=6)
    assert max(Counter(v.name for v in voices).values()) - min(Counter(v.name for v in voices).values()) <= 1
    for voice in voices:
        voice.cut()
        assert 3.0 <= soundfile.info(voice.clip).duration <= 20.0 and voice.text
    with pytest.raises(DataError, match="no ja reference"):
        synthetic.references(FROZEN, tmp_path, "ja", seed=0)


@pytest.mark.parametrize("template", ["speak {output}", "speak {text}", "speak"])
def test_a_command_without_its_places_is_refused(template):
    with pytest.raises(ConfigError, match="needs {text}"):
        Command(template)


@pytest.fixture
def server():
    """A server of speech and of chat; remembers what it was asked, fails the first chat request."""

    class Handler(BaseHTTPRequestHandler):
        asked: list[dict] = []

        def do_POST(self):  # noqa: N802
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.asked.append(body | {"path": self.path})
            if self.path.endswith("/chat/completions"):
                words = body["messages"][0]["content"].split("\n\n")[1]
                data = json.dumps({"choices": [{"message": {"content": "Well, *" + words + "*"}}]}).encode()
                status = 500 if len(self.asked) == 1 else 200
            else:
                assert soundfile.info(io.BytesIO(base64.b64decode(body["reference_audio"]))).frames
                file = io.BytesIO()
                soundfile.write(
                    file, 0.3 * np.sin(np.arange(40 * len(body["input"])) / 9), 16_000, format="WAV"
                )
                data, status = file.getvalue(), 400 if "Line j" in body["input"] else 200
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_args):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}/v1", Handler.asked
        httpd.shutdown()


def test_a_server_can_speak(server, lamini, tmp_path):
    url, asked = server
    build([lamini], tmp_path / "out", 0.05, Http(f"{url}/audio/speech"), references_manifest=FROZEN, **SPAN)
    records = read_manifest(tmp_path / "out" / "manifest.jsonl")
    assert records and all(r["duration"] == round(40 * len(r["text"]) / 16_000, 4) for r in records)
    lost = [json.loads(line) for line in (tmp_path / "out" / "dropped.jsonl").read_text().splitlines()]
    assert (
        len(asked) == len(records) + len(lost) and all("400" in r["dropped"]["detail"] for r in lost) and lost
    )


def test_rewriting_is_off_unless_asked_and_survives_a_failed_request(hum, server, lamini, tmp_path):
    url, asked = server
    build([lamini], tmp_path / "plain", 0.02, **SPAN)
    assert not asked
    rewriter = Rewriter(url, "retell", wait=0.01)
    build([lamini], tmp_path / "told", 0.02, rewriter=rewriter, **SPAN)
    plain, told = (read_manifest(tmp_path / f / "manifest.jsonl") for f in ("plain", "told"))
    assert len(asked) == len(told) + 1  # one was asked again
    assert [r["written"] for r in told] == [r["text"] for r in plain]
    assert all(r["text"].startswith("Well, Line") and "*" not in r["text"] for r in told)
    build([lamini], tmp_path / "told", 0.02, rewriter=rewriter, **SPAN)
    assert len(asked) == len(told) + 1  # nothing is asked twice


def test_an_endpoint_that_is_down_is_one_line(lamini, tmp_path):
    rewriter = Rewriter("http://127.0.0.1:9/v1", "m", tries=1)
    with pytest.raises(DataError, match="rewriting: 10 texts in a row failed .*ConnectError"):
        build([lamini], tmp_path / "out", 0.3, rewriter=rewriter, **SPAN)


# ---- bad input -------------------------------------------------------------------------------------------------------------


def test_bad_conversations_are_one_line_each(tmp_path):
    good = write(tmp_path / "good.jsonl", [{"response": "Too short."}])
    odd = write(tmp_path / "odd.jsonl", [{"question": "?"}])
    torn = tmp_path / "torn.jsonl"
    torn.write_text('{"response": "Hel')
    alien = tmp_path / "alien.jsonl"
    alien.write_bytes('{"response": "广州"}'.encode("gb18030"))
    for path, message in (
        (tmp_path / "none.jsonl", "no conversations"),
        (odd, "odd.jsonl:1: no answer"),
        (torn, "torn.jsonl:1: not JSON"),
        (alien, "alien.jsonl:1 is not UTF-8"),
        (good, "no answer of 4-24 s"),
    ):
        with pytest.raises(DataError, match=message):
            build([path], tmp_path / "out", 1.0, **SPAN)


def test_command_line(hum, lamini, tmp_path, capsys):
    arguments = ["--conversations", str(lamini), "--out", str(tmp_path / "out"), "--hours", "0.02"]
    arguments += ["--seconds", "4", "24", "--bins", "4"]
    synthetic.main(arguments)
    assert "manifest sha256" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="error: --command and --http need --references"):
        synthetic.main(
            [*arguments[:3], str(tmp_path / "b"), *arguments[4:], "--command", "x {text} {output}"]
        )


def needs_flite():
    try:
        engines.flite_library()
    except MissingTool:
        pytest.skip("flite is not installed")


@pytest.mark.slow  # two fresh interpreters
def test_processes_speak_what_one_does(lamini, tmp_path, monkeypatch):
    needs_flite()
    monkeypatch.setattr(
        speakers, "SPEAKERS", [s for s in speakers.SPEAKERS if s.engine == "flite"]
    )  # not the slow one
    one = build([lamini], tmp_path / "one", 0.01, **SPAN)
    assert build([lamini], tmp_path / "two", 0.01, workers=2, **SPAN) == one


def test_the_nano_engines_speak_for_real(tmp_path):
    needs_flite()
    voice = Engines().voices("en")[0]
    wave, rate = Engines().say("Two short words. Then some more.", "en", voice)
    assert rate == 24_000 and 1.5 < len(wave) / rate < 6.0 and np.abs(wave).max() > 0.05
    with pytest.raises(ValueError, match="Chinese only"):
        Engines().say("我用 Python。", "zh", Engines().voices("zh")[0])
