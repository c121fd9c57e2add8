"""Freeze a small subset of the nano corpus for evaluation and demos: committed, so that only retraining needs the engines.

    python -m data_prep.frozen --corpus data/nano --out data_prep/frozen
    python -m data_prep.frozen --corpus data/nano --out data/frozen_all --all     # not committed: every everyday sentence

Writes manifest.jsonl, Opus files (about 35 kbit/s, 24 kHz), Mandarin to be judged or cloned as FLAC of 14 bits at 16 kHz,
and longform.jsonl: the texts of 300-500 words, of 10 and of 60 minutes. The nano speech tokenizer reads clean Mandarin with
5 % phoneme error, and the same after Opus of 22 to 59 kbit/s with 17 to 21 %; English does not mind (8 %). Of its tokens of
Mandarin 99 % are the same from 14 bits (118 kbit/s) as from 16 (148), 96 % from 13, 66 % from Opus. Roles:
    reference  one recording a speaker to clone the voice from
    eval       everyday test sentences in held-out voices, no word filtered: the headline figures
    open       other test sentences (quotations, dictionary, Bible, poems) in those voices
    seen       everyday test sentences in voices heard in training
    pair       two more recordings a held-out voice, for the threshold of the speaker judge
    gallery    one recording of each of 40 training voices a language: strangers for the speaker judge
    train      training sentences of a few voices, so that notebooks train at `smoke` without the corpus
    human      telephone prompts read by a person (asterisk-core-sounds-en, CC-BY-SA-3.0), test only
"""

import gzip
import re
import shutil
from pathlib import Path

import numpy as np
import soundfile
import torch
from tqdm import tqdm

from data_prep.engines import RATE
from data_prep.open_plan import key_of
from omnilib import options
from omnilib.audio import TOKENIZER_RATE, resample
from omnilib.data import load_segment, read_manifest, write_manifest
from omnilib.errors import DataError, MissingTool, UserError
from omnilib.paths import DATA, ROOT
from omnilib.report.folders import fresh_folder, replace_folder

OPUS_LEVEL = 0.9  # libsndfile's scale from 0 (260 kbit/s) to 1 (6 kbit/s)
LOSSLESS = {"zh": ("eval", "reference")}  # language -> roles
BITS = 14  # of lossless samples; FLAC does not store the others
EVERYDAY_LINES = {"en": 170, "zh": 100}
OPEN_LINES = 2  # a held-out voice
SEEN_SPEAKERS, SEEN_LINES = {"en": 8, "zh": 4}, 4
TRAIN_SPEAKERS, TRAIN_LINES = {"en": 6, "zh": 3}, 6
GALLERY = 40  # voices a language
HUMAN_LINES = 30
# recordings nearest to these lengths are taken
SECONDS = {"reference": 5.0, "pair": 3.0, "gallery": 2.5, "train": 2.4}
REFERENCE = (3.5, 8.0)  # seconds of a reference, wherever there is one
RATE_OF_PIECES = (
    4.8  # text pieces a second: the mouth has 6.25 rows a second for the transcript of a reference
)
MOST_BYTES = 9_800_000  # of 10 MB: the judge's transcripts (heard.json) come to them
ASTERISK = Path("/usr/share/asterisk/sounds/en_US_f_Allison")
ASTERISK_TEXT = Path("/usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz")


