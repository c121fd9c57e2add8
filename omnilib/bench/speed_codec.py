"""Speed of flow and vocoder against the plain loop (`plain_codec.py`), measured in turns in one process.

    python -m omnilib.bench.speed_codec            # minutes; prints one JSON
    python -m omnilib.bench.speed_codec --tiny     # seconds: tiny random networks, to see that it runs

Each round runs plain loop and ours one after the other; a figure is the median of the rounds' ratios (plain / ours, higher is
faster), with the smallest and largest beside it. Time is CPU time of the process, so that a busy machine disturbs less.
Published sizes have random weights and few Euler steps: a step costs the same whichever it is, and ten would take an hour here.
Streaming pieces are 4 tokens, one row of the mouth; the voice prompt's share is counted.
"""

import argparse
import json
import math
import os
import resource
import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor

from omnilib.bench import plain_codec
from omnilib.errors import in_one_line
from omnilib.voice.codec import Codec, CodecSettings, Voice
from omnilib.voice.flow import EncoderConfig, EstimatorConfig, Flow, FlowConfig
from omnilib.voice.hift import HiFT, HiFTConfig

TINY_FLOW = FlowConfig(
    encoder=EncoderConfig(width=16, heads=2, linear_units=32, blocks=1, up_blocks=1),
    estimator=EstimatorConfig(channels=[16], heads=2, head_dim=8, blocks=1, mid_blocks=1),
)
TINY_HIFT = HiFTConfig(base_channels=16, f0_cond_channels=16)


class Chains:
    """The two chains on equal random weights, and a random voice."""

    def __init__(self, flow: FlowConfig, hift: HiFTConfig, steps: int, prompt: int = 150):
        torch.manual_seed(0)
        self.flow, twin, plain = Flow(flow).eval(), HiFT(hift).eval(), HiFT(hift).eval()
        torch.nn.init.normal_(self.flow.decoder.estimator.final_proj.weight, std=0.05)
        plain.load_state_dict(twin.state_dict())
        self.plain = plain_codec.PlainHiFT(plain)
        self.codec = Codec(torch.nn.Identity(), torch.nn.Identity(), self.flow, twin.fold_weight_norm())
        self.codec.settings = CodecSettings(steps=steps)
        self.steps, self.vocab = steps, flow.vocab
        self.voice = Voice(
            self.tokens(prompt), torch.randn(2 * prompt, flow.mels), torch.randn(flow.speaker_dim)
        )

    def tokens(self, count: int) -> Tensor:
        return torch.randint(self.vocab, (count,), generator=torch.Generator().manual_seed(count))

    def offline(self, tokens: Tensor) -> tuple[Callable, Callable]:
        """Plain and ours."""
        return (
            lambda: plain_codec.decode(self.flow, self.plain, tokens, self.voice, self.steps),
            lambda: self.codec.decode(tokens, self.voice),
        )

    def streaming(self, tokens: Tensor) -> tuple[Callable, Callable]:
        """Plain and ours."""
        return (
            lambda: list(plain_codec.stream(self.flow, self.plain, tokens, self.voice, self.steps)),
            lambda: list(self.codec.stream(tokens.split(4), self.voice)),
        )


def cpu_seconds(work: Callable) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def compare(plain: Callable, ours: Callable, rounds: int) -> dict:
    """{"ratio": median of plain / ours, "spread": [lowest, highest], "seconds": median of ours}."""
    pairs = [(cpu_seconds(plain), cpu_seconds(ours)) for _ in range(rounds)]
    ratios = [a / b for a, b in pairs]
    return {
        "ratio": median(ratios),
        "spread": [min(ratios), max(ratios)],
        "seconds": median(b for _, b in pairs),
    }


def exponent(lengths: list[float], costs: list[float]) -> float:
    """Slope of log cost over log length by least squares."""
    x, y = [math.log(a) for a in lengths], [math.log(b) for b in costs]
    mx, my = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True)) / sum((a - mx) ** 2 for a in x)


def first_tokens(chains: Chains) -> int:
    """Tokens that a stream has taken when its first samples come."""
    taken = 0

    def rows():
        nonlocal taken
        for token in chains.tokens(100):
            taken += 1
            yield token[None]

    next(chains.codec.stream(rows(), chains.voice))
    return taken


def measure(tiny: bool) -> dict:
    """All figures; see the module docstring. `speed_codec_full_bf16` has the U-Net in bfloat16."""
    steps, rounds, lengths = (1, 2, [1, 2, 3]) if tiny else (1, 1, [10, 20, 40, 80])
    sizes = (TINY_FLOW, TINY_HIFT) if tiny else (FlowConfig(), HiFTConfig())
    chains = Chains(*sizes, steps)
    offline, found = chains.tokens(lengths[0] * 25), {}
    cpu_seconds(lambda: chains.codec.decode(offline[:25], chains.voice))  # the first run pays for buffers
    found["speed_codec_full"] = compare(*chains.offline(offline), 1 if tiny else 3)
    found["speed_first_tokens"] = first_tokens(chains)
    costs = []
    for seconds in lengths:
        plain, ours = chains.streaming(chains.tokens(seconds * 25))
        if tiny or seconds in (10, 40):
            found[f"speed_stream_{seconds}s"] = entry = compare(plain, ours, rounds)
            costs.append(entry["seconds"])
        else:
            costs.append(cpu_seconds(ours))
    found["speed_stream_seconds"] = dict(zip(map(str, lengths), costs, strict=True))
    found["speed_stream_exponent"] = exponent(lengths, costs)
    exact = chains.codec.decode(offline, chains.voice)
    plain, ours = chains.offline(offline)
    plain_seconds = cpu_seconds(plain)  # before the weights change
    chains.flow.set_precision("bf16")
    seconds = min(cpu_seconds(ours) for _ in range(2))
    error = (chains.codec.decode(offline, chains.voice) - exact).abs().mean() / exact.std()
    found["speed_codec_full_bf16"] = {
        "ratio": plain_seconds / seconds,
        "seconds": seconds,
        "wave_error": float(error),
    }
    return found | {
        "steps": steps,
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tiny", action="store_true", help="tiny networks, a few seconds")
    print(json.dumps(measure(parser.parse_args().tiny), indent=2))


if __name__ == "__main__":
    with in_one_line():
        main()
