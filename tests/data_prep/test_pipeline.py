"""The curation runner: same result however it ran, nothing lost, nothing twice, one clear line for bad input."""

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
from curation_steps import RATE, STEPS, contents, corpus, recipe

from data_prep import pipeline
from data_prep.curate import main
from data_prep.pipeline import Audio, curate, files, join, parts
from data_prep.pipeline import run as running
from omnilib.errors import AudioError, ConfigError, DataError


@pytest.fixture
def run(tmp_path, monkeypatch):
    """`run(out, *steps)`: curate the corpus of tones in this process; returns the folder."""
    manifest = corpus(tmp_path / "in")
    monkeypatch.setenv("CURATION_LOG", str(tmp_path / "log"))

    def start(out: str = "out", *steps: str, workers: int = 1, **kwargs):
        curate(manifest, recipe(tmp_path, *(steps or STEPS), **kwargs), tmp_path / out, workers=workers)
        return tmp_path / out

    start.manifest = manifest
    return start


def calls(tmp_path: Path) -> Counter:
    """How often each step saw each record."""
    log = tmp_path / "log"
    return (
        Counter(line for line in log.read_text().splitlines() if not line.startswith("here"))
        if log.exists()
        else Counter()
    )


# ------------------------------------------------------------------------------------------ the result, and only once


def test_every_record_ends_up_kept_or_dropped_with_a_reason(run):
    out = run()
    kept = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    drops = [json.loads(line) for line in (out / "dropped.jsonl").read_text().splitlines()]
    assert len(kept) == 20 and {r["rank"] for r in kept} == set(range(20))
    assert {(r["id"], r["dropped"]["step"], r["dropped"]["reason"]) for r in drops} == {
        ("bad", "test_halve", "bad"),
        *((f"tone0{i}-{half}", "test_level", "quiet") for i in (0, 1) for half in (0, 1)),
    }


def test_funnel_counts_files_hours_and_reasons_by_step_and_source(run):
    table = json.loads((run() / "funnel.json").read_text())
    steps = {f"{i}-{s['step']}": s for i, s in enumerate(table["steps"])}
    assert steps["0-input"]["kept"]["records"] == 13 and steps["0-input"]["kept"]["files"] == 12
    assert steps["1-test_halve"]["dropped"] == {"bad": {"records": 1, "hours": round(1 / 3600, 6)}}
    assert steps["2-test_level"]["sources"]["set1"]["dropped"]["quiet"]["records"] == 2
    assert steps["4-test_level"]["kept"]["hours"] == pytest.approx(
        steps["0-input"]["kept"]["hours"] - (1 + 1 + 1.00625) / 3600, abs=1e-5
    )  # less the bad one and the two quiet tones


def test_parts_workers_and_fusing_do_not_change_the_result(run):
    plain = contents(run("a"))
    assert contents(run("b", part_seconds=1000)) == plain
    assert contents(run("c", workers=2, part_seconds=1)) == plain
    run("d", *STEPS[:1])  # the first step alone, the others later: other groups of fused steps
    assert contents(run("d")) == plain


def test_nothing_is_done_twice(run, tmp_path):
    out = run()
    once = calls(tmp_path)
    assert (
        set(once.values()) <= {1, 2} and sum(once.values()) == 13 + 24 + 1 + 20
    )  # two steps are called test_level
    before = {p: p.stat().st_mtime_ns for p in out.glob("[0-9]*/*")}
    run()
    assert calls(tmp_path) == once and {p: p.stat().st_mtime_ns for p in out.glob("[0-9]*/*")} == before


def test_a_changed_parameter_redoes_that_step_and_the_following(run, tmp_path):
    run()
    (tmp_path / "log").unlink()
    run("out", STEPS[0], "{name: test_level, least: 0.5}", *STEPS[2:])
    assert (
        not any(line.startswith("halve") for line in calls(tmp_path))
        and sum(calls(tmp_path).values()) == 24 + 1 + 12
    )


