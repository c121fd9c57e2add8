"""Speed of mouth and codec on a GPU, each measurement beside the roofline of its work (`roofline.py`).

    python -m omnilib.bench.gpu --size 2B --out gpu.json        # minutes on a CUDA device
    python -m omnilib.bench.gpu --size 2B --estimate h200       # no GPU: what to expect of one
    python -m omnilib.bench.gpu --size tiny --device cpu        # seconds: to see that it runs

Weights are random: a row or an Euler step costs the same whatever they are. Keys are those of the CPU bench. Two ratios:

- mouth    rows a second against a *plain loop* on the same weights and device: transformers' modules with their own growing
           cache, one forward a row, ids read back after every row
- codec    captured Euler steps against the same steps launched one by one

Rounds run in turns, a figure is the median of the rounds' ratios. `rtf` is one text alone: seconds of mouth and codec for a
second of speech. `train_mfu` is the share of the peak that training reaches, 6 operations a weight and row and
12 layers x width x length for attention (PaLM, arXiv 2204.02311, appendix B).
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch import Tensor
from transformers import DynamicCache

from omnilib import config as configs
from omnilib import options
from omnilib.bench import roofline
from omnilib.bench.roofline import DEVICES, GOOD, Device, Reach, seconds
from omnilib.device import check_device
from omnilib.errors import UserError
from omnilib.mouth.chunking import ChunkMachine
from omnilib.mouth.decode import Decoder, DecodeSettings, decoder_of, run, sampling_of
from omnilib.mouth.speechlm import SpeechLM, SpeechLMConfig
from omnilib.mouth.static_step import StaticStep, join_weights, slots_for, window_for
from omnilib.paths import CHECKPOINTS
from omnilib.voice.captured_flow import CapturedSteps, padded
from omnilib.voice.codec import Codec, CodecSettings, Voice
from omnilib.voice.flow import RATIO, EncoderConfig, EstimatorConfig, Flow, FlowConfig
from omnilib.voice.hift import HiFT, HiFTConfig
from omnilib.weights import speechlm_preset

SIZES = ("tiny", "nano", "0.6B", "2B")
BATCHES = (1, 4, 16, 64)
PROMPT = 100  # rows
LENGTHS = (10, 20, 40, 80)  # seconds of speech
TRAIN_ROWS = (4, 2048)  # a batch of training


# ---- models ---------------------------------------------------------------------------------------------------------


def mouth_config(size: str) -> SpeechLMConfig:
    """Sizes of the mouth."""
    if size == "nano":
        return SpeechLMConfig.from_pretrained(CHECKPOINTS / "nano" / "speechlm")
    if size != "tiny":
        return speechlm_preset(size)
    return SpeechLMConfig(
        vocab_size=60 + 4 * 29,
        tokenizer_speech_size=29,
        tts_adapter_config="[1,32,2_2,64]",
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=1,
    )


def codec_configs(size: str) -> tuple[FlowConfig, HiFTConfig]:
    """Sizes of flow and vocoder; those beside the published mouths are the published ones."""
    if size == "nano":
        folder = CHECKPOINTS / "nano"
        return (
            configs.load(FlowConfig, folder / "flow" / "config.yaml"),
            configs.load(HiFTConfig, folder / "hift" / "config.yaml"),
        )
    if size != "tiny":
        return FlowConfig(), HiFTConfig()
    flow = FlowConfig(
        vocab=27,
        encoder=EncoderConfig(width=16, heads=2, linear_units=32, blocks=1, up_blocks=1),
        estimator=EstimatorConfig(channels=[16], heads=2, head_dim=8, blocks=1, mid_blocks=1),
    )
    return flow, HiFTConfig(base_channels=16, f0_cond_channels=16)


def dtype_on(device: torch.device) -> torch.dtype:
    """Of the mouth's weights: bfloat16 on a GPU, as published."""
    return torch.float32 if device.type == "cpu" else torch.bfloat16


