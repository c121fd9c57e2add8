"""Seed-TTS-Eval: short sentences in a stranger's voice, as published tables report it (PAPER section 4).

    meta.lst           id|prompt text|prompt wave|text to speak[|ground-truth wave]     waves relative to the list
    output             <folder>/<id>.wav
    error of a line    punctuation removed (not replaced), lower case (en) or character by character (zh, simplified)
    error of a split   plain mean over lines, each line counting the same (unlike Long-TTS-Eval)
    similarity         mean cosine of output and prompt

    python -m omnilib.eval.seed_tts_eval --meta en/meta.lst --folder out --language en --whisper large-v3

Published tables use Whisper-large-v3 (en), Paraformer-zh (zh) and a WavLM-large speaker model; judges are arguments here and
their ids are written beside the figures: only equal judges compare.
"""

import json
import re
import string
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from omnilib import options
from omnilib.audio import load_wave
from omnilib.errors import DataError, UserError
from omnilib.eval.judges import RATE, SpeakerJudge, Whisper
from omnilib.eval.normalize import CJK_PUNCTUATION, check_language
from omnilib.eval.similarity import cosine
from omnilib.eval.wer import Rates, bootstrap, rates, simplified
from omnilib.provenance import write_json

REMOVED = re.compile(
    f"[{re.escape((string.punctuation + CJK_PUNCTUATION).replace(chr(39), ''))}]"
)  # the apostrophe stays


@dataclass(frozen=True)
class Item:
    """One line of meta.lst."""

    id: str
    prompt_text: str
    prompt: Path
    text: str


def read_meta(path: Path) -> list[Item]:
    """Lines of meta.lst.

    Raises:
        DataError: missing file, or a line without four or five fields.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"no list at {path}: download the Seed-TTS-Eval test set and give its meta.lst")
    items = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        fields = line.strip().split("|")
        if len(fields) not in (4, 5) or not fields[0]:
            raise DataError(
                f"{path}:{number}: need id|prompt text|prompt wave|text, found {len(fields)} fields"
            )
        items.append(Item(fields[0], fields[1], path.parent / fields[2], fields[3]))
    return items


def line_error(truth: str, heard: str, language: str) -> Rates:
    """Error of a line under this protocol's own normalisation.

    Raises:
        UserError: unknown language.
    """
    check_language(language)
    texts = [
        REMOVED.sub("", simplified(text) if language == "zh" else text).replace("  ", " ")
        for text in (truth, heard)
    ]
    truth, heard = (" ".join(text) if language == "zh" else text.lower().strip() for text in texts)
    return rates(truth, heard)


def score(
    items: Sequence[Item], folder: Path, language: str, judge, speaker_judge=None
) -> tuple[dict, list[dict]]:
    """Figures and one record per line; a missing wave counts as silence (error 1, similarity 0)."""
    paths = [Path(folder) / f"{item.id}.wav" for item in items]
    waves = [load_wave(path, RATE) if path.is_file() else None for path in paths]
    waiting = [None if wave is None else judge.submit(wave, RATE, language) for wave in waves]
    records = []
    for item, wave, heard in zip(items, waves, waiting, strict=True):
        transcript = heard() if heard else ""
        record = {
            "id": item.id,
            "transcript": transcript,
            "missing": wave is None,
            **asdict(line_error(item.text, transcript, language)),
        }
        if speaker_judge is not None:
            prompt = speaker_judge.embed(load_wave(item.prompt, RATE), RATE)
            record["similarity"] = 0.0 if wave is None else cosine(prompt, speaker_judge.embed(wave, RATE))
        records.append(record)
    figures = {"error": figure([r["error"] for r in records], judge.id)}
    if speaker_judge is not None:
        figures["similarity"] = figure([r["similarity"] for r in records], speaker_judge.id)
    return figures, records


def figure(values: Sequence[float], judge: str) -> dict:
    """Plain mean with n, ci95 and the judge's id."""
    value, interval = bootstrap(values)
    return {"value": value, "n": len(values), "ci95": interval, "judge": judge}


def main(argv: Iterable[str] | None = None) -> None:
    """Judge a folder of waves."""
    parser = options.Parser(description=__doc__)
    parser.add_argument("--meta", type=Path, required=True)
    parser.add_argument("--folder", type=Path, required=True, help="holds <id>.wav")
    parser.add_argument("--language", required=True, choices=("en", "zh"))
    parser.add_argument("--whisper", help="faster-whisper folder or hub id (default: Whisper base)")
    parser.add_argument("--out", type=Path, help="JSON with the figures and every record")
    args = parser.parse_args(argv)
    try:
        figures, records = score(
            read_meta(args.meta), args.folder, args.language, Whisper(args.whisper), SpeakerJudge()
        )
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
    if args.out:
        write_json(args.out, {"figures": figures, "records": records})
    print(json.dumps(figures, ensure_ascii=False, indent=1))


if __name__ == "__main__":
    main()
