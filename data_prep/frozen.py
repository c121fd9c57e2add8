"""Freeze a small subset of the nano corpus for evaluation and demos: committed, so that only retraining needs the engines.

    python -m data_prep.frozen --corpus data/nano --out data_prep/frozen
    python -m data_prep.frozen --corpus data/nano --out data/frozen_all --all     # not committed: every test sentence of in-lexicon words

From a corpus of the open plan (`data_prep/open_corpus.py`) `eval` holds its everyday test sentences, no word
filtered, and longform.jsonl its long texts: 300-500 words, 10 minutes, 60 minutes.
Writes Opus files (about 35 kbit/s, 24 kHz), Mandarin to be judged or cloned as FLAC at 16 kHz, manifest.jsonl and longform.jsonl.
The nano speech tokenizer reads clean Mandarin with 5 % phoneme error, and the same after Opus of 22 to 59 kbit/s with 17 to 21 %, although
it heard noise in training. English does not mind (8 %). Roles:
    reference  one recording a speaker to clone the voice from
    eval       test sentences of in-lexicon words          open   test sentences with other words
    pair       two more recordings a speaker for the speaker judge's threshold
    train      a few training sentences, so that notebooks train at `smoke` without the corpus
    gallery    one recording of each of 40 training speakers, impostors for the speaker judge (natural corpus only)
    human      telephone prompts read by a person (asterisk-core-sounds-en, CC-BY-SA-3.0), test only
"""

import argparse
import gzip
import re
from pathlib import Path

import numpy as np
import soundfile
import torch
from tqdm import tqdm

from data_prep import texts
from data_prep.engines import RATE
from data_prep.nano import key_of
from data_prep.speakers import SPEAKERS
from omnilib.audio import TOKENIZER_RATE, resample
from omnilib.data import load_segment, read_manifest, write_manifest
from omnilib.errors import DataError, MissingTool, UserError
from omnilib.paths import DATA, ROOT

OPUS_LEVEL = 0.9  # libsndfile's scale from 0 (260 kbit/s) to 1 (6 kbit/s)
LOSSLESS = {"zh": ("eval", "reference", "pair")}  # language -> roles
EVAL_LINES = {"en": 8, "zh": 25}  # a speaker
OPEN_LINES = {"en": 3, "zh": 8}
TRAIN_LINES = 6
EVERYDAY_LINES = {"en": 200, "zh": 100}  # of the natural corpus
OPEN_LINES_UNSEEN, GALLERY = 4, 40
MOST_BYTES = 10_000_000
HUMAN_LINES = 30
REFERENCE_SECONDS = 5.0  # references are the test sentences nearest to this length
LONG_TEXTS, LONG_WORDS = 10, (300, 500)
# Whisper writes number words as digits and knows no "Yahweh": such sentences measure the judge, not the voice, so none is judged
JUDGE_TRAPS = re.compile(
    r"\b(\w*teen|ten|eleven|twelve|\w+ty|hundreds?|thousands?|\w*(first|second|third|fourth|fifth|sixth|seventh|eighth|ninth|tenth)|yahweh)\b",
    re.I,
)
ASTERISK = Path("/usr/share/asterisk/sounds/en_US_f_Allison")
ASTERISK_TEXT = Path("/usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz")


def choose(records: list[dict], every: bool = False) -> list[tuple[str, dict]]:
    """(role, record) of every recording to freeze; with `every` the references and all test sentences that can be judged."""
    chosen = []
    for speaker in SPEAKERS:
        mine = [r for r in records if r["speaker"] == speaker.name and not JUDGE_TRAPS.search(r["text"])]
        mine.sort(key=lambda r: key_of(r["id"]))
        test = [r for r in mine if r["split"] == "test" and r["in_lexicon"]]
        reference, *pairs = sorted(test, key=lambda r: abs(r["duration"] - REFERENCE_SECONDS))[:3]
        rest = [r for r in test if r not in (reference, *pairs)]
        unknown = [r for r in mine if r["split"] == "test" and not r["in_lexicon"]]
        chosen.append(("reference", reference))
        if every:
            chosen += [("eval", r) for r in rest]
            continue
        chosen += [("pair", r) for r in pairs]
        chosen += [("eval", r) for r in rest[: EVAL_LINES[speaker.language]]]
        chosen += [("open", r) for r in unknown[: OPEN_LINES[speaker.language]]]
        chosen += [("train", r) for r in mine if r["split"] == "train"][:TRAIN_LINES]
    return chosen


def human() -> list[tuple[dict, np.ndarray]]:
    """Prompts read by a person: record and wave at 16 kHz.

    Raises:
        MissingTool: the package is not installed.
    """
    if not ASTERISK.is_dir() or not ASTERISK_TEXT.is_file():
        raise MissingTool(
            "the human prompts are missing: apt-get install asterisk-core-sounds-en asterisk-core-sounds-en-g722"
        )
    import av

    found = []
    for line in gzip.decompress(ASTERISK_TEXT.read_bytes()).decode("utf-8", "replace").splitlines():
        name, _, text = line.partition(":")
        path = ASTERISK / f"{name.strip()}.g722"
        plain = re.fullmatch(r"[A-Za-z',. ]+", text.strip())
        if path.is_file() and plain and 5 <= len(text.split()) <= 16:
            found.append((name.strip(), text.strip(), path))
    records = []
    for name, text, path in sorted(found, key=lambda f: key_of(f[0]))[:HUMAN_LINES]:
        with av.open(str(path), format="g722") as file:
            frames = [f.to_ndarray().reshape(-1) for f in file.decode(audio=0)]
        wave = np.concatenate(frames).astype(np.float32) / 32768
        record = {
            "id": f"human-{name.replace('/', '-')}",
            "text": text,
            "language": "en",
            "speaker": "allison",
            "source": "asterisk-core-sounds-en",
        }
        records.append(
            (
                record
                | {
                    "licence": "CC-BY-SA-3.0",
                    "split": "test",
                    "in_lexicon": False,
                    "seen_speaker": False,
                    "phonemes": [],
                },
                wave,
            )
        )
    return records


