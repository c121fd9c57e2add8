"""Speed of the mouth, the codec and streaming against plain loops: one command, one JSON.

    python -m omnilib.bench.speed --out reports/nano/speed.json    # a quarter of an hour, idle machine
    python -m omnilib.bench.speed --only mouth             # or codec
    python -m omnilib.bench.speed --tiny                   # seconds: tiny random networks, to see that it runs

The plain loops (`plain_mouth.py`, `plain_codec.py`) compute the same numbers from the same weights the way
the released code does. Each round runs plain and ours in turns; a figure is the median of the rounds' ratios
(plain / ours, higher is faster) with the smallest and the largest. On one thread time is CPU time of the
process, which a busy machine disturbs less; on more it is the clock on the wall. Greedy choices are part of
a row.

Keys: `speed_mouth_nano`, `speed_mouth_06b` (batch 1, the precision that "auto" takes), `speed_batch16` (rows
a second of nano at batch 16 over those at batch 1, both ours), `speed_codec_full` (likewise the precision of "auto";
`speed_codec_full_fp32` beside it), `speed_flow_full`,
`speed_vocoder_full`, `speed_stream_10s`, `speed_stream_40s`, `speed_stream_exponent`, `speed_first_sound_*`,
`speed_first_tokens`; every batch and precision under `mouth`, bytes under `memory`.
"""

import json
import os
import platform
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch

from omnilib import options
from omnilib.bench import plain_codec, speed_codec
from omnilib.bench.plain_mouth import PlainMouth
from omnilib.errors import UserError, in_one_line
from omnilib.eval.results import add_bench
from omnilib.mouth.fast_weights import StepWeights, choose_precision, count_weights
from omnilib.mouth.speechlm import SpeechLM, SpeechLMConfig
from omnilib.mouth.step import Stepper
from omnilib.paths import CHECKPOINTS
from omnilib.provenance import write_json
from omnilib.report.headlines import HEADLINES
from omnilib.voice.flow import FlowConfig
from omnilib.voice.hift import HiFTConfig, noise_at
from omnilib.weights import speechlm_preset

PARTS = ("mouth", "codec")
PROMPT = {"nano": 60, "06b": 24, "tiny": 20}  # rows; 60: a voice of six seconds with its transcript
BATCHES = {  # batch -> rows of a round
    "nano": {1: 60, 4: 30, 16: 20, 64: 8},
    "06b": {1: 6, 4: 3, 16: 2, 64: 1},
    "tiny": {1: 4, 4: 2, 16: 2},
}
ROUNDS = {"nano": 7, "06b": 3, "tiny": 2}
PRECISIONS = {"nano": ("fp32", "bf16", "int8"), "06b": ("bf16", "int8"), "tiny": ("fp32", "int8")}


def seconds_of(work: Callable) -> float:
    """CPU seconds on one thread, seconds on the wall on more."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    started = clock()
    work()
    return clock() - started


def summary(plain: list[float], ours: list[float]) -> dict:
    """Median of the ratios of each round, and the lowest and highest."""
    ratios = [a / b for a, b in zip(plain, ours, strict=True)]
    return {"ratio": median(ratios), "spread": [min(ratios), max(ratios)], "rounds": len(ratios)}


def mouth_of(size: str) -> SpeechLM:
    """The nano checkpoint's sizes, the published 0.6B, or tiny ones; random weights."""
    torch.manual_seed(0)
    if size == "tiny":
        fields = dict(vocab_size=400 + 4 * 30, tokenizer_speech_size=30, tts_adapter_config="[1,32,4_2,48]")
        fields |= dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, head_dim=8)
        return SpeechLM(SpeechLMConfig(**fields, num_attention_heads=4, num_key_value_heads=2)).eval()
    if size == "06b":
        return SpeechLM(speechlm_preset("0.6B")).eval()
    folder = CHECKPOINTS / "nano" / "speechlm"
    if not (folder / "config.json").is_file():
        raise UserError(f"no config.json in {folder}: restore the checkpoint, or measure with --only codec")
    return SpeechLM(SpeechLMConfig.from_pretrained(folder)).eval()


