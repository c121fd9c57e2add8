"""The engine voices of the nano corpus: who speaks, how fast, how many lines, and who is kept for the test."""

from dataclasses import dataclass

from data_prep.engines import ENGINES


@dataclass(frozen=True)
class Speaker:
    """An engine voice resampled by a factor; `lines` training sentences (0: heard in the test split only)."""

    engine: str
    voice: str
    factor: float
    lines: int

    @property
    def name(self) -> str:
        return (
            f"{self.voice}_{round(self.factor * 100):03d}"
            if self.engine != "gcin"
            else f"gcin{self.voice}_{round(self.factor * 100):03d}"
        )

    @property
    def language(self) -> str:
        return ENGINES[self.engine].language


SPEAKERS = [
    Speaker("flite", "rms", 1.00, 4000),
    Speaker("flite", "rms", 0.85, 3500),
    Speaker("flite", "rms", 1.22, 3500),
    Speaker("flite", "slt", 1.00, 4000),
    Speaker("flite", "slt", 0.85, 3500),
    Speaker("flite", "slt", 1.22, 0),
    Speaker("flite", "awb", 1.00, 3000),
    Speaker("flite", "awb", 1.22, 3000),
    Speaker("flite", "awb", 0.85, 0),
    Speaker("flite", "kal16", 1.00, 4500),
    Speaker("flite", "kal16", 1.22, 4500),
    Speaker("flite", "kal16", 0.85, 0),
    Speaker("piper", "joe", 1.00, 1200),
    Speaker("piper", "joe", 0.85, 700),
    Speaker("piper", "joe", 1.22, 700),
    Speaker("gcin", "3", 0.87, 5500),
    Speaker("gcin", "3", 1.00, 5500),
    Speaker("gcin", "3", 1.15, 5500),
    Speaker("gcin", "3", 1.32, 0),
]
