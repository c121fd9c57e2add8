"""The voices that `omni speak` offers: one recording each of some natural training voices.

    python -m data_prep.voices --corpus data/nano --out checkpoints/nano/voices

Writes <name>.ogg or .flac (Mandarin, as in `frozen.py`) and voices.json: {"af_heart": {"file", "text", "language"}, ...}. Names are
Kokoro's: a or b for American or British, z for Mandarin, f or m for a woman's or a man's voice. The first of a language is its
default. Held-out voices are left to the evaluation. A recording of quick speech is passed over where its text has more pieces than
its speech has rows: such a reference cannot be laid out.
"""

import json
import tempfile
from pathlib import Path

from data_prep.frozen import nearest, write_sound
from omnilib import options
from omnilib.data import load_segment, read_manifest
from omnilib.errors import DataError, in_one_line
from omnilib.mouth.rows import encode
from omnilib.paths import CHECKPOINTS, DATA
from omnilib.report.folders import replace_folder
from omnilib.text import load_tokenizer

VOICES = {
    "en": ("af_heart", "am_adam", "af_bella", "am_eric", "bf_lily", "bm_fable"),
    "zh": ("zf_xiaobei", "zm_yunxi", "zf_xiaoyi", "zm_yunjian"),
}
KINDS = ("everyday", "smalltalk")
ROWS_PER_SECOND = 6.25


def chosen(records: list[dict], tokenizer) -> list[tuple[str, dict]]:
    """(name, record) of every voice.

    Raises:
        DataError: a voice has no fitting recording.
    """

    def fits(record: dict) -> bool:
        pieces = len(encode(tokenizer, record["text"]))
        return record["kind"] in KINDS and pieces <= ROWS_PER_SECOND * record["duration"]

    found = []
    for name in (name for names in VOICES.values() for name in names):
        own = [r for r in records if r["speaker"] == name and r["split"] == "train" and fits(r)]
        if not own:
            raise DataError(
                f"the corpus has no training sentence of {name}: build it with Kokoro (`omni doctor` says what is missing)"
            )
        found.append((name, nearest("reference", sorted(own, key=lambda r: r["id"]), 1)[0]))
    return found


def write_voices(corpus: Path, out: Path, text: Path = CHECKPOINTS / "nano" / "text") -> dict[str, dict]:
    """Write the folder as a whole; returns voices.json.

    Args:
        text: folder of the text tokenizer.

    Raises:
        DataError: the corpus lacks a voice, or `out` holds something else.
    """
    if out.exists() and any(out.iterdir()) and not (out / "voices.json").is_file():
        raise DataError(f"{out} holds other files, which would be lost: choose another --out")
    voices = {}
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as place:
        new = Path(place) / "voices"
        (new / "audio").mkdir(parents=True)
        for name, record in chosen(read_manifest(corpus / "manifest.jsonl"), load_tokenizer(text)):
            wave = load_segment(record, corpus).numpy()
            made = write_sound(new, "reference", record | {"id": name}, wave, record["rate"])
            (new / made["path"]).rename(new / Path(made["path"]).name)
            voices[name] = {
                "file": Path(made["path"]).name,
                "text": record["text"],
                "language": record["language"],
                "licence": record["licence"],
            }
        (new / "audio").rmdir()
        lines = json.dumps(voices, ensure_ascii=False, indent=1) + "\n"
        (new / "voices.json").write_text(lines, encoding="utf-8")
        replace_folder(new, out)
    return voices


def main(argv: list[str] | None = None) -> None:
    parser = options.Parser(description=__doc__)
    parser.add_argument("--corpus", type=Path, default=DATA / "nano")
    parser.add_argument("--out", type=Path, default=CHECKPOINTS / "nano" / "voices")
    args = parser.parse_args(argv)
    for name, entry in write_voices(args.corpus, args.out).items():
        print(f"{name:12} {entry['text']}")


if __name__ == "__main__":
    with in_one_line():
        main()
