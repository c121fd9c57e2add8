"""The wild set is what its truth says, and scoring gives the known answers of outputs written by hand."""

import json

import numpy as np
import pytest
import soundfile

from data_prep import score, wild
from data_prep.pipeline import Audio, check_input
from data_prep.steps.decode import Decode
from omnilib.errors import ConfigError, DataError
from omnilib.eval.wer import line_rates


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A small wild set: (folder, truth)."""
    folder = tmp_path_factory.mktemp("wild") / "set"
    return folder, wild.build(folder, 3.0, seed=3)


def units_of(truth, **fields):
    """(file, unit) of every unit with these fields."""
    return [(f, u) for f in truth["files"] for u in f["units"] if all(u[k] == v for k, v in fields.items())]


def read(folder, file):
    wave, rate = soundfile.read(folder / file["path"], dtype="float32")
    assert rate == wild.RATE
    return wave


def power(wave, start, end):
    return float(np.mean(np.square(wave[round(start * wild.RATE) : round(end * wild.RATE)])))


def test_same_seed_gives_the_same_set_and_another_seed_another(small, tmp_path):
    wild.build(tmp_path / "again", 3.0, seed=3)
    for name in ("manifest.jsonl", "truth.json"):
        assert (tmp_path / "again" / name).read_bytes() == (small[0] / name).read_bytes()
    first, other = (next(wild.world(0, 0.05, seed)) for seed in (3, 4))
    assert first.claims != other.claims


def test_manifest_is_readable_by_the_runner_and_tells_nothing_of_the_truth(small):
    folder, truth = small
    records = list(check_input(folder / "manifest.jsonl"))
    assert {r["id"] for r in records} == {f["id"] for f in truth["files"]}
    known = {
        "id",
        "path",
        "source",
        "licence",
        "text",
        "language",
        "speaker",
        "duration",
        "start",
        "rate",
        "split",
    }
    assert {key for r in records for key in r} <= known
    assert all(r["path"].startswith(f"input/sources/{r['source']}/{r['id']}.") for r in records)
    assert all((folder / f["path"]).is_file() != (u["detail"] == "missing") for f, u in units_of(truth))


def test_every_fault_copy_and_kind_of_damage_occurs(small):
    _, truth = small
    units = [u for _, u in units_of(truth)]
    assert {u["fault"] for u in units} >= set(wild.FAULTS) - {"mild"} | {
        None,
        "music",
        "noise",
        "silence",
        "corrupt",
    }
    assert {u["copy"] for u in units} - {None, "recording"} == set(wild.COPIES)
    assert {u["detail"] for u in units if u["fault"] == "corrupt"} == set(wild.CORRUPT)
    assert {f["path"].rsplit(".", 1)[1] for f in truth["files"]} >= {"flac", "mp3", "opus", "wav"}


def test_noise_has_the_level_that_the_truth_says(small):
    folder, truth = small
    noisy = [
        (f, u)
        for f, u in units_of(truth, kind="sentence")
        if u["snr"] is not None and f["path"].endswith("flac")
    ]
    assert noisy
    for file, unit in noisy:
        if unit["detail"] in ("pink", "white"):
            wave = read(folder, file)
            quiet = power(wave, 0, unit["start"] - 0.02)
            speech = power(wave, unit["start"], unit["end"]) - quiet
            assert 10 * np.log10(max(speech, 1e-12) / quiet) == pytest.approx(unit["snr"], abs=2.0)


def test_speech_lies_where_the_truth_says(small):
    folder, truth = small
    clean = [
        (f, u)
        for f, u in units_of(truth, fault=None, snr=None)
        if u["speech"] and f["path"].endswith(("flac", "wav"))
    ]
    assert clean
    for file, unit in clean:
        wave = read(folder, file)
        inside = np.mean([power(wave, *region) for region in unit["speech"]])
        assert unit["start"] == unit["speech"][0][0] and unit["end"] == unit["speech"][-1][1]
        assert inside > 1000 * power(wave, unit["start"] - 0.2, unit["start"] - 0.01)
        assert inside > 1000 * power(wave, unit["end"] + 0.01, unit["end"] + 0.2)


def test_neighbouring_turns_have_different_voices_and_enough_speech():
    rng = np.random.default_rng(0)
    lines = [
        wild.Sentence(
            np.zeros(round(rng.uniform(1, 3) * wild.RATE), np.float32), "", "en", f"v{i % 3}", "reader", ""
        )
        for i in range(60)
    ]
    turns = wild.turns_of(lines, rng)
    assert len(turns) > 5
    assert all(
        len({s.voice for s in t}) == 1 and sum(len(s.wave) for s in t) > 3.5 * wild.RATE for t in turns
    )
    assert all(a[0].voice != b[0].voice for a, b in zip(turns, turns[1:], strict=False))
    used = [id(s) for t in turns for s in t]
    assert len(used) == len(set(used))


def test_wrong_transcripts_are_wrong_and_the_others_right(small):
    folder, truth = small
    claims = {
        json.loads(line)["id"]: json.loads(line)
        for line in (folder / "manifest.jsonl").read_text().splitlines()
    }
    for file, unit in units_of(truth, kind="sentence"):
        claim = claims[file["id"]]
        if unit["fault"] == "wrong_transcript":
            key = "pinyin" if unit["language"] == "zh" else "wer"
            assert line_rates(unit["text"], claim["text"], unit["language"])[key].error > 0.3
        else:
            assert claim["text"] == unit["text"]
        assert (claim["language"] == unit["language"]) == (unit["fault"] != "wrong_language")
        assert (claim["speaker"] == unit["voice"]) == (unit["fault"] != "wrong_speaker")


@pytest.mark.parametrize("language", ["en", "zh"])
def test_wrong_text_is_always_over_the_limit(language):
    texts = {
        "en": ["He saw the boat.", "Press star to return to the main menu.", "Nobody was there at all."],
        "zh": ["可以常常自照。", "系统里最需要配备的就是。", "宁叫心受苦。"],
    }[language]
    lines = [wild.Sentence(np.zeros(1), text, language, "v", "reader", "") for text in texts]
    made = [wild.wrong_text(line, lines, np.random.default_rng(seed)) for seed in range(20) for line in lines]
    assert min(error for _, _, error in made) > 0.3
    assert {how for _, how, _ in made} == {"other", "cut", "mixed"}


def test_copies_hold_the_sound_of_their_originals(small):
    folder, truth = small
    places = {u["id"]: (f, u) for f, u in units_of(truth)}
    pairs = [
        (places[u["copy_of"]], (f, u))
        for f, u in units_of(truth)
        if u["copy_of"] and f["path"].endswith(("flac", "wav"))
    ]
    assert {c[1]["copy"] for _, c in pairs} >= {"exact", "shifted"}
    for (first, one), (second, other) in pairs:
        assert one["text"] == other["text"] and one["copy_of"] is None
        if other["copy"] == "exact":
            assert (folder / first["path"]).read_bytes() == (folder / second["path"]).read_bytes()
        size = round((one["end"] - one["start"]) * wild.RATE)
        a, b = (
            read(folder, f)[round(u["start"] * wild.RATE) :][:size]
            for f, u in ((first, one), (second, other))
        )
        assert np.corrcoef(a, b)[0, 1] > 0.95


def test_decoding_drops_what_is_corrupt_and_nothing_else(small, tmp_path):
    folder, truth = small
    records = [r | {"path": r["path"]} for r in check_input(folder / "manifest.jsonl")]
    results = Decode().run(records, Audio(folder, tmp_path))
    reasons = {r.get("recording", r["id"]): r.get("dropped", {}).get("reason") for r in results}
    corrupt = {f["id"] for f, u in units_of(truth, fault="corrupt")}
    silent = {f["id"] for f, u in units_of(truth, fault="silence")}
    assert {name for name, why in reasons.items() if why and why != "silent"} == corrupt
    assert {name for name, why in reasons.items() if why == "silent"} == silent
    assert set(filter(None, reasons.values())) <= {"silent", *score.FILTERS["decode"][1]}


def test_odd_lengths_and_full_folders_are_refused(tmp_path):
    for minutes in (1, 10_000):
        with pytest.raises(ConfigError, match="minutes: choose 2"):
            wild.build(tmp_path / "x", minutes)
    (tmp_path / "something").touch()
    with pytest.raises(DataError, match="not empty"):
        wild.build(tmp_path, 2)
    with pytest.raises(SystemExit, match="error: "):
        wild.main(["--minutes", "2", "--out", str(tmp_path)])


# ------------------------------------------------------------------------------------------------ scoring


def unit(name, fault=None, start=1.0, end=3.0, **more):
    return wild.unit("sentence", start, end, voice="v", text="t", fault=fault) | {"id": f"{name}#0"} | more


def truth_of(*units):
    """Truth with one file a unit: the file's id stands before the #."""
    files = files_of(units)
    return {
        "seed": 0,
        "minutes": 1.0,
        "files": [{"id": n, "path": n, "duration": 60.0, "units": u} for n, u in files.items()],
    }