class Bench:
    """Mouth and codec with random weights on a device.

    Args:
        size: of `SIZES`.
        device: where they run.
    """

    def __init__(self, size: str, device: torch.device):
        torch.manual_seed(0)
        self.size, self.device, self.tiny = size, device, size == "tiny"
        self.rows = 10 if self.tiny else 256  # of a measurement
        with device:
            model = SpeechLM(mouth_config(size))
            flow, hift = codec_configs(size)
            flow, hift = Flow(flow).eval(), HiFT(hift).eval().fold_weight_norm()
            torch.nn.init.normal_(flow.decoder.estimator.final_proj.weight, std=0.05)
        self.model = join_weights(model.to(dtype_on(device)).eval())
        identity = torch.nn.Identity()
        self.codec = Codec(identity, identity, flow, hift, CodecSettings(precision="auto"))
        self.layout = model.config.layout()
        self.seconds_per_row = self.layout.streams / 25
        count = 30 if self.tiny else 150
        self.voice = Voice(
            self.tokens(count).to(device),
            torch.randn(RATIO * count, flow.config.mels).to(device),
            torch.randn(flow.config.speaker_dim).to(device),
        )

    def tokens(self, count: int) -> Tensor:
        g = torch.Generator().manual_seed(count)
        return torch.randint(self.codec.flow.config.vocab, (count,), generator=g)

    def settings(self, static: str) -> DecodeSettings:
        return DecodeSettings(max_rows=self.rows, static=static, rows_per_token=1e6, eos_streams=99)

    def prompt(self) -> Tensor:
        g = torch.Generator().manual_seed(1)
        return torch.randint(self.layout.speech_eos, (PROMPT, 1 + self.layout.streams), generator=g) % 50

    def machine(self, settings: DecodeSettings) -> ChunkMachine:
        """A text that never ends."""
        return ChunkMachine(self.layout, settings.rules(), lambda i: "word", [i % 50 for i in range(60)])

    def decoder(self, batch: int, static: str) -> Decoder:
        settings = self.settings(static)
        machines = [self.machine(settings) for _ in range(batch)]
        return decoder_of(self.model, self.layout, [self.prompt()] * batch, machines, settings)


# ---- the plain loop -------------------------------------------------------------------------------------------------


class PlainMouth:
    """A batch decoded greedily by transformers' modules: every forward takes one row, ids are read back each time."""

    def __init__(self, model: SpeechLM, prompts: Tensor):
        self.model, self.caches, self.length = model, (DynamicCache(), DynamicCache()), 0
        self.logits = self.advance(prompts)  # (B, k, S)

    @torch.inference_mode()
    def advance(self, rows: Tensor) -> Tensor:
        """rows (B, L, 1 + k) -> logits after the last of them (B, k, S)."""
        model, size = self.model, rows.shape[1]
        places = torch.arange(self.length, self.length + size, device=rows.device)[None]
        hidden = model.model(
            inputs_embeds=model.embed(rows), position_ids=places, past_key_values=self.caches[0]
        ).last_hidden_state
        rotary = model.tts_adapter.rotary_emb(hidden, places)
        for layer in model.tts_adapter.layers:
            hidden = layer(
                hidden,
                attention_mask=None,
                position_ids=places,
                past_key_values=self.caches[1],
                position_embeddings=rotary,
            )
        self.length += size
        return model.speech_head(hidden[:, -1]).float()

    def step(self) -> list[list[int]]:
        """One row for each sequence."""
        ids = self.logits.argmax(-1).tolist()
        rows = torch.tensor([[[0, *row]] for row in ids], device=self.logits.device)
        self.logits = self.advance(rows)
        return ids


# ---- measurements ---------------------------------------------------------------------------------------------------


def in_turns(works: dict[str, Callable], device: torch.device, rounds: int) -> dict[str, list[float]]:
    """Seconds of each work in each round, after one that does not count."""
    for work in works.values():
        work()
    times = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            times[name].append(seconds(work, device))
    return times


def ratio(times: dict[str, list[float]], plain: str, ours: str) -> float:
    return median(a / b for a, b in zip(times[plain], times[ours], strict=True))


def beside(least: float, took: float) -> dict:
    """A measured time and its roofline."""
    return {"seconds": took, "roofline_seconds": least, "share_of_roofline": least / took}


