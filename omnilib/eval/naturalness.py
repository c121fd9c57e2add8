"""How natural does it sound? DNSMOS P.808 (Reddy et al. 2021): the opinion score, 1 to 5, that listeners would give, from a network.

It was trained on noisy and cleaned telephone speech, so it hears noise, clicks and buzz better than odd melody; compare systems with
each other, not with listening tests.
"""

from collections.abc import Sequence
from functools import cached_property
from importlib.metadata import version

import numpy as np
import torch

from omnilib.audio import resample
from omnilib.errors import MissingTool
from omnilib.eval.wer import bootstrap

RATE, WINDOW = 16_000, 144_160  # the network hears 9.01 s
HOP = 4 * RATE


class Naturalness:
    """Scores waves.

    Raises:
        MissingTool: speechmos is not installed.
    """

    def __init__(self) -> None:
        try:
            from speechmos import dnsmos
        except ImportError:
            raise MissingTool("speechmos is missing: pip install --no-deps speechmos==0.0.1.1") from None
        self.package = dnsmos
        self.id = f"DNSMOS P.808 (speechmos {version('speechmos')})"

    @cached_property
    def network(self):
        """The package's networks."""
        from pathlib import Path

        folder = Path(self.package.__file__).parent / "dnsmos_models"
        return self.package.DNSMOS(str(folder / "sig_bak_ovr.onnx"), str(folder / "model_v8.onnx"))

    def score(self, wave: torch.Tensor, rate: int) -> float:
        """Mean opinion score of a wave (T,): of windows of 9 s every 4 s, a shorter wave repeated until it fills one.

        Silence has none: 0.
        """
        sound = resample(wave[None], rate, RATE)[0].clamp(-1, 1).numpy() if len(wave) else np.zeros(0)
        if not len(sound) or not np.abs(sound).max() > 1e-4:
            return 0.0
        if len(sound) < WINDOW:
            sound = np.tile(sound, -(-WINDOW // len(sound)))[:WINDOW]
        scores = []
        for first in range(0, len(sound) - WINDOW + 1, HOP):
            mel = self.network.audio_melspec(audio=sound[first : first + WINDOW - 160])
            fed = mel.astype(np.float32)[None]  # (1, 900, 120)
            scores.append(float(self.network.p808_onnx_sess.run(None, {"input_1": fed})[0][0][0]))
        return float(np.mean(scores))


def figures(records: Sequence[dict]) -> dict[str, dict]:
    """`dnsmos_<language>_<system>` over the test sentences that have a score."""
    found = {}
    for language in ("en", "zh"):
        for system in ("gt", "codec", "tts"):
            scores = [
                r["dnsmos"]
                for r in records
                if (r["language"], r["system"], r["role"]) == (language, system, "eval")
                and r.get("dnsmos") is not None
            ]
            if scores:
                value, interval = bootstrap(scores)
                found[f"dnsmos_{language}_{system}"] = {"value": value, "n": len(scores), "ci95": interval}
    return found