def files_of(units):
    files = {}
    for one in units:
        files.setdefault(one["id"].split("#")[0], []).append(one)
    return files


def kept(name, start=0.9, end=3.1, **more):
    place = {"segment_start": start, "start": 0.0, "duration": end - start, "offset": 0.0}
    return {"id": f"{name}-p000-000", "recording": name, "source": "s"} | place | more


def lost_to(name, reason, start=None, end=None):
    record = {"id": name, "duration": None} if start is None else kept(name, start, end)
    return record | {"dropped": {"step": "x", "reason": reason}}


def score_of(tmp_path, truth, kept_records, dropped_records):
    for folder in ("wild", "out"):
        (tmp_path / folder).mkdir()
    (tmp_path / "wild" / "truth.json").write_text(json.dumps(truth))
    for name, records in (("manifest", kept_records), ("dropped", dropped_records)):
        (tmp_path / "out" / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    return score.score(tmp_path / "wild", tmp_path / "out")


def test_an_output_written_by_hand_gets_the_known_figures(tmp_path):
    """6 good (one pair, so 5 families), 5 bad, 1 borderline: 2 bad kept, 1 good dropped."""
    truth = truth_of(
        unit("g1"),
        unit("g2"),
        unit("g3"),
        unit("g4"),
        unit("g5"),
        unit("g5copy", copy_of="g5#0", copy="mp3"),
        unit("w1", "wrong_transcript", detail={"how": "cut", "error": 0.5}),
        unit("w2", "wrong_transcript", detail={"how": "cut", "error": 0.5}),
        unit("w3", "wrong_transcript", detail={"how": "other", "error": 1.0}),
        unit("n1", "noisy", snr=5.0),
        unit("c1", "corrupt", detail="empty"),
        unit("b1", "borderline", snr=15.0),
    )
    keep = [kept("g1"), kept("g2", 0.8, 3.2), kept("g5"), kept("w2"), kept("n1")]
    drop = [
        lost_to("g3", "held_out_text", 0.9, 3.1),
        lost_to("g4", "wrong_transcript", 0.9, 3.1),
        lost_to("b1", "noisy", 0.9, 3.1),
    ]
    drop += [lost_to("g5copy", "duplicate_audio", 0.9, 3.1), lost_to("w1", "wrong_transcript", 0.9, 3.1)]
    drop += [lost_to("w3", "noisy", 0.9, 3.1), lost_to("c1", "empty_file")]
    result = score_of(tmp_path, truth, keep, drop)
    found = result["metrics"]
    assert found["bad_kept"]["value"] == pytest.approx(2 / 5) and found["bad_kept"]["n"] == 5
    assert found["bad_among_kept"]["value"] == pytest.approx(2 / 6)
    assert found["good_dropped"]["value"] == pytest.approx(1 / 5) and found["good_dropped"]["n"] == 5
    assert found["duplicate_recall"]["value"] == 1.0 and found["duplicate_recall"]["n"] == 1
    assert found["wrong_transcript_recall"]["value"] == pytest.approx(1 / 2)  # w3 was taken by another filter
    assert found["boundary_error_s"]["value"] == pytest.approx(
        (6 * 0.1 + 2 * 0.2) / 8
    )  # g1, g2, g3 and g5, two ends each
    assert found["boundary_error_p95_s"]["value"] == pytest.approx(0.2)
    assert found["lost"]["value"] == 0
    rows = {r["filter"]: r for r in result["filters"]}
    assert rows["transcript"]["precision"]["value"] == pytest.approx(1 / 2)
    assert rows["transcript"]["recall_any"]["value"] == pytest.approx(2 / 3)
    assert (rows["noise"]["precision"]["value"], rows["noise"]["precision_any"]["value"]) == (0.0, 1.0)
    assert rows["decode"]["recall"]["value"] == 1.0
    assert rows["speaker"]["recall"]["value"] is None
    assert {w["id"] for w in result["wrong"]} == {"g4#0", "w2#0", "n1#0"}


def test_both_copies_kept_is_a_duplicate_missed_and_both_dropped_a_good_one_lost(tmp_path):
    truth = truth_of(
        *(u for n in "abc" for u in (unit(n), unit(f"{n}2", copy_of=f"{n}#0", copy="opus"))),
        unit("single"),
    )
    keep = [kept("a"), kept("a2"), kept("b2")]
    drop = [
        lost_to("b", "duplicate_audio", 0.9, 3.1),
        lost_to("c", "noisy", 0.9, 3.1),
        lost_to("c2", "clipped", 0.9, 3.1),
    ]
    result = score_of(tmp_path, truth, keep, [*drop, lost_to("single", "duplicate_audio", 0.9, 3.1)])
    assert result["metrics"]["duplicate_recall"]["value"] == pytest.approx(1 / 2)
    assert result["metrics"]["duplicate_recall"]["n"] == 2
    assert result["metrics"]["good_dropped"]["value"] == pytest.approx(2 / 4)
    assert result["copies"]["opus"]["n"] == 2
    rows = {r["filter"]: r for r in result["filters"]}
    assert rows["duplicates"]["precision"]["value"] == pytest.approx(1 / 2)  # `single` is no copy of anything


def test_pieces_of_a_long_recording_are_laid_on_its_time_axis(tmp_path):
    """Two turns in two decoded pieces; a jingle that nothing covers; a turn that is only a quarter kept."""
    turn = {"kind": "turn"}
    truth = truth_of(
        unit("r", start=2.0, end=8.0, voice="a") | turn,
        unit("r", start=604.0, end=612.0, voice="b") | turn | {"id": "r#1"},
        unit("r", "music", start=620.0, end=626.0) | {"kind": "sound", "id": "r#2"},
        unit("r", start=630.0, end=638.0, voice="a") | turn | {"id": "r#3"},
    )
    truth["files"][0]["duration"] = 640.0
    keep = [
        kept("r", 2.1, 7.9, id="r-1", speech=[[0.0, 5.8]]),
        kept("r", 4.0, 12.3, offset=600.0, id="r-2", speech=[[0.1, 8.1]]),
        kept("r", 30.0, 32.0, offset=600.0, id="r-3"),
        {"id": "long-1", "parts": [{"id": "r-1"}], "long": True, "duration": 6.0},
    ]
    result = score_of(tmp_path, truth, keep, [lost_to("r", "clipped", 632.0, 638.0)])
    assert result["faults"] == {"good": {"kept": 2, "clipped": 1}, "no_speech": {"not_cut_out": 1}}
    assert result["metrics"]["boundary_error_s"]["value"] == pytest.approx((0.1 + 0.1 + 0.0 + 0.3) / 4)
    assert result["metrics"]["boundary_error_speech_s"]["value"] == pytest.approx((0.1 + 0.1 + 0.1 + 0.1) / 4)
    assert result["metrics"]["mixed_segments"]["value"] == 0.0
    assert result["lengths"] == {"segments": [5.8, 8.3, 2.0], "long": [6.0]}


def test_a_segment_over_two_voices_is_mixed(tmp_path):
    truth = truth_of(
        unit("r", start=1.0, end=5.0, voice="a") | {"kind": "turn"},
        unit("r", start=6.0, end=10.0, voice="b") | {"kind": "turn", "id": "r#1"},
    )
    result = score_of(tmp_path, truth, [kept("r", 0.9, 10.1)], [])
    assert result["metrics"]["mixed_segments"]["value"] == 1.0
    assert result["metrics"]["boundary_error_turn_s"]["value"] == pytest.approx((0.1 + 5.1 + 5.1 + 0.1) / 4)


def test_a_file_in_neither_list_is_lost(tmp_path):
    result = score_of(tmp_path, truth_of(unit("g"), unit("h")), [kept("g")], [])
    assert result["metrics"]["lost"]["value"] == 1
    assert result["metrics"]["good_dropped"]["value"] == pytest.approx(1 / 2)


def test_output_of_another_set_is_refused(tmp_path):
    with pytest.raises(DataError, match="same wild set"):
        score_of(tmp_path, truth_of(unit("g")), [kept("other")], [])


def test_no_truth_or_no_output_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"truth\.json"):
        score.score(tmp_path, tmp_path)
    (tmp_path / "truth.json").write_text(json.dumps(truth_of(unit("g"))))
    with pytest.raises(DataError, match=r"manifest\.jsonl"):
        score.score(tmp_path, tmp_path)


