"""Long-TTS-Eval: hours of speech judged sample by sample. PAPER section 5.

    rows of a split    {"id", "text", "text_norm"}            JSONL, or the hub data set wcy1122/Long-TTS-Eval
    waves              <folder>/samples/<split>/<id>.wav
    error of a sample  min(against text, against text_norm), the transcript joined from 28 s pieces
    error of a split   mean weighted by reference words

    python -m omnilib.eval.long_tts_eval --rows rows.jsonl --split long_tts_eval_en --folder out --whisper large-v3

The paper judges en with Whisper-large-v3 and zh with Paraformer-zh; any object with `submit(wave, rate, language)` and `id` serves.
The nano long-form measures (voice drift, error along the text) are here too: same texts, same cuts.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from rapidfuzz.distance import Levenshtein

from omnilib import options
from omnilib.audio import load_wave
from omnilib.errors import AudioError, DataError, UserError, in_one_line
from omnilib.eval.judges import RATE, SpeakerJudge, Whisper
from omnilib.eval.normalize import normalize
from omnilib.eval.similarity import cosine
from omnilib.eval.wer import corpus, min_rule
from omnilib.provenance import write_json

DATASET = "wcy1122/Long-TTS-Eval"
SPLITS = ("long_tts_eval_en", "long_tts_eval_zh", "hard_tts_eval_en", "hard_tts_eval_zh")
EDGE_SECONDS = 15.0  # of the start and the end, for voice drift
PARTS = 5  # of a text, for the error along it


def language_of(split: str) -> str:
    """Language of a split.

    Raises:
        UserError: unknown split.
    """
    if split not in SPLITS:
        raise UserError(f"unknown split '{split}': choose one of {', '.join(SPLITS)}")
    return split[-2:]


def sample_path(folder: Path, split: str, sample: str) -> Path:
    """Where the wave of a sample belongs.

    Raises:
        DataError: the id leaves the folder.
    """
    path = Path(folder) / "samples" / split / f"{sample}.wav"
    if not path.resolve().is_relative_to((Path(folder) / "samples" / split).resolve()):
        raise DataError(f"sample id '{sample}' leaves the folder: ids may not hold '..' or an absolute path")
    return path


def read_rows(path: Path) -> list[dict]:
    """Rows of a split from JSONL.

    Raises:
        DataError: missing file, bad JSON, missing field.
    """
    if not Path(path).is_file():
        raise DataError(
            f"no rows at {path}: export them from the hub data set {DATASET} as JSONL with id, text, text_norm"
        )
    rows = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}:{number}: not JSON ({error.msg})") from None
        if missing := {"id", "text", "text_norm"} - set(row):
            raise DataError(f"{path}:{number}: missing {', '.join(sorted(missing))}")
        rows.append(row | {"id": str(row["id"])})
    return rows


def score(split: str, rows: Sequence[dict], folder: Path, judge) -> tuple[dict, list[dict]]:
    """Corpus figure of a split and one record per sample; a missing wave counts as silence (error 1), never left out."""
    language = language_of(split)
    paths = [sample_path(folder, split, row["id"]) for row in rows]
    waiting = [
        judge.submit(load_wave(path, RATE), RATE, language) if path.is_file() else None for path in paths
    ]
    records, lines = [], []
    for row, heard in zip(rows, waiting, strict=True):
        transcript = heard() if heard else ""
        lines.append(min_rule(row["text"], row["text_norm"], transcript, language))
        records.append(
            {
                "id": row["id"],
                "split": split,
                "transcript": transcript,
                "missing": heard is None,
                **asdict(lines[-1]),
            }
        )
    return {
        **corpus(lines),
        "split": split,
        "judge": judge.id,
        "missing": sum(r["missing"] for r in records),
    }, records


def voice_drift(
    wave: torch.Tensor, rate: int, judge: SpeakerJudge, reference: np.ndarray
) -> dict[str, float]:
    """Similarity of the first and last 15 s to each other and to the reference vector (E,)."""
    edge = round(EDGE_SECONDS * rate)
    first, last = judge.embed(wave[:edge], rate), judge.embed(wave[-edge:], rate)
    return {
        "first_last": cosine(first, last),
        "first": cosine(first, reference),
        "last": cosine(last, reference),
    }


def errors_along(text: str, transcript: str, language: str, parts: int = PARTS) -> list[float]:
    """Error rate in each of `parts` equal stretches of the reference text, from one alignment of the whole."""
    truth, heard = normalize(text, language).split(), normalize(transcript, language).split()
    errors = np.zeros(parts)
    words = np.bincount(np.arange(len(truth)) * parts // max(1, len(truth)), minlength=parts)
    for edit in Levenshtein.editops(truth, heard):
        errors[min(parts - 1, edit.src_pos * parts // max(1, len(truth)))] += 1
    return [float(e / w) if w else 0.0 for e, w in zip(errors, words, strict=True)]


def end_over_beginning(
    along: np.ndarray, seed: int = 0, draws: int = 1000
) -> tuple[float, tuple[float, float], int]:
    """Do errors pile up? Errors in the last two fifths of a text over those in the first two, with a 95 % interval.

    Args:
        along: error rates of (texts, parts), as `errors_along` gives them.

    Returns:
        The ratio, its interval when texts are drawn again with replacement, and how many parts an end has.
    """
    along, rng = np.asarray(along, dtype=float), np.random.default_rng(seed)
    edge = max(1, along.shape[1] * 2 // 5)

    def ratio(rows: np.ndarray) -> float:
        return float(rows[:, -edge:].mean() / max(rows[:, :edge].mean(), 1e-9))

    drawn = [ratio(along[rng.integers(len(along), size=len(along))]) for _ in range(draws)]
    low, high = np.percentile(drawn, [2.5, 97.5])
    return ratio(along), (float(low), float(high)), edge


def main(argv: Iterable[str] | None = None) -> None:
    """Judge a folder of waves."""
    parser = options.Parser(description=__doc__)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--split", required=True, choices=SPLITS)
    parser.add_argument("--folder", type=Path, required=True, help="holds samples/<split>/<id>.wav")
    parser.add_argument("--whisper", help="faster-whisper folder or hub id (default: Whisper base)")
    parser.add_argument("--out", type=Path, help="JSON with the figure and every record")
    args = parser.parse_args(argv)
    try:
        figure, records = score(args.split, read_rows(args.rows), args.folder, Whisper(args.whisper))
    except (UserError, AudioError) as error:
        raise SystemExit(f"error: {error}") from None
    if args.out:
        write_json(args.out, {"figure": figure, "records": records})
    print(json.dumps(figure, ensure_ascii=False, indent=1))


if __name__ == "__main__":
    with in_one_line():
        main()