class Mouths:
    """Plain loop and ours at one batch size, at the same row of the same texts."""

    def __init__(self, model: SpeechLM, weights: dict[str, StepWeights], batch: int, rows: int, prompt: int):
        config = model.config
        draw = torch.Generator().manual_seed(batch)
        shape = (batch, prompt, 1 + config.speech_token_count)
        prompts = torch.randint(config.tokenizer_speech_size - 2, shape, generator=draw)
        self.first, self.rows = prompts[:, -1:], rows
        self.loops = {"plain": PlainMouth(model, prompts)}
        for name, laid_out in weights.items():
            self.loops[name] = Stepper(model, list(prompts), capacity=rows * 16, weights=laid_out)
        for name in self.loops:
            self.speak(name, 1)  # the first row pays for buffers

    def speak(self, name: str, rows: int | None = None) -> None:
        """Some rows, each with the choice of the one before (text: an id of its own)."""
        loop, text = self.loops[name], self.first[..., :1]
        for _ in range(rows or self.rows):
            speech = loop.logits.argmax(-1).tolist()
            loop.advance(torch.cat([text, torch.tensor(speech)[:, None]], -1))

    def round(self) -> dict[str, float]:
        """Seconds a row of each loop, in turns."""
        return {name: seconds_of(lambda name=name: self.speak(name)) / self.rows for name in self.loops}

    def cache_bytes(self, name: str) -> int:
        """What keys and values take for each row of one text."""
        pairs = self.loops[name].cache
        return sum(2 * keys[0, :, 0].nbytes for keys, _ in pairs)


def measure_mouth(size: str) -> dict:
    """{batch: {precision: ratios, rows a second}}, "weights", "cache_bytes_a_row", "batch16"."""
    model = mouth_of(size)
    best = choose_precision("auto", count_weights(model), torch.device("cpu"))
    names = dict.fromkeys((best, *available(PRECISIONS[size])))
    weights = {name: StepWeights(model, name) for name in names}
    found: dict = {"weights": count_weights(model), "auto": best, "cache_bytes_a_row": {}}
    singles = Mouths(model, weights, 1, BATCHES[size][1], PROMPT[size])
    for batch, rows in BATCHES[size].items():
        print(f"mouth {size}, batch {batch}", file=sys.stderr, flush=True)
        mouths = singles if batch == 1 else Mouths(model, weights, batch, rows, PROMPT[size])
        rounds = [mouths.round() for _ in range(ROUNDS[size])]
        plain = [seconds["plain"] for seconds in rounds]
        found[str(batch)] = {"plain": {"rows_per_second": batch / median(plain)}}
        for name in weights:
            ours = [seconds[name] for seconds in rounds]
            rate = {"rows_per_second": batch / median(ours)}
            found[str(batch)][name] = summary(plain, ours) | rate
            found["cache_bytes_a_row"][name] = mouths.cache_bytes(name)
        if batch == 16:  # both in turns
            pairs = [(singles.round()[best], mouths.round()[best]) for _ in range(ROUNDS[size])]
            found["batch16"] = summary([16 * one for one, _ in pairs], [many for _, many in pairs])
    return found


def available(precisions: tuple[str, ...]) -> list[str]:
    """Those that this processor has."""
    kept = []
    for precision in precisions:
        try:
            kept.append(choose_precision(precision, 0, torch.device("cpu")))
        except UserError:
            continue
    return kept


def headline(found: dict) -> dict:
    """The figure of a mouth at batch 1."""
    return found["1"][found["auto"]] | {"precision": found["auto"]}