def test_report_and_summary_are_written_and_other_keys_stay(tmp_path):
    result = score_of(
        tmp_path,
        truth_of(unit("g"), unit("n", "noisy", snr=0.0)),
        [kept("g")],
        [lost_to("n", "noisy", 0.9, 3.1)],
    )
    (tmp_path / "wild" / "manifest.jsonl").write_text("{}\n")
    (tmp_path / "out" / "funnel.json").write_text("{}")
    summary = tmp_path / "reports" / "nano" / "summary.json"
    summary.parent.mkdir(parents=True)
    summary.write_text(json.dumps({"wer_en_gt": {"value": 0.1, "n": 1, "ci95": None, "source": "x"}}))
    score.write(result, tmp_path / "wild", tmp_path / "out", summary.parent / "curation", summary)
    found = json.loads(summary.read_text())
    assert found["wer_en_gt"]["value"] == 0.1
    assert found["curation_bad_kept"] == {
        "value": 0.0,
        "n": 1,
        "ci95": result["metrics"]["bad_kept"]["ci95"],
        "source": "reports/nano/curation/metrics.json",
    }
    assert set(score.SUMMARY.values()) <= set(found)
    assert json.loads((summary.parent / "curation" / "metrics.json").read_text()) == json.loads(
        json.dumps(result)
    )
    assert json.loads((summary.parent / "curation" / "provenance.json").read_text())["truth_sha256"]
    assert (summary.parent / "curation" / "funnel.json").is_file()
    assert "| noise | 1 |" in score.render(result)


def test_an_aim_is_met_on_its_own_side_of_the_limit():
    found = {
        "curation_bad_kept": {"value": 0.02},
        "curation_good_dropped": {"value": 0.051},
        "curation_duplicate_recall": {"value": 0.98},
    }
    found |= {
        "curation_wrong_transcript_recall": {"value": 0.94},
        "curation_audio_hours_per_hour_no_asr": {"value": 101.0},
    }
    verdicts = {r["metric"].removeprefix("curation_"): r["verdict"] for r in score.aim_rows(found)}
    met = {name for name, verdict in verdicts.items() if verdict == "trend holds"}
    assert met == {"bad_kept", "duplicate_recall", "audio_hours_per_hour_no_asr"} and len(verdicts) == len(
        score.AIMS
    )
    for _, words, limit, _ in score.AIMS.values():  # the words say the number
        number = float(words.split()[1])
        assert limit == (number / 100 if words.endswith("%") else number)


def test_voices_of_any_name_fill_every_group_and_people_read():
    natural = [f"en-{n:03d}" for n in range(30)]
    assert {wild.group_of(name) for name in natural} == set(wild.GROUPS)
    assert wild.group_of("slt_122") == "crowd" and {wild.group_of(name) for name in wild.PEOPLE} == {"reader"}