def mouth(bench: Bench, sheet: Device, rounds: int) -> dict:
    """Rows a second and their roofline at every batch size."""
    found = {}
    for batch in BATCHES[:2] if bench.tiny else BATCHES:
        prompts = bench.prompt().expand(batch, -1, -1).to(bench.device)

        def ours(batch: int = batch) -> None:
            decoder = bench.decoder(batch, "on")
            while not decoder.done:
                decoder.step()

        def plain(prompts: Tensor = prompts) -> None:
            loop = PlainMouth(bench.model, prompts)
            for _ in range(bench.rows):
                loop.step()

        times = in_turns({"plain": plain, "ours": ours}, bench.device, rounds)
        work = mouth_work(bench.size, batch, PROMPT + bench.rows // 2, dtype_on(bench.device))
        entry = beside(work.roofline(sheet), median(times["ours"]) / bench.rows)
        found[batch] = {
            "rows_per_second": batch / entry["seconds"],
            "ratio": ratio(times, "plain", "ours"),
            "kernels": len(work.kernels),
            **entry,
        }
    return found


def codec(bench: Bench, sheet: Device, rounds: int) -> dict:
    """Offline with and without captured steps, streaming at several lengths."""
    lengths = (1, 2) if bench.tiny else LENGTHS
    decoder = bench.codec.flow.decoder
    tokens = bench.tokens(25 * lengths[0]).to(bench.device)

    def offline(static: str) -> None:
        decoder.static = static
        bench.codec.decode(tokens, bench.voice)

    times = in_turns({"plain": lambda: offline("off"), "ours": lambda: offline("on")}, bench.device, rounds)
    decoder.static = "auto"
    work = codec_work(bench.size, lengths[0], decoder.precision)
    found = {
        "speed_codec_full": {
            "ratio": ratio(times, "plain", "ours"),
            **beside(floor_of(work, sheet), median(times["ours"])),
        }
    }
    costs = []
    for length in lengths:
        pieces = bench.tokens(25 * length).to(bench.device).split(4)
        costs.append(seconds(lambda p=pieces: list(bench.codec.stream(p, bench.voice)), bench.device))
        found[f"speed_stream_{length}s"] = {"seconds": costs[-1], "rtf": costs[-1] / length}
    x, y = (torch.tensor(values).log() for values in (lengths, costs))
    found["speed_stream_exponent"] = float(
        ((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()
    )
    found["speed_first_tokens"] = bench.codec.first_hop + bench.codec.flow.config.encoder.look_ahead
    return found


def first_sound(bench: Bench, rounds: int) -> float:
    """Seconds from a prompt to the first samples."""
    settings = bench.settings("on")

    def work() -> None:
        tokens = run(bench.model, bench.prompt(), bench.machine(settings), settings)
        next(bench.codec.stream(tokens, warm), None)

    warm = bench.codec.warm(bench.voice)
    return median(in_turns({"first": work}, bench.device, rounds)["first"])


def training(bench: Bench, sheet: Device, rounds: int) -> dict:
    """Forward and backward pass of a batch of training rows in bfloat16, the weights in float32."""
    batch, length = (2, 32) if bench.tiny else TRAIN_ROWS
    model = bench.model.float().train()
    shape = (batch, length, 1 + bench.layout.streams)
    rows = torch.randint(bench.layout.speech_eos, shape, device=bench.device) % 50

    def work() -> None:
        with torch.autocast(bench.device.type, torch.bfloat16):
            loss = model(rows, labels=rows).loss
        loss.backward()
        model.zero_grad(set_to_none=True)

    took = median(in_turns({"train": work}, bench.device, rounds)["train"])
    weights = sum(p.numel() for name, p in model.named_parameters() if "embed_tokens" not in name)
    if model.config.tie_word_embeddings:
        weights += model.lm_head.weight.numel()
    layers = len(model.model.layers) + len(model.tts_adapter.layers)
    heads = model.config.num_attention_heads * model.config.head_dim
    operations = (6 * weights + 6 * layers * heads * length) * batch * length  # causal: half of 12
    return {
        "rows_per_second": batch * length / took,
        "train_mfu": operations / took / sheet.bf16,
        **beside(operations / sheet.bf16, took),
    }


def measure(size: str, device: torch.device) -> dict:
    """All figures; see the module docstring."""
    bench, sheet, rounds = Bench(size, device), roofline.device_of(device), 1 if size == "tiny" else 3
    rows = mouth(bench, sheet, rounds)
    found = {
        f"speed_mouth_{size.lower().replace('.', '')}": rows[1]["ratio"],
        "speed_mouth_batches": rows,
        **codec(bench, sheet, rounds),
        "first_sound_seconds": first_sound(bench, rounds),
    }
    if 16 in rows:
        found["speed_batch16"] = rows[16]["rows_per_second"] / rows[1]["rows_per_second"]
    spoken = 1 if bench.tiny else LENGTHS[0]
    full = found["speed_codec_full"]
    found["rtf"] = rows[1]["seconds"] / bench.seconds_per_row + full["seconds"] / spoken
    found["rtf_roofline"] = (
        rows[1]["roofline_seconds"] / bench.seconds_per_row + full["roofline_seconds"] / spoken
    )
    found["training"] = training(bench, sheet, rounds)
    if device.type == "cuda":
        found["peak_memory_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
    return found | {
        "size": size,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "sheet": sheet.name,
        "torch": torch.__version__,
        "load": os.getloadavg()[0],
    }


# ---- estimates ------------------------------------------------------------------------------------------------------


def mouth_work(size: str, batch: int, rows: int, dtype: torch.dtype) -> roofline.Work:
    """A row of the mouth behind so many."""
    with torch.device("meta"):
        model = join_weights(SpeechLM(mouth_config(size)).to(dtype).eval())
    slots, window = slots_for(batch), window_for(rows)
    step = StaticStep(model, model.config.layout(0, 1), slots, window, 100)
    return roofline.count(lambda: step.work(slots, window, sampling_of(False)))


def codec_work(size: str, length: float, precision: str = "bf16", steps: int = 10) -> list[roofline.Work]:
    """All Euler steps over a text of so many seconds behind a prompt of 6, and the vocoder."""
    with torch.device("meta"):
        flow, hift = codec_configs(size)
        flow, hift = Flow(flow).eval(), HiFT(hift).eval().fold_weight_norm()
    flow.decoder.precision = precision
    if flow.decoder.half:
        flow.decoder.estimator.to(torch.bfloat16)
    frames = padded(round(50 * (length + 6)))
    like = torch.empty(1, 1, flow.config.mels, device="meta")
    one = CapturedSteps(flow.decoder, 1, frames, like, True, False, None)
    work = roofline.count(one.work)
    mel = torch.empty(1, flow.config.mels, round(50 * length), device="meta")
    return [roofline.Work(work.kernels * steps), roofline.count(lambda: hift.inference(mel))]


def floor_of(codec: list[roofline.Work], sheet: Device) -> float:
    """Seconds of flow and vocoder at least."""
    flow, vocoder = codec
    return flow.roofline(sheet) + vocoder.roofline(sheet, tf32=True)


def estimate(size: str, sheet: Device, length: float = 20.0, rows: int = 256) -> dict:
    """The real-time factor of one text that follows from the work alone.

    "floor": the roofline. "graph": kernel after kernel, see `roofline.Reach`. "compiled": the same when torch.compile has
    joined the element-wise kernels of mouth and flow. "best": compiled, and what well-tuned kernels reach.
    """
    row, per_row = (
        mouth_work(size, 1, PROMPT + rows, torch.bfloat16),
        mouth_config(size).speech_token_count / 25,
    )
    flow, vocoder = codec_work(size, length)
    found = {
        "size": size,
        "sheet": sheet.name,
        "mouth_kernels": len(row.kernels),
        "mouth_kernels_compiled": len(row.fused().kernels),
        "mouth_gigabytes": row.bytes / 1e9,
    }
    fused = row.fused(), flow.fused(), vocoder
    for name, works, reach in (
        ("floor", (row, flow, vocoder), None),
        ("graph", (row, flow, vocoder), Reach()),
        ("compiled", fused, Reach()),
        ("best", fused, GOOD),
    ):
        tf32 = False, False, True  # torch lets the vocoder's convolutions round to it
        took = [
            work.expected(sheet, rounded, reach) if reach else work.roofline(sheet, rounded)
            for work, rounded in zip(works, tf32, strict=True)
        ]
        parts = dict(mouth=took[0] / per_row, flow=took[1] / length, vocoder=took[2] / length)
        found[name] = parts | {"rtf": sum(parts.values())}
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = options.Parser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", choices=SIZES, default="nano")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, or cpu (with --size tiny)")
    parser.add_argument(
        "--estimate", choices=sorted(DEVICES), help="no measurement: what to expect of this GPU"
    )
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    args = parser.parse_args(arguments)
    try:
        if args.estimate:
            found = estimate(args.size, DEVICES[args.estimate])
        else:
            found = measure(args.size, torch.device(check_device(args.device)))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    text = json.dumps(found, indent=2)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
