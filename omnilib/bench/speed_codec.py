"""Speed of flow and vocoder against the plain loop (`plain_codec.py`), measured in turns in one process.

    python -m omnilib.bench.speed_codec            # minutes; prints one JSON
    python -m omnilib.bench.speed_codec --tiny     # seconds: tiny random networks, to see that it runs

Each round runs plain loop and ours one after the other; a figure is the median of the rounds' ratios (plain / ours, higher is
faster), with the smallest and largest beside it. Time is CPU time of the process, so that a busy machine disturbs less.
Ours runs in the precision that "auto" takes; `_fp32` has float32, in which both compute the same sound. Published sizes have
random weights and offline the published ten Euler steps. Streams have one: ten would take an hour in the plain loop, and
encoder and vocoder, where less is gained, weigh more with one. Streaming pieces are 4 tokens, one row of the mouth; the voice
prompt's share is counted.
"""

import copy
import json
import math
import os
import resource
import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor

from omnilib import options
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
    """The two chains on equal random weights, and a random voice.

    Args:
        precision: of ours, see `Flow.set_precision`; the plain chain is float32.
    """

    def __init__(
        self, flow: FlowConfig, hift: HiFTConfig, steps: int, prompt: int = 150, precision: str = "fp32"
    ):
        torch.manual_seed(0)
        self.flow, twin, plain = Flow(flow).eval(), HiFT(hift).eval(), HiFT(hift).eval()
        torch.nn.init.normal_(self.flow.decoder.estimator.final_proj.weight, std=0.05)
        plain.load_state_dict(twin.state_dict())
        self.plain = plain_codec.PlainHiFT(plain)
        fast = copy.deepcopy(self.flow) if precision != "fp32" else self.flow
        settings = CodecSettings(steps=steps, precision=precision)
        self.codec = Codec(torch.nn.Identity(), torch.nn.Identity(), fast, twin.fold_weight_norm(), settings)
        self.precision = fast.decoder.precision
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
        "rounds": rounds,
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
    """All figures; see the module docstring."""
    steps, rounds, lengths = (2, 2, [1, 2, 3]) if tiny else (10, 3, [10, 20, 40, 80])
    sizes = (TINY_FLOW, TINY_HIFT) if tiny else (FlowConfig(), HiFTConfig())
    found: dict = {"steps": steps, "stream_steps": 1}
    for precision in ("fp32", "auto"):
        chains = Chains(*sizes, steps, precision=precision)
        tokens = chains.tokens(lengths[0] * 25)
        chains.codec.decode(tokens[:25], chains.voice)  # the first run pays for buffers
        made = compare(*chains.offline(tokens), rounds) | {"precision": chains.precision}
        found["speed_codec_full_fp32" if precision == "fp32" else "speed_codec_full"] = made
    plain, ours = (work() for work in chains.offline(tokens))
    found["speed_codec_full"]["wave_error"] = float((ours - plain).abs().mean() / plain.std())
    chains = Chains(*sizes, 1, precision="auto")
    found["speed_first_tokens"] = first_tokens(chains)
    costs = []
    for seconds in lengths:
        plain, ours = chains.streaming(chains.tokens(seconds * 25))
        if tiny or seconds in (10, 40):
            found[f"speed_stream_{seconds}s"] = entry = compare(plain, ours, 1)
            costs.append(entry["seconds"])
        else:
            costs.append(cpu_seconds(ours))
    found["speed_stream_seconds"] = dict(zip(map(str, lengths), costs, strict=True))
    found["speed_stream_exponent"] = exponent(lengths, costs)
    return found | {
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def main() -> None:
    parser = options.Parser(description=__doc__.split("\n")[0])
    parser.add_argument("--tiny", action="store_true", help="tiny networks, a few seconds")
    print(json.dumps(measure(parser.parse_args().tiny), indent=2))


if __name__ == "__main__":
    with in_one_line():
        main()
