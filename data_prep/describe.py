"""What a corpus of the open plan is made of: hours by engine, voice, split and kind of text; how often words occur.

python -m data_prep.nano --out data/nano --describe       # prints it and writes data/nano/description.json
"""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

from data_prep import texts
from omnilib.data import read_manifest
from omnilib.errors import DataError
from omnilib.provenance import write_json

TIMES = {"once": (1, 2), "2-4 times": (2, 5), "5-19": (5, 20), "20 and more": (20, 1 << 60)}
FILE = "description.json"


def words(records: Iterable[dict]) -> dict[str, dict[str, int]]:
    """language -> words of the training text, distinct ones, and how many of those occur how often."""
    counts: dict[str, Counter] = defaultdict(Counter)
    for record in records:
        if record["split"] == "train":
            counts[record["language"]].update(texts.words(record["text"], record["language"]))
    return {
        language: {"words": found.total(), "distinct": len(found)}
        | {name: sum(low <= n < high for n in found.values()) for name, (low, high) in TIMES.items()}
        for language, found in sorted(counts.items())
    }


def grouped(records: list[dict], name: Callable[[dict], str]) -> dict[str, dict]:
    """Hours, utterances and speakers of each group, longest first."""
    groups: dict[str, list[dict]] = defaultdict(list)
    for record in records:
        groups[name(record)].append(record)
    found = {
        group: {
            "hours": round(sum(r["duration"] for r in some) / 3600, 3),
            "utterances": len(some),
            "speakers": len({r["speaker"] for r in some}),
        }
        for group, some in groups.items()
    }
    return dict(sorted(found.items(), key=lambda item: (-item[1]["hours"], item[0])))


def voice_of(record: dict) -> str:
    """A base voice by its name; the mixtures of a language together."""
    if ">" in record["voice"]:
        return f"{record['engine']} mixtures, {record['language']}"
    return f"{record['engine']} {record['voice']}"


def rows(path: Path) -> list[dict]:
    """Rows of a JSONL file; none where there is no file.

    Raises:
        DataError: it is damaged.
    """
    try:
        return (
            [json.loads(row) for row in path.read_text(encoding="utf-8").splitlines()]
            if path.is_file()
            else []
        )
    except ValueError as error:
        raise DataError(f"{path} is damaged ({error}): collect the corpus again with --collect") from None


def describe(out: Path) -> dict:
    """The description of the finished part of the corpus in `out`.

    Raises:
        DataError: nothing was collected there, or a file is damaged.
    """
    if not (out / "manifest.jsonl").is_file() or not (out / "plan.jsonl").is_file():
        raise DataError(f"no corpus in {out}: build it, or collect what is finished with --collect")
    plan = rows(out / "plan.jsonl")
    planned = {r["id"]: {"engine": r["engine"], "voice": r["voice"]} for r in plan}
    records = read_manifest(out / "manifest.jsonl")
    if strange := sum(r["id"] not in planned for r in records):
        raise DataError(
            f"{strange} utterances of {out} are not in its plan: delete the folder and build it again"
        )
    records = [r | planned[r["id"]] for r in records]
    total = grouped(records, lambda r: "all").get("all", {"hours": 0.0, "utterances": 0, "speakers": 0})
    natural = sum(r["duration"] for r in records if r["part"] == "synthetic") / 3600
    joins, skipped = rows(out / "longform.jsonl"), rows(out / "skipped.jsonl")
    joined = sum(j["duration"] for j in joins) / 3600
    return {
        **total,
        "planned": len(plan),
        "skipped": len(skipped),
        "engines": grouped(records, lambda r: r["engine"]),
        "voices": grouped(records, voice_of),
        "splits": grouped(records, lambda r: f"{r['part']} {r['language']} {r['split']}"),
        "kinds": grouped(records, lambda r: f"{r['language']} {r['kind']}"),
        "test_sets": grouped([r for r in records if r["set"]], lambda r: f"{r['language']} {r['set']}"),
        "words": words(records),
        "long_form": {
            "joins": len(joins),
            "hours": round(joined, 3),
            "share_of_natural_hours": round(joined / natural, 3) if natural else None,
        },
    }


def table(title: str, groups: dict[str, dict]) -> str:
    """Groups as a Markdown table."""
    columns = list(next(iter(groups.values()), {}))
    lines = [f"| {title} | {' | '.join(columns)} |", "|---" * (1 + len(columns)) + "|"]
    lines += [f"| {name} | {' | '.join(str(entry[c]) for c in columns)} |" for name, entry in groups.items()]
    return "\n".join(lines) + "\n"


def main(out: Path) -> None:
    """Print the description and write it beside the corpus.

    Raises:
        DataError: as `describe`, or it cannot be written.
    """
    found = describe(out)
    print(
        f"{found['utterances']} of {found['planned']} utterances, {found['hours']:.2f} h, {found['speakers']} speakers, "
        f"{found['skipped']} skipped; {found['long_form']['joins']} long-form joins of {found['long_form']['hours']:.2f} h\n"
    )
    for title in ("engines", "voices", "splits", "kinds", "test_sets", "words"):
        print(table(title.replace("_", " "), found[title]))
    try:
        write_json(out / FILE, found)
    except OSError as error:
        raise DataError(f"cannot write {out / FILE}: {error.strerror}") from None
    print(f"also in {out / FILE}")
