"""Which checkpoint is understood best? Error rates on development lines, never on the test split: recordings, copy synthesis, codec.

    python -m omnilib.eval.development                                             # the committed checkpoints, 10 minutes on 2 cores
    python -m omnilib.eval.development --hift runs/hift_a runs/hift_b --lines 8    # vocoders against each other, on the same mels

Needs the corpus in data/. copy: a recording's own mel through the vocoder; codec: its tokens spoken in the voice of another line of
its speaker. Of a few hundred words the intervals it prints are several points wide: one run that looks better by a point is none.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch
from tqdm import tqdm

from omnilib import options
from omnilib.audio import TOKENIZER_RATE, VOICE_RATE, resample
from omnilib.data import load_segment, read_manifest
from omnilib.errors import DataError, UserError, in_one_line
from omnilib.eval.judges import Whisper
from omnilib.eval.wer import corpus, line_rates
from omnilib.paths import CHECKPOINTS, DATA
from omnilib.provenance import write_json
from omnilib.voice.codec import Codec, Voice, check_window
from omnilib.voice.hift import HiFT

SYSTEMS = ("recording", "copy", "codec")
MEASURES = {"en": "wer", "zh": "pinyin"}


def chosen(records: Sequence[dict], lines: int, speakers: Sequence[str]) -> list[dict]:
    """The first `lines` records of each development speaker (of those named, or of all).

    Raises:
        DataError: there are none.
    """
    found, counts = [], {}
    for record in records:
        speaker = record["speaker"]
        if (
            record["split"] == "dev"
            and (not speakers or speaker in speakers)
            and counts.get(speaker, 0) < lines
        ):
            counts[speaker] = counts.get(speaker, 0) + 1
            found.append(record)
    if not found:
        raise DataError("no development lines: check --manifest and --speakers")
    return found


def made(
    codec: Codec, vocoders: dict[str, HiFT], records: Sequence[dict], root: Path, systems: Sequence[str]
):
    """Yield (system, vocoder name, record, wave (T,)) of every wished system; the flow runs once a line for all vocoders."""
    first = {r["speaker"]: r for r in reversed(records)}
    other = {
        r["speaker"]: r for r in records if r is not first[r["speaker"]]
    }  # the last line of each speaker
    voices: dict[str, Voice] = {}
    for record in records:
        wave = load_segment(record, root)
        if "recording" in systems:
            yield "recording", "", record, wave
        if "copy" in systems:
            for name, vocoder in vocoders.items():
                yield "copy", name, record, vocoder.stream().push(codec.mel(wave[None]), True)[0]
        if "codec" not in systems:
            continue
        prompt = (
            other.get(record["speaker"], record)
            if record is first[record["speaker"]]
            else first[record["speaker"]]
        )
        if prompt["id"] not in voices:
            voices[prompt["id"]] = codec.voice(load_segment(prompt, root), prompt["rate"])
        tokens = codec.tokenize(resample(wave, record["rate"], TOKENIZER_RATE))
        mel = torch.cat(
            [block for block, _ in codec.mel_blocks(tokens, voices[prompt["id"]])], -1
        )  # (1, M, F)
        for name, vocoder in vocoders.items():
            yield "codec", name, record, vocoder.stream().push(mel, True)[0]


@torch.inference_mode()
def measure(
    codec: Codec,
    vocoders: dict[str, HiFT],
    records: Sequence[dict],
    root: Path,
    judge: Whisper,
    systems: Sequence[str] = SYSTEMS,
) -> pd.DataFrame:
    """A row a line and system: system, vocoder, language, speaker, rates (see `omnilib.eval.wer.Rates`)."""
    waiting = []
    waves = made(codec, vocoders, records, root, systems)
    total = len(records) * sum(1 if system == "recording" else len(vocoders) for system in systems)
    for system, name, record, wave in tqdm(waves, total=total, unit="wave", disable=None):
        waiting.append((system, name, record, judge.submit(wave, VOICE_RATE, record["language"])))
    rows = []
    for system, name, record, heard in waiting:
        rates = line_rates(record["text"], heard(), record["language"])[MEASURES[record["language"]]]
        about = {key: record[key] for key in ("id", "language", "speaker")}
        rows.append({"system": system, "vocoder": name, **about, "rates": rates})
    return pd.DataFrame(rows)


def table(frame: pd.DataFrame) -> pd.DataFrame:
    """Error rate with its interval, in percent, of every system by language."""
    rows = []
    for (language, system, name), group in frame.groupby(["language", "system", "vocoder"], sort=False):
        figure = corpus(list(group["rates"]))
        low, high = figure["ci95"]
        about = {"language": language, "system": system, "vocoder": name, "words": figure["words"]}
        rows.append(about | {"error": 100 * figure["value"], "low": 100 * low, "high": 100 * high})
    return pd.DataFrame(rows)


def main(argv: list[str] | None = None) -> int:
    parser = options.Parser(description=__doc__)
    parser.add_argument(
        "--checkpoints",
        type=Path,
        default=CHECKPOINTS / "nano",
        help="folder of tokenizer, speaker, flow and hift",
    )
    parser.add_argument(
        "--hift",
        type=Path,
        nargs="*",
        default=[],
        help="vocoder folders to compare with that of --checkpoints",
    )
    parser.add_argument("--manifest", type=Path, default=DATA / "nano" / "manifest.jsonl")
    parser.add_argument("--speakers", nargs="*", default=[], help="of these only")
    parser.add_argument("--systems", nargs="*", choices=SYSTEMS, default=SYSTEMS, help="these only")
    parser.add_argument("--lines", type=options.count, default=20, help="of each speaker")
    parser.add_argument("--out", type=Path, help="write the table there, as JSON")
    args = parser.parse_args(argv)
    try:
        records = chosen(read_manifest(args.manifest), args.lines, args.speakers)
        codec = Codec.load(args.checkpoints)
        vocoders = {args.checkpoints.name: codec.hift} | {
            str(path): HiFT.load(path).fold_weight_norm() for path in args.hift
        }
        for vocoder in vocoders.values():
            check_window(codec.flow, vocoder)
        judge = Whisper()
        frame = measure(codec, vocoders, records, args.manifest.parent, judge, args.systems)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    result = table(frame)
    print(result.round(1).to_string(index=False))
    if args.out:
        by_speaker = [
            row
            for speaker, group in frame.groupby("speaker")
            for row in (table(group).assign(speaker=speaker)).to_dict("records")
        ]
        write_json(
            args.out,
            {
                "judge": judge.id,
                "lines": len(records),
                "rows": result.to_dict("records"),
                "by_speaker": by_speaker,
            },
        )
    return 0


if __name__ == "__main__":
    with in_one_line():
        raise SystemExit(main())