def measure_codec(tiny: bool) -> dict:
    """`speed_codec.measure`, and flow, vocoder and first sound by themselves."""
    found = speed_codec.measure(tiny)
    sizes = (speed_codec.TINY_FLOW, speed_codec.TINY_HIFT) if tiny else (FlowConfig(), HiFTConfig())
    chains, rounds = speed_codec.Chains(*sizes, steps=1, precision="auto"), 1 if tiny else 3
    tokens, voice = chains.tokens(25 if tiny else 250), chains.voice
    given = tokens[None], voice.tokens[None], voice.mel[None], voice.speaker[None]
    mel = plain_codec.mel_of(chains.flow, tokens, voice, 1)
    noise = noise_at(0, mel.shape[-1] * sizes[1].hop, sizes[1].nb_harmonics + 1)
    found["speed_flow_full"] = speed_codec.compare(
        lambda: plain_codec.mel_of(chains.flow, tokens, voice, 1),
        lambda: chains.codec.flow.inference(*given, n_timesteps=1),
        rounds,
    )
    found["speed_vocoder_full"] = speed_codec.compare(
        lambda: chains.plain.inference(mel, None, noise),
        lambda: chains.codec.hift.inference(mel, None, noise),
        rounds,
    )
    for seconds in (1, 2) if tiny else (10, 20, 40, 80):
        known = chains.tokens(seconds * 25)
        plain, ours = (
            lambda known=known: next(plain_codec.stream(chains.flow, chains.plain, known, voice, 1)),
            lambda known=known: next(chains.codec.stream(known.split(4), voice)),
        )
        found[f"speed_first_sound_{seconds}s"] = speed_codec.compare(plain, ours, 1)
    return found


def measure(
    tiny: bool = False, parts: tuple[str, ...] = PARTS, save: Callable[[dict], None] = lambda found: None
) -> dict:
    """All figures; see the module docstring.

    Args:
        save: called with what is known after each part.
    """
    found: dict = {"machine": machine(), "memory": {}, "mouth": {}}

    def known(part: str, figures: dict) -> None:
        found.update(figures)
        found["metrics"] = headlines(found)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # so far
        found["memory"][f"peak_mib_{part}"] = peak
        found["machine"]["load_after"] = os.getloadavg()[0]
        save(found)

    if "mouth" in parts:
        for name in ("nano", "06b"):
            mouth = found["mouth"][name] = measure_mouth("tiny" if tiny else name)
            figures = {f"speed_mouth_{name}": headline(mouth)}
            if name == "nano":
                figures["speed_batch16"] = mouth["batch16"]
            known(name, figures)
    if "codec" in parts:
        known("codec", measure_codec(tiny))
    return found


def headlines(found: dict) -> dict[str, dict]:
    """Figures under their keys as every summary has them; a ratio's interval is its lowest and highest round."""
    entries = {}
    for key, figure in found.items():
        if isinstance(figure, dict) and "ratio" in figure:
            spread = figure["spread"] if figure["rounds"] > 1 else None
            entries[key] = {"value": figure["ratio"], "n": figure["rounds"], "ci95": spread}
        elif key in ("speed_first_tokens", "speed_stream_exponent"):
            entries[key] = {"value": figure, "n": 1, "ci95": None}
    return entries


def machine() -> dict:
    """Where figures come from."""
    return {
        "device": "cpu",
        "processor": torch.backends.cpu.get_cpu_capability(),
        "system": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "torch": torch.__version__,
    }


def main() -> None:
    parser = options.Parser(description=__doc__.split("\n")[0])
    parser.add_argument("--tiny", action="store_true", help="tiny networks, a few seconds")
    parser.add_argument("--only", choices=PARTS, help="one part")
    parser.add_argument(
        "--threads", type=options.count, default=1, help="of torch (default 1: CPU time is measured)"
    )
    parser.add_argument("--out", type=Path, help="a file for the JSON, beside standard output")
    args = parser.parse_args()
    torch.set_num_threads(max(1, args.threads))

    def save(found: dict) -> None:
        if args.out:
            write_json(args.out, found)

    found = measure(args.tiny, (args.only,) if args.only else PARTS, save)
    if args.out and not args.tiny:
        shown = {key: entry for key, entry in found["metrics"].items() if key in HEADLINES}
        add_bench(args.out, shown)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    with in_one_line():
        main()