def test_a_run_killed_in_the_middle_continues_to_the_same_result(run, tmp_path):
    plain = contents(run("plain"))
    (tmp_path / "log").unlink()
    slow = recipe(tmp_path, "{name: test_halve, pause: 0.3}", *STEPS[1:], part_seconds=1.0)
    arguments = [
        "--recipe",
        str(slow),
        "--manifest",
        str(run.manifest),
        "--out",
        str(tmp_path / "out"),
        "--workers",
        "2",
    ]
    code = "import sys, curation_steps; from data_prep.curate import main; sys.exit(main(sys.argv[1:]))"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(Path(__file__).parent), str(Path.cwd())))}
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    while not any((tmp_path / "out").glob("work/*/000000[4-9].jsonl")):
        assert process.poll() is None, process.stdout.read().decode()
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)  # the parent only: its workers must notice
    process.wait()
    process.stdout.read()  # ends when the last worker does
    out = tmp_path / "out"
    assert not list(out.glob("manifest.jsonl")) and not (out / "01_test_halve/done.json").exists()
    finished = len(list(out.glob("work/*/*.jsonl")))
    assert 4 <= finished < 13
    (tmp_path / "log").unlink()
    assert main(arguments[:-1] + ["1"]) == 0
    assert contents(out) == plain and not (out / "work").exists() and not (out / "tmp").exists()
    assert (
        sum(n for line, n in calls(tmp_path).items() if line.startswith("halve")) == 13 - finished
    )  # only what was missing


def test_killed_between_two_steps_of_a_group_only_joins_again(run, tmp_path, monkeypatch):
    plain, real, count = contents(run("plain")), join.write_json, []
    (tmp_path / "log").unlink()

    def killed(out, target, value):
        count.append(target)
        if len(count) == 3:  # the input's, then the second step's were written; the first step's is not
            raise KeyboardInterrupt
        real(out, target, value)

    monkeypatch.setattr("data_prep.pipeline.join.write_json", killed)
    with pytest.raises(KeyboardInterrupt):
        run()
    assert [p.parent.name for p in count] == ["00_input", "02_test_level", "01_test_halve"]
    assert contents(run()) == plain and sum(calls(tmp_path).values()) == 13 + 24 + 1 + 20


def test_a_worker_that_dies_is_one_line_and_finished_parts_stay(run, tmp_path, capsys):
    dies = recipe(tmp_path, "{name: test_dies, at: tone07}", part_seconds=1.0)
    arguments = [
        "--recipe",
        str(dies),
        "--manifest",
        str(run.manifest),
        "--out",
        str(tmp_path / "out"),
        "--workers",
        "2",
    ]
    assert main(arguments) == 2 and "a worker process died" in capsys.readouterr().err.splitlines()[-1]
    assert any((tmp_path / "out/work").glob("*/*.jsonl")) and not (tmp_path / "out/manifest.jsonl").exists()


def test_input_is_never_changed_and_paths_stay_inside_the_output(run):
    before = {
        p: (p.stat().st_mtime_ns, p.read_bytes()) for p in run.manifest.parent.rglob("*") if p.is_file()
    }
    out = run(
        "out", "{name: test_level}"
    )  # no step writes audio: the input's files become part of the output
    assert {
        p: (p.stat().st_mtime_ns, p.read_bytes()) for p in run.manifest.parent.rglob("*") if p.is_file()
    } == before
    for line in (out / "manifest.jsonl").read_text().splitlines():
        path = (out / json.loads(line)["path"]).resolve()
        assert path.is_file() and path.is_relative_to(out.resolve())


def test_a_step_that_loses_or_doubles_records_is_stopped(run):
    with pytest.raises(DataError, match=r"step 'test_loses' lost 1 of \d+ records, first 'tone00'"):
        run("a", "{name: test_loses}")
    with pytest.raises(DataError, match="step 'test_doubles' gave the id 'same' twice"):
        run("b", "{name: test_doubles}")
    assert not list((run.manifest.parent.parent / "b").glob("01*/*.jsonl"))


# ------------------------------------------------------------------------------------------------------------- audio


