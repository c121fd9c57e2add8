"""The whole evaluation on tiny random checkpoints and stand-in judges: what it writes, and what `omni verify` finds in it."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

from omnilib.errors import CheckpointError, DataError, UserError
from omnilib.eval import nano, recheck, results, short_lines
from omnilib.eval.frozen import Frozen, Heard
from omnilib.mouth.decode import DecodeSettings
from omnilib.paths import ROOT
from omnilib.speak import TextToSpeech
from omnilib.train.common import export_model
from tests.tiny import tone, write_checkpoints

RATE = 16_000
HERTZ = {"ann": 200, "bea": 260, "lin": 120, "ming": 160}
TEXTS = {
    "en": ["the light of the morning", "the water was on the light", "on the morning the water"],
    "zh": ["早上好", "水在早上", "好水"],
}


class Parrot:
    """Hears a recording of the frozen set perfectly and anything else as one word; counts its work."""

    id = "parrot"

    def __init__(self):
        self.heard = 0

    def submit(self, wave, rate, language):
        self.heard += 1
        text = "morning" if language == "en" else "早上"
        return lambda: text


class Ear:
    """Speaker vector: energy in 16 bands."""

    id = "ear"

    def embed(self, wave, rate):
        spectrum = np.abs(np.fft.rfft(np.asarray(wave)[: rate // 2], n=rate // 2))[:1600]
        return np.array([band.sum() for band in np.split(spectrum, 16)]) + 1e-6


class Opinion:
    """Naturalness: longer is better."""

    id = "opinion"

    def score(self, wave, rate):
        return min(5.0, 1.0 + len(wave) / rate)


def record(speaker: str, role: str, number: int, text: str, language: str, folder) -> dict:
    name = f"{speaker}-{role}-{number}"
    wave = tone(1.2 + 0.2 * number, RATE, HERTZ[speaker])
    soundfile.write(folder / f"{name}.ogg", wave, RATE, format="OGG", subtype="OPUS")
    fields = {
        "start": 0.0,
        "duration": len(wave) / RATE,
        "rate": RATE,
        "source": "tones",
        "licence": "CC0-1.0",
        "split": "test",
    }
    seen = speaker in ("ann", "lin")
    return {
        "id": name,
        "path": f"{name}.ogg",
        "role": role,
        "text": text,
        "language": language,
        "speaker": speaker,
        "seen_speaker": seen,
        "set": "everyday" if role == "eval" else "",
    } | fields


@pytest.fixture(scope="module")
def frozen_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("frozen")
    rows = []
    for speaker in HERTZ:
        language = "en" if speaker in ("ann", "bea") else "zh"
        for number, role in enumerate(("reference", "pair", "eval", "eval", "open")):
            rows.append(record(speaker, role, number, TEXTS[language][number % 3], language, folder))
    (folder / "manifest.jsonl").write_text(
        "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8"
    )
    text = " ".join(f"{TEXTS['en'][0].capitalize()}." for _ in range(12))
    long = {"id": "long-en-00", "language": "en", "text": text, "words": 60, "speaker": "ann"}
    (folder / "longform.jsonl").write_text(json.dumps(long) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = write_checkpoints(tmp_path_factory.mktemp("scale"))
    (folder / "decode.yaml").write_text("temperature: 1.0\nmax_rows: 16\n")
    (folder / "flow" / "meta.json").write_text('{"train_seconds": 1800.0}')
    (folder / "wall_times.json").write_text('{"corpus": 1800.0}')
    return folder


@pytest.fixture(scope="module")
def run(frozen_folder, checkpoints, tmp_path_factory):
    """One evaluation: reports folder, bench."""
    reports = tmp_path_factory.mktemp("reports")
    (reports / "tiny").mkdir()
    (reports / "tiny" / "summary.json").write_text('{"curation_bad_kept": {"value": 0.01}}')
    speaker = TextToSpeech.load(checkpoints)
    bench = nano.Evaluation(speaker, Frozen(frozen_folder), seed=3)
    bench.note("params_total", results.parameters_of(checkpoints))
    bench.note("retrain_hours", results.training_hours(checkpoints), "h")
    walls = nano.evaluate(bench, nano.PARTS, Parrot, Ear, Opinion)
    nano.write(bench, reports, "tiny", nano.PARTS, walls)
    return reports, bench


def test_summary_has_exactly_the_agreed_keys_and_keeps_those_of_others(run):
    plain, speed = (
        json.loads((run[0] / "tiny" / f"{file}.json").read_text()) for file in ("summary", "timings")
    )
    natural = {
        n for n in results.NATURAL if "human" not in n and "_seen_" not in n
    }  # roles that this set lacks
    assert set(plain) == {*results.SUMMARY, *natural, "curation_bad_kept"} - set(speed)
    assert set(speed) == {"rtf_total", "rtf_mouth", "rtf_flow", "rtf_hift", "ttfs_stream_s"}, (
        "what another machine changes"
    )
    for file, figures in (("metrics", plain), ("timings", speed)):
        measured = json.loads((run[0] / "tiny" / "eval" / f"{file}.json").read_text())["metrics"]
        for name in figures.keys() - {"curation_bad_kept"}:
            assert set(figures[name]) == {"value", "n", "ci95", "source"}
            assert figures[name]["value"] == measured[name]["value"] is not None, name
            assert figures[name]["source"] == f"reports/tiny/eval/{file}.json"


def test_everyday_sentences_have_a_name_of_their_own_and_open_ones_do_not(run):
    metrics = run[1].metrics
    assert metrics["wer_everyday_en_tts"]["value"] == metrics["wer_en_tts"]["value"]
    assert metrics["zh_everyday_gt"]["n"] == metrics["zh_gt"]["n"]
    assert not [name for name in metrics if "everyday" in name and "open" in name]


def test_cloned_voices_are_compared_with_strangers_and_sentences_get_an_opinion(run):
    metrics, records = run[1].metrics, run[1].records
    made = [r for r in records if r["system"] == "tts" and r["role"] == "eval" and not r["seen"]]
    assert made and all(0 <= r["impostor"] <= 1 for r in made)
    nearest = sum(r["similarity"] > r["impostor"] for r in made) / len(made)
    assert metrics["clone_nearest"]["value"] == nearest and metrics["clone_nearest"]["n"] == len(made)
    for system in ("gt", "codec", "tts"):
        scores = [
            r["dnsmos"] for r in records if (r["language"], r["system"], r["role"]) == ("en", system, "eval")
        ]
        assert metrics[f"dnsmos_en_{system}"]["value"] == pytest.approx(sum(scores) / len(scores))
    assert not any("dnsmos" in r for r in records if r["role"] == "open")


def test_figures_follow_from_what_the_judge_heard(run):
    metrics = run[1].metrics
    # "morning" for five words: four deletions and no match in a sentence without that word
    records = [
        r for r in run[1].records if r["system"] == "tts" and r["language"] == "en" and r["role"] == "eval"
    ]
    expected = sum(r["wer"]["error"] * r["wer"]["words"] for r in records) / sum(
        r["wer"]["words"] for r in records
    )
    assert metrics["wer_en_tts"]["value"] == pytest.approx(expected)
    assert (
        metrics["wer_en_tts"]["n"] == 4
        and metrics["wer_en_tts_seen"]["n"] == metrics["wer_en_tts_unseen"]["n"] == 2
    )
    assert metrics["zh_gt"]["n"] == metrics["zh_cer_tts"]["n"] == 4
    assert metrics["wer_en_open_tts"]["n"] == 2
    assert metrics["retrain_hours"]["value"] == pytest.approx(1.0)
    assert metrics["params_total"]["value"] == sum(metrics["params_total"]["modules"].values()) > 10_000
    assert metrics["long_flagged_texts"]["value"] in (0.0, 1.0)


def test_every_figure_says_how_it_was_made(run):
    metrics = json.loads((run[0] / "tiny" / "eval" / "metrics.json").read_text())["metrics"]
    for name, entry in metrics.items():
        assert {"value", "n", "ci95", "unit", "temperature", "retries", "seed", "judge", "normaliser"} <= set(
            entry
        ), name
    tts = metrics["wer_en_tts"]
    assert (tts["temperature"], tts["retries"], tts["seed"], tts["judge"]) == (1.0, 0, 3, "parrot")
    assert "Long-TTS-Eval" in tts["normaliser"]
    assert metrics["sim_seen"]["judge"] == "ear"


def test_recordings_of_the_same_voice_are_nearer_than_the_threshold(run):
    metrics = run[1].metrics
    assert metrics["sim_gt_pair"]["above_threshold"] == 1.0
    assert metrics["sim_threshold"]["speakers"] == 2  # bea and ming were not heard in training


def test_every_system_of_a_sentence_is_recorded_and_heard(run):
    reports, bench = run
    rows = [
        json.loads(row) for row in (reports / "tiny" / "eval" / "utterances.jsonl").read_text().splitlines()
    ]
    systems = {}
    for row in rows:
        systems.setdefault((row["id"], row["role"]), set()).add(row["system"])
    assert all(
        found - {"tts_retry"} == ({"gt", "codec", "tts"} if role == "eval" else {"gt", "tts"})
        for (_, role), found in systems.items()
    )
    assert len(systems) == 12
    sounds = json.loads((reports / "tiny" / "eval" / "metrics.json").read_text())["sounds"]
    assert {"audio/en-seen-tts.mp3", "audio/zh-unseen-gt.mp3", "audio/long-start.mp3"} <= {
        s["file"] for s in sounds
    }
    assert all((reports / "tiny" / "eval" / s["file"]).stat().st_size > 500 for s in sounds)
    assert "sentences that went worst" in (reports / "tiny" / "eval" / "report.html").read_text()


def test_recordings_are_listened_to_once(run, frozen_folder):
    judge = Parrot()
    heard = Heard(frozen_folder / "heard.json", judge)
    assert heard.texts(Frozen(frozen_folder).of("eval", language="en")) == ["morning"] * 4
    assert judge.heard == 0


def test_recheck_finds_the_committed_figures_true(run, frozen_folder, checkpoints):
    checks = recheck.recheck(
        "tiny", run[0], 2, 6, Frozen(frozen_folder), Parrot, Ear, TextToSpeech.load(checkpoints)
    )
    names = {c.name for c in checks}
    checks = [
        c for c in checks if c.name != "summary: curation_bad_kept names no source"
    ]  # put there by the fixture
    assert {"eval: figures that follow from the records", "wer_en_tts of 2 sentences spoken again"} <= names
    assert all(c.ok for c in checks), [c for c in checks if not c.ok]


class Stranger(Parrot):
    """Another judge: hears one word of many otherwise."""

    def submit(self, wave, rate, language):
        super().submit(wave, rate, language)
        return lambda: "evening" if language == "en" else "早上"


def test_recheck_finds_a_judge_that_hears_otherwise(run, frozen_folder, checkpoints):
    checks = recheck.recheck(
        "tiny", run[0], 2, 6, Frozen(frozen_folder), Stranger, Ear, TextToSpeech.load(checkpoints)
    )
    assert [c.name for c in checks if not c.ok][1].startswith("judge re-heard 6 recordings")


def test_recheck_finds_an_edited_figure(run, frozen_folder, checkpoints):
    path = run[0] / "tiny" / "summary.json"
    before = path.read_text()
    summary = json.loads(before)
    summary["wer_en_tts"]["value"] -= 0.01
    path.write_text(json.dumps(summary))
    try:
        checks = recheck.recheck(
            "tiny", run[0], 2, 6, Frozen(frozen_folder), Parrot, Ear, TextToSpeech.load(checkpoints)
        )
    finally:
        path.write_text(before)
    assert [c.name for c in checks if not c.ok] == [
        "summary: wer_en_tts",
        "summary: curation_bad_kept names no source",
    ]


def test_retried_record_takes_the_place_of_the_failed_one():
    first = [
        {"id": n, "language": "en", "role": "eval", "seen": True, "system": "tts", "trial": 1} for n in "ab"
    ]
    again = {**first[1], "system": "tts_retry", "trial": 2}
    assert [r["trial"] for r in short_lines.pick([*first, again], "tts_retry", "en")] == [1, 2]
    assert [r["trial"] for r in short_lines.pick([*first, again], "tts", "en")] == [1, 1]


def test_missing_or_incomplete_frozen_set_is_one_line(tmp_path, frozen_folder):
    with pytest.raises(DataError, match="no frozen evaluation set"):
        Frozen(tmp_path)
    rows = [json.loads(row) for row in (frozen_folder / "manifest.jsonl").read_text().splitlines()]
    rows = [r for r in rows if (r["speaker"], r["role"]) != ("bea", "reference")]
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    with pytest.raises(DataError, match="no reference recording of bea"):
        Frozen(tmp_path)


@pytest.mark.parametrize("form", ["bfloat16", "int8"])
def test_parameters_are_counted_in_every_form_of_storage(tmp_path, form):
    export_model(tmp_path, torch.nn.Linear(64, 32), {}, {}, form)
    assert results.count_parameters(tmp_path) == 64 * 32 + 32


def test_truncated_checkpoint_is_one_line(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"\x10\x00")
    with pytest.raises(CheckpointError, match="restore it with `git checkout`"):
        results.count_parameters(tmp_path)


def test_command_line_reports_a_missing_scale(capsys):
    assert nano.main(["--scale", "nowhere"]) == 2
    assert "no checkpoints 'nowhere'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "folder"),
    [
        ([], "reports"),
        (["--seed", "1"], "runs/reports"),
        (["--temperature", "0.5"], "runs/reports"),
        (["--limit", "2"], "runs/reports"),
    ],
)
def test_only_a_whole_evaluation_with_the_plain_settings_goes_to_the_reports(
    flags, folder, monkeypatch, capsys
):
    def stop(reports):
        raise UserError(f"would write {reports.relative_to(ROOT).as_posix()}")

    monkeypatch.setattr(nano.TextToSpeech, "load", lambda scale: SimpleNamespace(settings=DecodeSettings()))
    monkeypatch.setattr(nano, "REPORTS", ROOT / "reports")
    monkeypatch.setattr(nano, "check_writable", stop)
    assert nano.main(flags) == 2
    assert capsys.readouterr().err == f"evaluation: would write {folder}\n"


def test_an_evaluation_that_stops_while_writing_leaves_the_earlier_one(tmp_path, monkeypatch):
    earlier = tmp_path / "nano" / "eval" / "metrics.json"
    earlier.parent.mkdir(parents=True)
    earlier.write_text("earlier")
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text("")
    monkeypatch.setattr(results, "write_page", lambda *a: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        results.write(tmp_path, "nano", {}, {}, {}, manifest)
    assert [p.read_text() for p in (tmp_path / "nano").rglob("*") if p.is_file()] == ["earlier"]
