"""Check a curated manifest, or shards, and raise on what is wrong: nothing is changed, nothing is skipped.

    python -m data_prep.validate out/manifest.jsonl        # exit code 2 and one line if anything is wrong; --report lists all
    python -m data_prep.validate shards

Checked: checksums, missing audio, wrong duration or rate, empty or wrong-script text, impossible speed, a speaker label that the
voices contradict, test sentences in training. Reasons are short words, so that a fix can select by them.
"""

import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as parquet
from tqdm import tqdm

from data_prep.pipeline.files import file_digest, read_json
from data_prep.pipeline.join import number_of
from data_prep.pipeline.manifest import DEFAULTS, BadRow, rows
from omnilib import options
from omnilib.errors import DataError, UserError
from omnilib.recording import BadRecording, missing_seconds, opened

SLACK = 0.05  # seconds a duration may be off
SPEEDS = {
    "zh": (0.5, 12.0),
    None: (1.0, 40.0),
}  # letters, digits and Han characters a second: outside nobody speaks
LEAST_SCRIPT = 0.5
Problem = tuple[str, str, str]  # id, reason, detail


def problems(manifest: Path) -> Iterator[Problem]:
    """Everything wrong with a manifest's lines, its records, their audio and its checksums.

    Raises:
        DataError: it is no manifest at all: it cannot be read, or holds nothing.
    """
    funnel = read_json(manifest.with_name("funnel.json"))
    if funnel and funnel["manifest_sha256"] != file_digest(manifest):
        yield manifest.name, "checksum", "not the file the pipeline wrote"
    found = [row for _, row in rows(manifest)]
    if not found:
        raise DataError(f"{manifest} holds no records: nothing to check")
    yield from (
        (row.id or f"{manifest.name}:{row.number}", row.reason, f"line {row.number}: {row.detail}")
        for row in found
        if isinstance(row, BadRow)
    )
    records = [DEFAULTS | row for row in found if isinstance(row, dict)]
    sharing, files = Counter(r["path"] for r in records), {}
    for record in tqdm(records, desc="validate", unit="record", disable=len(records) < 1000):
        yield from (
            (record["id"], *found) for found in sound_problems(record, manifest.parent, sharing, files)
        )
        yield from ((record["id"], *found) for found in text_problems(record))
    yield from voice_problems(records)
    yield from leaks(records)


def sound_problems(record: dict, root: Path, sharing: Counter, files: dict) -> Iterator[tuple[str, str]]:
    """Audio that is missing, or not as long or as fast as the record says. `files` remembers (rate, seconds) of files."""
    path = record["path"]
    if path not in files:
        try:
            with opened(root / path) as file:
                missing = missing_seconds(file)
                files[path] = (file.samplerate, file.frames / file.samplerate, missing)
        except BadRecording as error:
            files[path] = error
    if isinstance(files[path], BadRecording):
        yield "missing_audio", f"{path} is absent or unreadable ({files[path].reason})"
        return
    rate, seconds, missing = files[path]
    if missing > 0.02 and sharing[path] == 1 and record["start"] == 0:
        yield "truncated_audio", f"{path} is cut short"
    if record["rate"] != rate:
        yield "wrong_rate", f"says {record['rate']}, {path} has {rate} Hz"
    if not record["duration"] or record["duration"] <= 0 or record["start"] < 0:
        yield "wrong_duration", f"says {record['duration']} s from {record['start']} s"
        return
    end = record["start"] + record["duration"]
    whole = (
        sharing[path] == 1 and record["start"] == 0 and "parent" not in record
    )  # nothing says it is a piece of its file
    if end > seconds + SLACK or (whole and end < seconds - SLACK):
        yield "wrong_duration", f"ends at {end:.2f} s, {path} at {seconds:.2f} s"