def test_the_many_pieces_of_one_part_go_through_a_step_in_portions(tmp_path):
    """A part that began as one file of eight hours must not have all its waves in memory at once."""
    pieces = [{"id": str(i), "duration": 600.0} for i in range(48)]
    assert [len(p) for p in parts.portions_of(pieces)] == [3] * 16
    assert [len(p) for p in parts.portions_of(pieces[:2] + [{"id": "x", "duration": None}])] == [3]
    assert list(parts.portions_of([])) == []
    seen = []

    class Notes(pipeline.Step):
        name = "notes"

        def run(self, records, audio):
            seen.append(len(records))
            return records

    class NotesAll(Notes):
        scope = "all"

    state = {"part": {}, "records": pieces, "lines": [], "seconds": []}
    for step in (Notes(), NotesAll()):
        state = parts.advance(state, step, None)
    assert seen == [3] * 16 + [48] and [r["id"] for r in state["records"]] == [r["id"] for r in pieces]


def test_pieces_of_a_long_file_are_read_in_little_memory(tmp_path):
    """Thirty minutes in blocks: memory stays far below the 170 MB of the whole wave, and the samples are the same."""
    rng, path = np.random.default_rng(0), tmp_path / "long.wav"
    with soundfile.SoundFile(path, "w", RATE, 1, "PCM_16") as file:
        for _ in range(30):
            file.write(0.1 * rng.standard_normal(RATE * 60).astype(np.float32))
    audio = Audio(tmp_path, tmp_path)
    record = {"id": "long", "path": "long.wav", "start": 1.5, "duration": 1797.0}
    next(audio.blocks(record | {"duration": 70.0}, rate=24_000))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    total = sum(len(block) for block in audio.blocks(record, seconds=60, rate=24_000))
    audio.write("copy", audio.blocks(record, seconds=60), RATE)
    assert abs(total - 1797 * 24_000) <= 2
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < 60
    piece = {"id": "p", "path": "long.wav", "start": 901.5, "duration": 2.0}
    copied = {
        "id": "c",
        "path": "audio/"
        + next((tmp_path / "audio").rglob("*.flac")).relative_to(tmp_path / "audio").as_posix(),
    }
    assert np.array_equal(audio.wave(piece), audio.wave(copied | {"start": 900.0, "duration": 2.0}))


def test_resampling_in_blocks_equals_resampling_at_once(tmp_path):
    wave = np.sin(np.arange(RATE * 3) / 20).astype(np.float32) * 0.5
    soundfile.write(tmp_path / "a.wav", wave, RATE)
    audio, record = Audio(tmp_path, tmp_path), {"id": "a", "path": "a.wav"}
    blocks = np.concatenate(list(audio.blocks(record, seconds=0.3, rate=24_000)))
    assert np.abs(blocks - audio.wave(record, 24_000)).max() < 1e-4 and len(blocks) == 3 * 24_000


def test_the_cache_is_bounded_and_waves_cannot_be_changed(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(RATE * 10), RATE)
    audio = Audio(tmp_path, tmp_path, cache_bytes=4 * RATE * 3)
    for start in range(8):
        wave = audio.wave({"id": "a", "path": "a.wav", "start": float(start), "duration": 1.0})
    assert len(audio.cache) == 3
    with pytest.raises(ValueError, match="read-only"):
        wave[0] = 1.0


@pytest.mark.parametrize("rate", [None, 16_000])
def test_a_wave_still_in_memory_is_the_one_in_its_file(tmp_path, rate):
    writer = Audio(tmp_path, tmp_path)
    wave = (
        np.random.default_rng(0).normal(0, 0.4, 70 * RATE).astype(np.float32)
    )  # beyond full scale in places; two blocks
    record = {
        "id": "a",
        "path": writer.write("a", wave, RATE),
        "start": 0.0,
        "duration": len(wave) / RATE,
        "rate": RATE,
    }
    from_file = Audio(tmp_path, tmp_path).wave(record, rate)
    (tmp_path / record["path"]).rename(tmp_path / "elsewhere.flac")
    np.testing.assert_array_equal(writer.wave(record, rate), from_file)


