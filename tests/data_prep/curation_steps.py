"""Small steps and a small corpus of tones for the tests of the runner; in a module of their own so that workers can import them."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import soundfile

from data_prep.pipeline import Audio, Step, dropped, register

RATE = 16_000


def note(line: str) -> None:
    """Append a line to the log that counts what the steps did (O_APPEND: whole lines from any process)."""
    if log := os.environ.get("CURATION_LOG"):
        with Path(log).open("a") as file:
            file.write(line + "\n")


def workers() -> dict[str, int]:
    """Ray node -> last process that worked there."""
    log = Path(os.environ["CURATION_LOG"])
    lines = [line.split() for line in log.read_text().splitlines()] if log.exists() else []
    return {line[2]: int(line[1]) for line in lines if line[0] == "here"}


def node() -> str:
    """The Ray node this process runs on."""
    if "ray" not in sys.modules:
        return "none"
    import ray

    return ray.get_runtime_context().get_node_id() if ray.is_initialized() else "none"


@register
class Halve(Step):
    """Split every record in two halves and write their audio; 'bad' ones are dropped."""

    name = "test_halve"
    pause: float = 0.0
    meet: int = 0  # Ray nodes that must be at work before the first record is done

    def run(self, records: list[dict], audio: Audio) -> list[dict]:
        results = []
        note(f"here {os.getpid()} {node()}")
        while self.meet and len(workers()) < self.meet:
            time.sleep(0.1)
        for record in records:
            note(f"halve {record['id']}")
            time.sleep(self.pause)
            if "bad" in record["id"]:
                results.append(dropped(record, self.name, "bad"))
                continue
            wave = audio.wave(record)
            for half in range(2):
                piece = wave[half * len(wave) // 2 : (half + 1) * len(wave) // 2]
                name = f"{record['id']}-{half}"
                results.append(
                    record
                    | {
                        "id": name,
                        "parent": record["id"],
                        "path": audio.write(name, piece, RATE),
                        "start": 0.0,
                        "duration": len(piece) / RATE,
                        "rate": RATE,
                    }
                )
        return results


@register
class Level(Step):
    """Measure the level; quiet ones are dropped."""

    name = "test_level"
    least: float = 0.0

    def run(self, records: list[dict], audio: Audio) -> list[dict]:
        results = []
        for record in records:
            note(f"level {record['id']}")
            level = round(float(np.abs(audio.wave(record)).max()), 4)
            done = record | {"level": level}
            results.append(done if level >= self.least else dropped(done, self.name, "quiet"))
        return results


@register
class Rank(Step):
    """Number all records by level: needs every record."""

    name = "test_rank"
    scope = "all"

    def run(self, records: list[dict], audio: Audio) -> list[dict]:
        note(f"rank {len(records)}")
        order = sorted(records, key=lambda r: (r["level"], r["id"]))
        return [r | {"rank": i} for i, r in enumerate(order)]


@register
class Loses(Step):
    name = "test_loses"

    def run(self, records: list[dict], audio: Audio) -> list[dict]:
        return records[1:]


@register
class Doubles(Step):
    name = "test_doubles"

    def run(self, records: list[dict], audio: Audio) -> list[dict]:
        return [r | {"id": "same", "parent": r["id"]} for r in records]


@register
class Dies(Step):
    """A worker that the system kills."""

    name = "test_dies"
    at: str = ""

    def run(self, records: list[dict], audio: Audio) -> list[dict]:
        if self.at in {r["id"] for r in records}:
            os.kill(os.getpid(), signal.SIGKILL)
        return records


def corpus(folder: Path, count: int = 12) -> Path:
    """`count` tones of rising level and one record that is bad; returns the manifest."""
    (folder / "audio").mkdir(parents=True)
    records = []
    for index in range(count):
        time_axis = np.arange(RATE + 100 * index) / RATE
        wave = (0.05 + 0.9 * index / count) * np.sin(2 * np.pi * (200 + 40 * index) * time_axis)
        soundfile.write(folder / f"audio/{index}.wav", wave, RATE, subtype="PCM_16")
        records.append(
            {
                "id": f"tone{index:02d}",
                "path": f"audio/{index}.wav",
                "duration": len(wave) / RATE,
                "source": f"set{index % 2}",
            }
        )
    records.append({"id": "bad", "path": "audio/0.wav", "duration": 1.0, "source": "set0"})
    path = folder / "manifest.jsonl"
    path.write_text("".join(json.dumps(r | {"licence": "CC0-1.0"}) + "\n" for r in records), encoding="utf-8")
    return path


def recipe(folder: Path, *steps: str, part_seconds: float = 3.0) -> Path:
    """A recipe file from YAML entries."""
    path = folder / "recipe.yaml"
    path.write_text(f"part_seconds: {part_seconds}\nsteps:\n" + "".join(f"  - {s}\n" for s in steps))
    return path


STEPS = ("{name: test_halve}", "{name: test_level, least: 0.2}", "{name: test_rank}", "{name: test_level}")


def contents(out: Path) -> dict[str, bytes]:
    """Everything a run wrote that must not depend on how it ran."""
    names = [
        "manifest.jsonl",
        "dropped.jsonl",
        "card.md",
        *(str(p.relative_to(out)) for p in out.glob("[0-9]*/*.jsonl")),
    ]
    names += [str(p.relative_to(out)) for p in out.glob("audio/*/*")]
    return {name: (out / name).read_bytes() for name in sorted(names)}
