"""Transcripts as they are spoken: numbers, markup and symbols become words (omnilib/spoken.py), the script fits the language.

`text` becomes the spoken form, `written` keeps what was given. A record without text gets the recogniser's (`heard`), where
there is one, and `text_source: heard`. Reasons: empty_text, wrong_script, unspeakable.
"""

import re
from dataclasses import dataclass
from typing import ClassVar

from data_prep.pipeline import Audio, Step, dropped, register
from omnilib.errors import UserError
from omnilib.spoken import HAN, LANGUAGES, clean_text, detect_language

HAN_CHAR, LATIN_CHAR = re.compile(f"[{HAN}]"), re.compile("[A-Za-z\u00c0-\u024f]")


def script_share(text: str, language: str) -> float:
    """Share of letters that belong to the language's script."""
    letters = [c for c in text if c.isalpha()]
    pattern = HAN_CHAR if language == "zh" else LATIN_CHAR
    return sum(bool(pattern.match(c)) for c in letters) / max(1, len(letters))


@register
@dataclass
class Text(Step):
    """Spoken form and script check."""

    name: ClassVar[str] = "text"
    modules: ClassVar[tuple[str, ...]] = (
        "omnilib.spoken",
        "omnilib.spoken_en",
        "omnilib.spoken_zh",
        "omnilib.spoken_numbers",
    )
    least_script: float = 0.5  # zh text may hold English names; en text holds no Han at all

    def run(self, records: list[dict], audio: Audio) -> list[dict]:
        return [self.spoken(record) for record in records]

    def spoken(self, record: dict) -> dict:
        given = (record.get("text") or "").strip()
        written = given or (record.get("heard") or "").strip()
        if not written:
            return dropped(record, self.name, "empty_text")
        language = record.get("language") or record.get("heard_language") or detect_language(written)
        foreign = language == "en" and HAN_CHAR.search(written)
        if language in LANGUAGES and (foreign or script_share(written, language) < self.least_script):
            return dropped(record, self.name, "wrong_script")
        try:
            text = clean_text(written, language)
        except UserError:
            return dropped(record, self.name, "unspeakable")
        source = {} if given else {"text_source": "heard"}
        return record | {"text": text, "written": written, "language": language} | source