def test_unreadable_audio_drops_its_record_only(run):
    (run.manifest.parent / "audio/5.wav").write_bytes(b"no sound")
    out = run("out", "{name: test_level}", part_seconds=1000)
    (drop,) = (json.loads(line) for line in (out / "dropped.jsonl").read_text().splitlines())
    assert drop["id"] == "tone05" and drop["dropped"] == {"step": "test_level", "reason": "unreadable_audio"}
    assert len((out / "manifest.jsonl").read_text().splitlines()) == 12


def test_a_record_that_reaches_beyond_its_file_is_an_error(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(RATE), RATE)
    with pytest.raises(AudioError, match="ends before 'a' does"):
        Audio(tmp_path, tmp_path).wave({"id": "a", "path": "a.wav", "start": 0.5, "duration": 0.6})


def test_written_names_are_safe_and_different(tmp_path):
    audio = Audio(tmp_path, tmp_path)
    paths = [
        audio.write(name, np.zeros(10), RATE)
        for name in ("../../x", "..//..x", "a/b", "a_b", "\u58f0", "x" * 300)
    ]
    assert len(set(paths)) == 6 and all(
        (tmp_path / p).resolve().is_relative_to(tmp_path / "audio") for p in paths
    )


# --------------------------------------------------------------------------------------------------------- bad input


def edit(manifest: Path, number: int, /, **changes) -> None:
    lines = manifest.read_text().splitlines()
    lines[number] = json.dumps(json.loads(lines[number]) | changes)
    manifest.write_text("\n".join(lines) + "\n")


def start(run, tmp_path, *more: str) -> int:
    arguments = [
        "--recipe",
        str(recipe(tmp_path, *STEPS)),
        "--manifest",
        str(run.manifest),
        "--out",
        str(tmp_path / "out"),
    ]
    return main(arguments + ["--workers", "1", *more])


NO_INPUT = {
    "missing": (lambda m: m.unlink(), "no manifest"),
    "empty": (lambda m: m.write_text(""), "holds no records"),
    "not a record": (
        lambda m: m.write_text("[]\n"),
        "holds no usable record (not_json 1); first: line 1: not a JSON object",
    ),
}


@pytest.mark.parametrize("case", NO_INPUT)
def test_no_manifest_is_one_line_and_exit_code_2(run, tmp_path, capsys, case):
    change, message = NO_INPUT[case]
    change(run.manifest)
    assert start(run, tmp_path) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert (
        line.startswith("error: ")
        and message in line
        and not list((tmp_path / "out").glob("*/manifest.jsonl"))
    )


BAD_LINES = {
    "one id twice": (lambda m: edit(m, 3, id="tone01"), "repeated_id"),
    "leaves the root": (lambda m: edit(m, 2, path="../secret.wav"), "outside_the_folder"),
    "absolute path": (lambda m: edit(m, 2, path="/etc/passwd"), "outside_the_folder"),
    "zero in a path": (lambda m: edit(m, 2, path="a\0b"), "outside_the_folder"),
    "not UTF-8": (lambda m: m.write_bytes(m.read_bytes().replace(b'"set1"', b'"set\xff"', 1)), "not_utf8"),
    "half a character": (lambda m: m.write_text(m.read_text().replace('"set1"', r'"\ud800"', 1)), "not_utf8"),
    "not JSON": (lambda m: m.write_text(m.read_text().replace("{", "", 1)), "not_json"),
    "a list": (lambda m: m.write_text("[1]\n" + m.read_text()), "not_json"),
    "broken line": (lambda m: m.write_text(m.read_text().replace(", ", ",\n", 1)), "not_json"),
    "not a number": (lambda m: edit(m, 0, duration=float("nan")), "not_a_number"),
    "field missing": (lambda m: edit(m, 1, licence=None), "missing_field"),
    "number for text": (lambda m: edit(m, 1, text=7), "wrong_type"),
    "text for a number": (lambda m: edit(m, 1, start="soon"), "wrong_type"),
    "true for a number": (lambda m: edit(m, 1, duration=True), "wrong_type"),
    "negative start": (lambda m: edit(m, 1, start=-0.1), "bad_offset"),
    "no duration": (lambda m: edit(m, 1, duration=0), "bad_offset"),
    "negative duration": (lambda m: edit(m, 1, duration=-3.0), "bad_offset"),
}


