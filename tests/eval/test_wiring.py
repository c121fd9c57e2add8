"""Every named figure goes the whole way: measured, in the summary, counted again from the records, on the front page."""

import json

import pytest

from omnilib import report
from omnilib.eval import longform, nano, recount
from omnilib.eval.frozen import Frozen
from omnilib.paths import ROOT
from omnilib.report import sources
from omnilib.report.headlines import HEADLINES, OPTIONAL
from omnilib.speak import TextToSpeech
from tests.eval import test_nano as plain
from tests.tiny import write_checkpoints

SYSTEMS = ("gt", "codec", "tts")
EVALUATION = [
    *(f"wer_everyday_en_{s}" for s in SYSTEMS),
    *(f"zh_everyday_{s}" for s in SYSTEMS),
    *(f"{who}_{what}" for who in ("clone", "clone_human") for what in ("similarity", "impostor", "nearest")),
    *(f"dnsmos_{language}_{s}" for language in ("en", "zh") for s in SYSTEMS),
    *("wer_en_seen_gt", "wer_en_seen_tts", "zh_seen_gt", "zh_seen_tts", "wer_en_human_voice_tts"),
]
LONG = [
    "long10_wer",
    "long10_drift",
    "long60_wer",
    "long60_drift",
    "long60_similarity_drift",
    "long60_flagged",
]
VOICES = {"ann": "en", "bea": "en", "lin": "zh", "ming": "zh"}
PEOPLE = {
    "ann": ("reference", "seen"),
    "lin": ("reference", "seen"),
    "gus": ("gallery",),
    "hua": ("gallery",),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A frozen set with every role: held-out bea and ming, ann and lin of the training, a person, two strangers."""
    folder, rows = tmp_path_factory.mktemp("frozen"), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plain, "HERTZ", plain.HERTZ | {"gus": 320, "hua": 380, "person": 230})
        for speaker, language, roles in (
            *(("bea", "en", ("reference", "pair", "eval", "eval", "open")), ("ming", "zh", ("reference", "pair", "eval"))),
            *((s, "zh" if s in ("lin", "hua") else "en", roles) for s, roles in PEOPLE.items()),
            ("person", "en", ("human", "human")),
        ):  # fmt: skip
            for number, role in enumerate(roles):
                text = plain.TEXTS[language][number % 3]
                rows.append(plain.record(speaker, role, number, text, language, folder))
    write = lambda name, items: (folder / name).write_text(  # noqa: E731
        "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items), encoding="utf-8"
    )
    write("manifest.jsonl", rows)
    text = " ".join(["The light of the morning."] * 4)
    kinds = ("long-en-00", "minutes10-en-00", "minutes60-en-00")
    write("longform.jsonl", [{"id": k, "language": "en", "text": text, "speaker": "bea"} for k in kinds])
    return folder


@pytest.fixture(scope="module")
def reports(folder, tmp_path_factory):
    """What the three commands leave behind."""
    reports, checkpoints = (
        tmp_path_factory.mktemp("reports"),
        write_checkpoints(tmp_path_factory.mktemp("scale")),
    )
    (checkpoints / "decode.yaml").write_text("temperature: 1.0\nmax_rows: 16\nspeak_retries: 0\n")
    frozen, tts = Frozen(folder), TextToSpeech.load(checkpoints)
    bench = nano.Evaluation(tts, frozen)
    walls = nano.evaluate(bench, ("voices", "short", "long"), plain.Parrot, plain.Ear, plain.Opinion)
    nano.write(bench, reports, "tiny", ("voices", "short", "long"), walls)
    for minutes in longform.LENGTHS:
        (row,) = longform.texts_of(frozen, minutes)
        line = frozen.references[row["speaker"]]
        kept = reports / "kept" / str(minutes)
        spoken = longform.speak_and_hear(tts, row, line, plain.Parrot(), plain.Ear(), kept)
        spoken["pieces"] = [p | {"start": 60.0 * i} for i, p in enumerate(spoken["pieces"] * 6)][:6]
        longform.write(reports / "tiny" / f"long{minutes}", "tiny", minutes, [spoken], {}, {"status": "ok"})
    return reports


@pytest.mark.parametrize("key", [*EVALUATION, *LONG])
def test_a_named_figure_is_measured_summarised_counted_again_and_shown(key, reports):
    tiny = reports / "tiny"
    entry = json.loads((tiny / "summary.json").read_text())[key]
    assert entry["value"] is not None and entry["n"] >= 1
    assert entry["ci95"][0] <= entry["value"] + 1e-9 and entry["value"] <= entry["ci95"][1] + 1e-9
    place = tiny / entry["source"].split("tiny/")[1]
    assert json.loads(place.read_text())["metrics"][key]["value"] == entry["value"]
    assert place.with_name("sources.json").is_file() and place.parent.name in sources.PROGRAMS
    name, *_ = HEADLINES[key]
    rows = {row[0]: row for row in report.summary_rows("tiny", reports)}
    assert rows[name.strip()][1] != "not measured" and rows[name.strip()][4] == entry["source"]
    assert OPTIONAL.match(key), "a scale without the figure has no row for it"


def test_every_figure_of_the_three_reports_follows_from_its_records(reports):
    tiny = reports / "tiny"
    summary = json.loads((tiny / "summary.json").read_text())
    checks = [*recount.of_evaluation(tiny / "eval"), *recount.of_summary(summary, tiny)]
    checks += [c for minutes in longform.LENGTHS for c in recount.of_long_form(tiny / f"long{minutes}")]
    assert len(checks) == 4 and all(c.ok for c in checks), [c for c in checks if not c.ok]


@pytest.mark.parametrize("key", [*EVALUATION, *LONG])
def test_a_figure_that_was_changed_is_found_by_name(key, reports, monkeypatch):
    kind = key.split("_")[0] if key in LONG else "eval"
    whole = json.loads((reports / "tiny" / kind / "metrics.json").read_text())
    whole["metrics"][key]["value"] += 0.125
    real = recount.read_json
    monkeypatch.setattr(
        recount, "read_json", lambda path: whole if path.name == "metrics.json" else real(path)
    )
    if kind == "eval":
        checks = recount.of_evaluation(reports / "tiny" / "eval")
    else:
        committed, anew = whole["metrics"], longform.anew(reports / "tiny" / kind)[1]
        checks = recount.compare(kind, committed, anew)
    assert [c.name for c in checks if not c.ok] == [f"{kind}: {key}"]


def test_strangers_of_a_cloned_voice_speak_its_language(folder):
    from omnilib.eval.cloning import Gallery

    gallery = Gallery(Frozen(folder), plain.Ear())
    assert {language: set(found) for language, found in gallery.vectors.items()} == {
        "en": {"gus"},
        "zh": {"hua"},
    }


def test_a_person_s_voice_is_judged_on_the_everyday_sentences(folder, reports):
    rows = [json.loads(r) for r in (reports / "tiny" / "eval" / "utterances.jsonl").read_text().splitlines()]
    mine = [r for r in rows if r["role"] == "human_voice"]
    everyday = [line.text for line in Frozen(folder).of("eval", language="en")]
    assert [r["text"] for r in mine if r["system"] == "tts"] == everyday
    assert {r["speaker"] for r in mine} == {"person"} and not [r for r in mine if r["system"] == "gt"]


def test_the_texts_of_an_hour_are_not_spoken_by_the_short_evaluation(folder, reports):
    rows = [json.loads(r) for r in (reports / "tiny" / "eval" / "long.jsonl").read_text().splitlines()]
    assert [r["id"] for r in rows] == ["long-en-00"]
    assert [r["id"] for r in Frozen(folder).texts("minutes60-")] == ["minutes60-en-00"]


def test_each_command_is_a_stage_of_the_graph():
    import yaml

    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    for minutes in longform.LENGTHS:
        stage = stages[f"long{minutes}"]
        assert stage["cmd"] == f"python -m omnilib.eval.longform --minutes {minutes}"
        assert (
            "omnilib/eval/longform.py" in stage["deps"] and "data_prep/frozen/longform.jsonl" in stage["deps"]
        )
