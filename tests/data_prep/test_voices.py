"""The offered voices: one recording each, of training sentences alone, not too quick, and the speaking side can load them."""

import json

import numpy as np
import pytest
import soundfile

from data_prep import voices
from omnilib.errors import DataError
from omnilib.speak import load_voices

RATE = 24_000


@pytest.fixture
def corpus(tmp_path):
    folder, rows = tmp_path / "nano", []
    (folder / "audio").mkdir(parents=True)
    for language, names in voices.VOICES.items():
        for number, name in enumerate(names):
            for split, kind, seconds in (
                ("train", "everyday", 5.0),
                ("train", "smalltalk", 5.01),  # so quick that its text has no room beside it
                ("train", "bible", 6.0),
                ("test", "everyday", 6.0),
            ):
                path = f"audio/{name}-{split}-{kind}.flac"
                wave = np.sin(np.arange(int(seconds * RATE)) * (0.02 + 0.003 * number)) * 0.3
                soundfile.write(folder / path, wave, RATE)
                row = {
                    "id": f"{name}-{split}-{kind}",
                    "path": path,
                    "start": 0.0,
                    "duration": seconds,
                    "rate": RATE,
                }
                times = 12 if kind == "smalltalk" else 1
                row |= {
                    "text": " ".join(["A short line." if language == "en" else "你好。"] * times),
                    "language": language,
                    "phonemes": [],
                }
                rows.append(
                    row
                    | {
                        "speaker": name,
                        "split": split,
                        "kind": kind,
                        "licence": "MIT",
                        "source": "hsk",
                        "part": "synthetic",
                    }
                )
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "manifest.jsonl").write_text(lines, encoding="utf-8")
    return folder


def test_every_voice_has_its_recording_and_the_speaker_can_load_them(corpus, tmp_path):
    out = tmp_path / "voices"
    made = voices.write_voices(corpus, out)
    assert list(made) == [*voices.VOICES["en"], *voices.VOICES["zh"]] and load_voices(out) == made
    assert {p.name for p in out.iterdir()} == {"voices.json", *(entry["file"] for entry in made.values())}
    assert {entry["text"] for entry in made.values()} == {"A short line.", "你好。"}
    for name, entry in made.items():
        assert soundfile.info(out / entry["file"]).duration == pytest.approx(5.0, abs=0.05)
        assert entry["file"] == name + (".ogg" if entry["language"] == "en" else ".flac")
    before = {p.name: p.read_bytes() for p in out.glob("*.flac")}
    voices.write_voices(corpus, out)
    assert before == {p.name: p.read_bytes() for p in out.glob("*.flac")}, "made again, the same"


def test_a_corpus_without_a_voice_and_a_folder_with_other_files_are_refused(corpus, tmp_path):
    other = tmp_path / "mine"
    other.mkdir()
    (other / "thesis.txt").write_text("dear")
    with pytest.raises(DataError, match="other files"):
        voices.write_voices(corpus, other)
    lines = [x for x in (corpus / "manifest.jsonl").read_text().splitlines() if "am_adam" not in x]
    (corpus / "manifest.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match="am_adam"):
        voices.write_voices(corpus, tmp_path / "voices")
    assert not (tmp_path / "voices").exists()