@pytest.mark.parametrize("case", BAD_LINES)
def test_a_bad_line_is_dropped_with_its_reason(run, case):
    change, reason = BAD_LINES[case]
    before = {r["id"] for r in pipeline.check_input(run.manifest)}
    change(run.manifest)
    records = list(pipeline.check_input(run.manifest, drop=True))
    drops = [r for r in records if "dropped" in r]
    assert {r["dropped"]["reason"] for r in drops} == {reason} and len(drops) == (
        2 if case == "broken line" else 1
    )
    assert len(before - {r["id"] for r in records}) == (0 if case == "a list" else 1)
    assert all(r["id"].startswith("manifest.jsonl:") for r in drops)


def test_bad_lines_are_counted_in_the_funnel_and_the_run_goes_on(run, tmp_path, capsys):
    edit(run.manifest, 2, path="../secret.wav")
    edit(run.manifest, 4, start="x")
    assert start(run, tmp_path) == 0
    assert (
        "bad lines of the manifest, left out: outside_the_folder 1, wrong_type 1; see "
        in capsys.readouterr().out
    )
    first = json.loads((tmp_path / "out/funnel.json").read_text())["steps"][0]
    assert first["step"] == "input" and {why: t["records"] for why, t in first["dropped"].items()} == {
        "outside_the_folder": 1,
        "wrong_type": 1,
    }
    assert start(run, tmp_path) == 0, "a second run finds all of it done"


def test_too_many_bad_lines_stop_before_the_first_step(run, tmp_path, capsys):
    for number in range(6):
        edit(run.manifest, number, start=-1.0)
    assert start(run, tmp_path) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert (
        "6 of 13 rows are bad (bad_offset 6), more than 20%; first: line 1: " in line and "--max-bad" in line
    )
    assert not list((tmp_path / "out").glob("*/*.jsonl"))
    assert start(run, tmp_path, "--max-bad", "0.5") == 0
    assert start(run, tmp_path, "--max-bad", "nan") == 2