def pieces(text: str, language: str) -> int:
    """About how many pieces a tokenizer of short pieces cuts a transcript into."""
    return (
        len(text)
        if language == "zh"
        else sum(-(-len(word) // 3) for word in re.findall(r"\w+|[^\w\s]", text))
    )


def nearest(role: str, records: list[dict], count: int) -> list[dict]:
    """The `count` recordings whose length suits a role best; a reference is spoken slowly enough for its transcript."""

    def away(record: dict) -> tuple[float, ...]:
        distance = abs(record["duration"] - SECONDS[role])
        if role != "reference":
            return (distance,)
        rate = pieces(record["text"], record["language"]) / record["duration"]
        least, most = REFERENCE
        known = record.get("in_lexicon", True)  # rare words are cut into more pieces
        outside = max(0.0, least - record["duration"], record["duration"] - most)
        return outside, not known, max(0.0, rate - RATE_OF_PIECES), distance

    return sorted(records, key=away)[:count]


def choose(records: list[dict], every: bool = False) -> list[tuple[str, dict]]:
    """(role, record) of every recording to freeze; with `every` the references and all everyday test sentences.

    A sentence that is judged is never a reference.
    """
    chosen = []
    for language in ("en", "zh"):
        mine: dict[str, list[dict]] = {}  # speaker -> records, in an order that the corpus does not decide
        for record in sorted(records, key=lambda r: key_of(r["id"])):
            if record["part"] == "synthetic" and record["language"] == language:
                mine.setdefault(record["speaker"], []).append(record)
        chosen += of_held_out(mine, language, every) + of_seen(mine, language, every)
        if not every:
            taken = {r["id"] for _, r in chosen}
            free = {name: [r for r in some if r["id"] not in taken] for name, some in mine.items()}
            chosen += of_training(free, language)
    return chosen


def of_held_out(speakers: dict[str, list[dict]], language: str, every: bool) -> list[tuple[str, dict]]:
    """Roles of the voices that are heard in the test split only; sentences written by hand come first."""
    chosen, everyday = [], []
    for mine in speakers.values():
        if mine[0]["seen_speaker"]:
            continue
        reference = nearest("reference", [r for r in mine if r["set"] in ("open", "everyday")], 1)
        other = [r for r in mine if r["set"] == "open"]
        pairs = nearest("pair", [r for r in other if r not in reference], 2)
        chosen += [("reference", r) for r in reference]
        if not every:
            rest = [r for r in other if r not in reference + pairs]
            chosen += [("pair", r) for r in pairs] + [("open", r) for r in rest[:OPEN_LINES]]
        everyday += [r for r in mine if r["set"] == "everyday" and r not in reference]
    everyday.sort(key=lambda r: (r["kind"] != "newcomer", key_of(r["id"])))
    return chosen + [("eval", r) for r in everyday[: None if every else EVERYDAY_LINES[language]]]


def of_seen(speakers: dict[str, list[dict]], language: str, every: bool) -> list[tuple[str, dict]]:
    """Test sentences in training voices, and another recording of each voice as its reference."""
    chosen = []
    for mine in speakers.values():
        lines = [r for r in mine if r["set"] == "seen"]
        reference = nearest("reference", [r for r in mine if r["split"] in ("train", "dev")], 1)
        if lines and reference:
            chosen.append([("reference", reference[0]), *(("seen", r) for r in lines[:SEEN_LINES])])
    return [pair for some in chosen[: None if every else SEEN_SPEAKERS[language]] for pair in some]


def of_training(speakers: dict[str, list[dict]], language: str) -> list[tuple[str, dict]]:
    """Strangers of the language for the speaker judge, and sentences to train on at `smoke`."""
    chosen = []
    for mine in speakers.values():
        chosen += [("gallery", r) for r in nearest("gallery", [r for r in mine if r["split"] == "dev"], 1)]
    chosen = chosen[:GALLERY]
    lines = {name: [r for r in mine if r["split"] == "train"] for name, mine in speakers.items()}
    enough = [some for some in lines.values() if len(some) >= TRAIN_LINES]
    for some in enough[: TRAIN_SPEAKERS[language]]:
        chosen += [("train", r) for r in nearest("train", some, TRAIN_LINES)]
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


def check(chosen: list[tuple[str, dict]], corpus: Path) -> None:
    """Refuse a corpus that lacks a role.

    Raises:
        DataError: which role and language have no recording, or that there are no long texts.
    """
    if not (corpus / "long_texts.jsonl").is_file():
        raise DataError(f"no long_texts.jsonl in {corpus}: build the corpus with `omni data build-nano`")
    have = {(role, r["language"]) for role, r in chosen}
    wanted = {("reference", language) for language in ("en", "zh")} | {("eval", "en"), ("eval", "zh")}
    if absent := sorted(wanted - have):
        named = ", ".join(f"'{role}' in {language}" for role, language in absent)
        raise DataError(f"{corpus} has no recording for {named}: finish it with `omni data build-nano`")


def freeze(corpus: Path, out: Path, every: bool = False) -> str:
    """Write the subset, or with `every` all everyday test lines; returns the manifest's sha256.

    Raises:
        DataError: the corpus is unfinished, the subset is too large, or `out` holds something else.
    """
    chosen = choose(read_manifest(corpus / "manifest.jsonl"), every)
    check(chosen, corpus)
    if out.exists() and any(out.iterdir()) and not (out / "manifest.jsonl").is_file():
        raise DataError(f"{out} holds other files, which would be lost: choose another --out")
    waves = [(role, r, lambda r=r: (load_segment(r, corpus).numpy(), RATE)) for role, r in chosen]
    if not every:
        waves += [("human", record, lambda w=wave: (w, 16_000)) for record, wave in human()]
    frozen = []
    with fresh_folder(out) as new:
        (new / "audio").mkdir()
        for role, record, read in tqdm(waves, desc="freeze", unit="file"):
            place = write_sound(new, role, record, *read())
            frozen.append(record | {"start": 0.0, "role": role} | place)
        digest = write_manifest(new / "manifest.jsonl", frozen)
        if not every:
            shutil.copyfile(corpus / "long_texts.jsonl", new / "longform.jsonl")
            size = sum(f.stat().st_size for f in new.rglob("*") if f.is_file())
            if size > MOST_BYTES:
                raise DataError(
                    f"the frozen set has {size / 1e6:.1f} MB, more than {MOST_BYTES / 1e6:.1f} MB: "
                    "freeze fewer lines"
                )
        replace_folder(new, out)
    return digest


def write_sound(folder: Path, role: str, record: dict, wave: np.ndarray, rate: int) -> dict:
    """Write the wave (T,) as the role needs it; returns path, duration and rate."""
    if role in LOSSLESS.get(record["language"], ()):
        path = f"audio/{record['id']}.flac"
        wave, rate = resample(torch.from_numpy(wave), rate, TOKENIZER_RATE).numpy(), TOKENIZER_RATE
        step = 1 << (16 - BITS)
        whole = (np.round(wave * (32768 / step)) * step).clip(-32768, 32768 - step).astype(np.int16)
        soundfile.write(folder / path, whole, rate, format="FLAC", subtype="PCM_16", compression_level=1.0)
    else:
        path = f"audio/{record['id']}.ogg"
        soundfile.write(folder / path, wave, rate, format="OGG", subtype="OPUS", compression_level=OPUS_LEVEL)
    return {"path": path, "duration": len(wave) / rate, "rate": rate}


def main(argv: list[str] | None = None) -> None:
    parser = options.Parser(description=__doc__)
    parser.add_argument("--corpus", type=Path, default=DATA / "nano")
    parser.add_argument("--out", type=Path, default=ROOT / "data_prep" / "frozen")
    parser.add_argument(
        "--all",
        action="store_true",
        help="every everyday test sentence and the references, nothing else",
    )
    args = parser.parse_args(argv)
    try:
        print(f"frozen manifest sha256 {freeze(args.corpus, args.out, args.all)}")
    except (UserError, OSError, soundfile.SoundFileError) as error:  # a full disk has several names
        raise SystemExit(f"error: {error}; the earlier subset is still there") from None


if __name__ == "__main__":
    main()