def text_problems(record: dict) -> Iterator[tuple[str, str]]:
    """Text that is empty, in a script of another language, or too much or little for its time."""
    from data_prep.steps.text import HAN_CHAR, script_share

    text, language = record["text"] or "", record["language"]
    letters = sum(c.isalnum() for c in text)
    if not letters:
        yield "empty_text", "no words"
        return
    if language in ("en", "zh") and (
        script_share(text, language) < LEAST_SCRIPT or (language == "en" and HAN_CHAR.search(text))
    ):
        yield "wrong_script", f"'{text[:30]}' is not {language}"
    low, high = SPEEDS.get(language, SPEEDS[None])
    if record["duration"] and not low <= letters / record["duration"] <= high:
        yield "impossible_speed", f"{letters} characters in {record['duration']:.2f} s"


def voice_problems(records: list[dict]) -> Iterator[Problem]:
    """Records whose voice vector contradicts their speaker label, where the recipe computed vectors."""
    voiced: dict[str, list[dict]] = {}
    for record in records:
        if record.get("voice") and record.get("speaker"):
            voiced.setdefault(record["source"], []).append(record)
    if not voiced:
        return
    from data_prep.steps.voices import Speakers

    for members in voiced.values():
        for record in Speakers().contradicted(members):
            yield record["id"], "wrong_speaker", f"the voice is not that of {record['speaker']}"


def leaks(records: list[dict]) -> Iterator[Problem]:
    """Sentences of the test split that training hears or reads."""
    plain = lambda text: number_of(re.sub(r"\W+", "", (text or "").casefold()))  # noqa: E731
    test = {plain(r["text"]) for r in records if r["split"] == "test"} - {plain("")}
    for record in records:
        if record["split"] not in ("test", "dev") and plain(record["text"]) in test:
            yield record["id"], "test_text_in_train", f"'{record['text'][:30]}'"


def shard_problems(folder: Path) -> Iterator[Problem]:
    """Shards that are missing, changed or hold something else than the index says."""
    index = read_json(folder / "index.json")
    if index is None:
        raise DataError(
            f"no readable index.json in {folder}: write the shards again with `python -m data_prep.shards`"
        )
    for shard in index["shards"]:
        path = folder / shard["path"]
        if not path.is_file():
            yield shard["path"], "missing_shard", "absent"
        elif file_digest(path) != shard["sha256"]:
            yield shard["path"], "checksum", "not the file that was written"
        elif parquet.read_metadata(path).num_rows != shard["records"]:
            yield shard["path"], "wrong_count", f"{shard['records']} records expected"


def validate(path: Path, report: Path | None = None) -> int:
    """Check a manifest (a file) or shards (a folder); returns how many records or shards were checked.

    Raises:
        DataError: something is wrong; `report` then lists every problem as JSON lines.
    """
    path = Path(path)
    found = list(shard_problems(path) if path.is_dir() else problems(path))
    if report:
        lines = (
            json.dumps({"id": i, "reason": why, "detail": detail}, ensure_ascii=False) + "\n"
            for i, why, detail in found
        )
        Path(report).write_text("".join(lines), encoding="utf-8")
    if found:
        counts = ", ".join(
            f"{reason} {count}" for reason, count in Counter(why for _, why, _ in found).most_common()
        )
        name, reason, detail = found[0]
        raise DataError(
            f"{path}: {len(found)} problems ({counts}); first: '{name}' {reason}, {detail}; --report FILE lists all"
        )
    return len(read_json(path / "index.json")["shards"]) if path.is_dir() else sum(1 for _ in path.open("rb"))


def main(argv: list[str] | None = None) -> int:
    parser = options.Parser(description=__doc__)
    parser.add_argument("path", type=Path, help="a manifest.jsonl or a folder of shards")
    parser.add_argument(
        "--report", type=Path, default=None, help="write every problem to this file (JSON lines)"
    )
    args = parser.parse_args(argv)
    try:
        count = validate(args.path, args.report)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{count} {'shards' if args.path.is_dir() else 'records'} checked, nothing wrong")
    return 0


if __name__ == "__main__":
    sys.exit(main())