def test_unreadable_folder_is_one_line(run, tmp_path, monkeypatch, capsys):
    def denied(self, *args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(running, "file_digest", denied)
    arguments = [
        "--recipe",
        str(recipe(tmp_path, *STEPS)),
        "--manifest",
        str(run.manifest),
        "--out",
        str(tmp_path / "out"),
    ]
    assert main(arguments) == 2
    assert f"cannot read or write {run.manifest} (Permission denied)" in capsys.readouterr().err


BAD_RECIPES = {
    "steps: [{name: nonsense}]": "unknown step 'nonsense'; known: ",
    "steps: [{name: test_halve, pausen: 1}]": "step 'test_halve' has no parameter 'pausen'; known: gpus, cpus, pause",
    "steps: [{name: test_halve, pause: fast}]": "step 'test_halve': ",
    "steps: [{name: test_halve}]\nworkers: 3": "unknown key 'workers'",
    "steps: [{name: test_halve}]\npart_seconds: long": "part_seconds is long: give seconds",
    "steps: []": "needs a list `steps:`",
    "steps: [": "not readable YAML",
    "steps: [{name: filter, rules: {nonsense: {}}}]": "unknown filter 'nonsense'; known: ",
}


@pytest.mark.parametrize("text", BAD_RECIPES)
def test_bad_recipe_is_one_line_and_exit_code_2(tmp_path, capsys, text):
    (tmp_path / "bad.yaml").write_text(text)
    assert (
        main(
            ["--recipe", str(tmp_path / "bad.yaml"), "--manifest", "m.jsonl", "--out", str(tmp_path / "out")]
        )
        == 2
    )
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and BAD_RECIPES[text] in line and not (tmp_path / "out").exists()


def test_unknown_recipe_lists_the_known_ones(tmp_path):
    with pytest.raises(ConfigError, match="no recipe 'nonsense': give a YAML file or one of: "):
        curate(tmp_path / "m.jsonl", "nonsense", tmp_path / "out")


@pytest.mark.parametrize("name", ["manifest.jsonl", "dropped.jsonl"])
def test_a_manifest_edited_by_hand_is_noticed(run, name):
    out = run()
    edited = out / "02_test_level" / name
    edited.write_text(edited.read_text().replace("tone", "t0ne"))
    with pytest.raises(DataError, match=rf"02_test_level/{name} was changed after it was written"):
        run()
    assert "t0ne" in edited.read_text() and (out / "manifest.jsonl").exists()


def test_the_final_manifest_edited_by_hand_is_kept(run):
    out = run()
    edit(out / "manifest.jsonl", 0, text="corrected")
    with pytest.raises(
        DataError, match="manifest.jsonl was changed after it was written: give it another name"
    ):
        run()
    (out / "manifest.jsonl").rename(out / "mine.jsonl")
    assert (
        "corrected" not in (run() / "manifest.jsonl").read_text()
        and "corrected" in (out / "mine.jsonl").read_text()
    )


def test_another_manifest_does_not_overwrite_a_finished_run(run):
    before = contents(run())
    edit(run.manifest, 0, source="other")
    with pytest.raises(DataError, match="holds what was made of another manifest"):
        run()
    assert contents(run.manifest.parent.parent / "out") == before


@pytest.mark.parametrize("fails_at", [1, 6, 30, 34, 39])
def test_full_disk_is_one_line_and_a_second_run_completes(run, tmp_path, monkeypatch, capsys, fails_at):
    plain, real, count = contents(run("plain")), files.os.replace, []

    def full(*args):
        count.append(1)
        if len(count) == fails_at:
            raise OSError(errno.ENOSPC, "No space left on device", str(args[1]))
        return real(*args)

    monkeypatch.setattr(files.os, "replace", full)
    arguments = [
        "--recipe",
        str(recipe(tmp_path, *STEPS)),
        "--manifest",
        str(run.manifest),
        "--out",
        str(tmp_path / "out"),
        "--workers",
        "1",
    ]
    assert main(arguments) == 2
    assert (
        "No space left on device): put that right and run again" in capsys.readouterr().err.splitlines()[-1]
    )
    assert main(arguments) == 0 and contents(tmp_path / "out") == plain


def test_full_disk_while_writing_audio_leaves_no_half_file(tmp_path, monkeypatch):
    def full(self, *args):
        raise soundfile.LibsndfileError(2)

    monkeypatch.setattr(soundfile.SoundFile, "write", full)
    with pytest.raises(DataError, match="cannot write audio/.*free some space, then run again"):
        Audio(tmp_path, tmp_path).write("a", np.zeros(10), RATE)
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_many_files_of_one_bad_type_end_in_one_line_with_the_lists_complete(run, tmp_path, capsys):
    for path in (run.manifest.parent / "audio").iterdir():
        path.write_bytes(b"not audio")
    steps = ("{name: test_level}", "{name: test_rank}", "{name: test_level}")
    arguments = [
        "--recipe",
        str(recipe(tmp_path, *steps)),
        "--manifest",
        str(run.manifest),
        "--out",
        str(tmp_path / "out"),
    ]
    assert main(arguments + ["--workers", "1"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "no record was kept: 13 dropped by step 'test_level' as unreadable_audio" in line
    assert (
        len((tmp_path / "out/dropped.jsonl").read_text().splitlines()) == 13
        and (tmp_path / "out/funnel.json").exists()
    )


def test_two_runs_do_not_work_in_one_folder(run, tmp_path):
    (tmp_path / "out").mkdir()
    with running.FileLock(tmp_path / "out/.lock"), pytest.raises(DataError, match="another run is working"):
        run()


def test_output_in_the_input_folder_is_refused(run):
    with pytest.raises(ConfigError, match="is the folder of the input"):
        run("in")