def long_texts(records: list[dict]) -> list[dict]:
    """Ten texts of 300-500 words made of test sentences, and the reference voice each is to be spoken in."""
    lines = texts.sentences("en")
    lexicon = texts.lexicon(lines, "en")
    spoken = {r["text"] for r in records if r["split"] != "test"}
    pool = [
        t
        for _, t in lines
        if key_of(t + "split") % 100 < 3
        and all(w in lexicon for w in texts.words(t, "en"))
        and t not in spoken
        and not JUDGE_TRAPS.search(t)
    ]
    speakers = [s.name for s in SPEAKERS if s.language == "en"]
    rng = np.random.default_rng(7)
    result, cursor = [], 0
    for index in range(LONG_TEXTS):
        target, parts, count = int(rng.integers(LONG_WORDS[0], LONG_WORDS[1] - 15)), [], 0
        while count < target:
            parts.append(pool[cursor % len(pool)])
            count += len(texts.words(pool[cursor % len(pool)], "en"))
            cursor += 1
        result.append(
            {
                "id": f"long-en-{index:02d}",
                "language": "en",
                "text": " ".join(parts),
                "words": count,
                "speaker": speakers[index % len(speakers)],
            }
        )
    return result


def choose_open(records: list[dict]) -> list[tuple[str, dict]]:
    """(role, record) of the natural corpus: `everyday` sentences of unseen speakers, no word filtered.

    A reference and two more recordings a speaker are taken from sentences that are not judged.
    """
    chosen = []
    by_speaker: dict[str, list[dict]] = {}
    for record in sorted(records, key=lambda r: key_of(r["id"])):
        if record["part"] == "synthetic":
            by_speaker.setdefault(record["speaker"], []).append(record)
    near = lambda r: abs(r["duration"] - REFERENCE_SECONDS)  # noqa: E731
    for mine in by_speaker.values():
        if mine[0]["seen_speaker"]:
            continue
        other = sorted((r for r in mine if r["set"] == "open"), key=near)
        chosen += [("reference", r) for r in other[:1]] + [("pair", r) for r in other[1:3]]
        chosen += [("open", r) for r in other[3 : 3 + OPEN_LINES_UNSEEN]]
    for language, count in EVERYDAY_LINES.items():
        mine = [r for some in by_speaker.values() for r in some if r["language"] == language]
        everyday = [r for r in mine if r["set"] == "everyday"]
        everyday.sort(key=lambda r: (r["kind"] != "newcomer", key_of(r["id"])))
        chosen += [("eval", r) for r in everyday[:count]]
    seen = [mine for mine in by_speaker.values() if any(r["split"] == "dev" for r in mine)]
    chosen += [
        ("gallery", min((r for r in mine if r["split"] == "dev"), key=near)) for mine in seen[:GALLERY]
    ]
    chosen += [("train", r) for mine in seen for r in mine if r["split"] == "train"][: 2 * TRAIN_LINES]
    return chosen


def freeze(corpus: Path, out: Path, every: bool = False) -> str:
    """Write the subset, or with `every` all chosen test lines; returns the manifest's sha256."""
    records = read_manifest(corpus / "manifest.jsonl")
    (out / "audio").mkdir(parents=True, exist_ok=True)
    frozen = []
    natural = (corpus / "long_texts.jsonl").exists()  # a corpus of the open plan
    chosen = choose_open(records) if natural else choose(records, every)
    waves = [(role, r, lambda r=r: (load_segment(r, corpus).numpy(), RATE)) for role, r in chosen]
    if not every:
        waves += [("human", record, lambda w=wave: (w, 16_000)) for record, wave in human()]
    for role, record, read in tqdm(waves, desc="freeze", unit="file"):
        wave, rate = read()
        path = f"audio/{record['id']}"
        if role in LOSSLESS.get(record["language"], ()):
            path += ".flac"
            wave, rate = resample(torch.from_numpy(wave), rate, TOKENIZER_RATE).numpy(), TOKENIZER_RATE
            soundfile.write(out / path, wave, rate, format="FLAC", subtype="PCM_16")
        else:
            path += ".ogg"
            soundfile.write(
                out / path, wave, rate, format="OGG", subtype="OPUS", compression_level=OPUS_LEVEL
            )
        frozen.append(
            record | {"path": path, "start": 0.0, "duration": len(wave) / rate, "rate": rate, "role": role}
        )
    if not every:
        if natural:
            (out / "longform.jsonl").write_bytes((corpus / "long_texts.jsonl").read_bytes())
        else:
            write_manifest(out / "longform.jsonl", long_texts(records))
    if not every and (size := sum(f.stat().st_size for f in out.rglob("*"))) > MOST_BYTES:
        raise DataError(
            f"the frozen set has {size / 1e6:.1f} MB, more than the {MOST_BYTES / 1e6:.0f} MB that are committed: freeze fewer lines"
        )
    return write_manifest(out / "manifest.jsonl", frozen)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", type=Path, default=DATA / "nano")
    parser.add_argument("--out", type=Path, default=ROOT / "data_prep" / "frozen")
    parser.add_argument(
        "--all",
        action="store_true",
        help="every test sentence of in-lexicon words and the references, nothing else",
    )
    args = parser.parse_args(argv)
    try:
        print(f"frozen manifest sha256 {freeze(args.corpus, args.out, args.all)}")
    except UserError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
