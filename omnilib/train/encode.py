"""Turn every recording of a manifest into speech codes, a speaker vector or the flow's mel: one safetensors file, record id -> tensor.

    python -m omnilib.train.encode --manifest data/nano/manifest.jsonl --tokenizer checkpoints/nano/tokenizer --out data/nano/tokens.safetensors
    python -m omnilib.train.encode --manifest data/nano/manifest.jsonl --speaker checkpoints/nano/speaker --out data/nano/speakers.safetensors
    python -m omnilib.train.encode --manifest data/nano/manifest.jsonl --codec checkpoints/nano --out data/nano/mels.safetensors

Codes are int16 (T,), 25 a second, long recordings in 30 s blocks as the reference does; vectors are float32 (192,); mels are
float16 (80, F), 50 frames a second in step with the recording: its own codes spoken in its own voice, whose prompt is the
recording before it of the same speaker. A vocoder that has met them is not surprised by what the flow gets wrong.
Notable choices: recordings of similar length share a batch; work is cut into parts, each written whole or not at all, so a
killed run goes on where it was; one single-thread process a core. Parts carry the hash of manifest and model in their
folder's name: nothing stale is ever reused.
"""

import hashlib
import os
import shutil
from collections.abc import Callable
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from omnilib import config as configs
from omnilib import options
from omnilib.audio import TOKENIZER_RATE, VOICE_RATE, fbank_80, log_mel_128, mel_80, resample
from omnilib.data import load_segment, read_manifest, sha256
from omnilib.errors import CheckpointError, DataError, UserError, in_one_line
from omnilib.train.common import autocast
from omnilib.voice.codec import CodecSettings
from omnilib.voice.flow import RATIO, Flow, FlowConfig
from omnilib.voice.pitch import level_of, measure_pitch
from omnilib.voice.speaker import SpeakerEncoder
from omnilib.voice.tokenizer import SpeechTokenizer

BLOCK_SECONDS = 30.0  # the reference tokenizes in blocks of 30 s
PART_SECONDS = 1200.0
BATCH_SECONDS = {"cpu": 60.0, "cuda": 960.0}  # of padded audio
SPEAKER_SECONDS = 8.0  # a speaker vector needs no more

CPU = torch.device("cpu")

Encode = Callable[[list[dict], Path], dict[str, Tensor]]


def blocks_of(record: dict) -> list[tuple[float, float]]:
    """(start, seconds) of the blocks of a recording."""
    count = max(1, -(-record["duration"] // BLOCK_SECONDS))
    return [
        (BLOCK_SECONDS * i, min(BLOCK_SECONDS, record["duration"] - BLOCK_SECONDS * i))
        for i in range(int(count))
    ]


def similar(items: list, seconds: Callable[[object], float], device: torch.device = CPU) -> list[list]:
    """Batches of neighbours in length, as large as BATCH_SECONDS allows."""
    batches: list[list] = [[]]
    for item in sorted(items, key=seconds):
        if batches[-1] and (len(batches[-1]) + 1) * seconds(item) > BATCH_SECONDS[device.type]:
            batches.append([])
        batches[-1].append(item)
    return batches


def device_of(model: torch.nn.Module) -> torch.device:
    return next(model.parameters()).device


def load_batch(
    pieces: list[tuple[dict, float, float]], root: Path, device: torch.device = CPU
) -> tuple[Tensor, Tensor]:
    """Pieces (record, start, seconds) -> 16 kHz waves (B, T), lengths (B,)."""
    rates = {record["rate"] for record, *_ in pieces}
    if len(rates) > 1:
        raise DataError(
            f"records of different rates {sorted(rates)} in one manifest: resample the corpus to one rate"
        )
    waves = [load_segment(record, root, start, seconds) for record, start, seconds in pieces]
    rate = rates.pop()
    lengths = torch.tensor([-(-len(w) * TOKENIZER_RATE // rate) for w in waves])
    return resample(
        torch.nn.utils.rnn.pad_sequence(waves, batch_first=True).to(device), rate, TOKENIZER_RATE
    ), lengths


def encode_codes(model: SpeechTokenizer, records: list[dict], root: Path) -> dict[str, Tensor]:
    """Codes (T,) int16 of each record."""
    pieces = [(r, i, *block) for r in records for i, block in enumerate(blocks_of(r))]
    found: dict[tuple[str, int], Tensor] = {}
    device = device_of(model)
    for batch in similar(pieces, lambda p: p[3], device):
        waves, lengths = load_batch([(r, start, seconds) for r, _, start, seconds in batch], root, device)
        codes, counts = (
            x.cpu() for x in model.encode(log_mel_128(waves, lengths), (lengths // 160).to(device))
        )
        for (record, i, *_), row, count in zip(batch, codes, counts.tolist(), strict=True):
            found[record["id"], i] = row[:count].to(torch.int16)
    return {r["id"]: torch.cat([found[r["id"], i] for i in range(len(blocks_of(r)))]) for r in records}


def encode_speakers(model: SpeakerEncoder, records: list[dict], root: Path) -> dict[str, Tensor]:
    """Speaker vector (dim,) float32 of each record, from its first seconds."""
    result, device = {}, device_of(model)
    for batch in similar(
        [(r, 0.0, min(SPEAKER_SECONDS, r["duration"])) for r in records], lambda p: p[2], device
    ):
        waves, lengths = load_batch(batch, root, device)
        with torch.no_grad():
            vectors = model(fbank_80(waves), (1 + (lengths - 400) // 160).to(device)).cpu()  # (B, dim)
        result |= {record["id"]: vector.clone() for (record, *_), vector in zip(batch, vectors, strict=True)}
    return result


class FlowMels:
    """Writes the mel that a flow gives for a recording's own codes; all but the vocoder of a checkpoint folder."""

    def __init__(
        self, tokenizer: SpeechTokenizer, speaker: SpeakerEncoder, flow: Flow, settings: CodecSettings
    ):
        self.tokenizer, self.speaker, self.flow, self.settings = tokenizer, speaker, flow, settings

    @classmethod
    def load(cls, folder: Path, device: str = "cpu") -> "FlowMels":
        parts = (
            SpeechTokenizer.load(folder / "tokenizer"),
            SpeakerEncoder.load(folder / "speaker"),
            Flow.load(folder / "flow"),
        )
        return cls(*(part.to(device) for part in parts), CodecSettings.of(folder))

    @torch.inference_mode()
    def encode(self, records: list[dict], root: Path) -> dict[str, Tensor]:
        """Mel (80, F) float16 of each record."""
        settings, result, device = self.settings, {}, device_of(self.flow)
        codes, speakers = (
            encode_codes(self.tokenizer, records, root),
            encode_speakers(self.speaker, records, root),
        )
        shown = round(settings.prompt_seconds * 25)
        prompts = {r["id"]: prompt for r, prompt in zip(records, prompts_of(records), strict=True)}
        for batch in similar(
            [(r, 0.0, r["duration"]) for r in records], lambda p: p[2] + settings.prompt_seconds, device
        ):
            rows, shows, mels, levels = [], [], [], []
            for record, *_ in batch:
                prompt = prompts[record["id"]]
                wave = load_segment(prompt, root, 0.0, min(settings.prompt_seconds, prompt["duration"]))
                wave = resample(wave, prompt["rate"], VOICE_RATE)[None]
                mel = mel_80(wave, window=self.flow.config.mel_window)[0].T  # (F, 80)
                levels.append(level_of(measure_pitch(wave)))
                count = min(shown, len(codes[prompt["id"]]), len(mel) // RATIO)
                rows.append(codes[record["id"]].long())
                shows.append(codes[prompt["id"]][:count].long())
                mels.append(mel[: count * RATIO])
            stack = partial(torch.nn.utils.rnn.pad_sequence, batch_first=True)
            voices = torch.stack([speakers[r["id"]] for r, *_ in batch])
            counts, shown_counts = (
                torch.tensor([len(r) for r in some], device=device) for some in (rows, shows)
            )
            with autocast(device, True):  # twice as fast
                made = self.flow.inference(
                    *(x.to(device) for x in (stack(rows), stack(shows), stack(mels), voices)),
                    n_timesteps=settings.steps, token_lengths=counts, prompt_lengths=shown_counts,
                    level=torch.cat(levels).to(device),
                ).cpu()  # fmt: skip
            result |= {
                r["id"]: mel[:, : len(row) * RATIO].half().contiguous()
                for (r, *_), mel, row in zip(batch, made, rows, strict=True)
            }
        return result


def prompts_of(records: list[dict]) -> list[dict]:
    """For each record the one before it of the same speaker; the first of a speaker gets the last, which may be itself."""
    before = {r["speaker"]: r for r in records}
    found = []
    for record in records:
        found.append(before[record["speaker"]])
        before[record["speaker"]] = record
    return found


# ------------------------------------------------------------------------------------------------ parts and processes


class Worker:
    """One process: its model and the folder it writes parts to."""

    def __init__(self, kind: str, model_folder: Path, device: str, root: Path, parts: Path):
        torch.set_num_threads(1)
        self.root, self.parts = root, parts
        if kind == "mels":
            self.encode = FlowMels.load(model_folder, device).encode
        elif kind == "codes":
            self.encode = partial(encode_codes, SpeechTokenizer.load(model_folder).to(device))
        else:
            self.encode = partial(encode_speakers, SpeakerEncoder.load(model_folder).to(device))

    def run(self, part: tuple[int, list[dict]]) -> float:
        """Write one part; returns the audio seconds in it."""
        number, records = part
        target = self.parts / f"{number:06d}.safetensors"
        if not target.exists():
            write_tensors(target, self.encode(records, self.root), {})
        return sum(r["duration"] for r in records)


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write under a temporary name, then rename.

    Raises:
        CheckpointError: the disk is full or not writable.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save_file(tensors, temporary, metadata)
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"could not write {path.name}: {error}; free disk space or choose another --out"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


worker: Worker | None = None  # one a process, made by `start`


def start(*args) -> None:
    """Make this process's worker."""
    global worker
    worker = Worker(*args)


def run_part(part: tuple[int, list[dict]]) -> float:
    """Run a part in this process's worker."""
    return worker.run(part)


def cut_parts(records: list[dict]) -> list[tuple[int, list[dict]]]:
    """Numbered runs of records of similar length, about PART_SECONDS of audio each."""
    parts: list[list[dict]] = [[]]
    for record in sorted(records, key=lambda r: (r["duration"], r["id"])):
        if parts[-1] and sum(r["duration"] for r in parts[-1]) + record["duration"] > PART_SECONDS:
            parts.append([])
        parts[-1].append(record)
    return list(enumerate(parts))


def export(
    records: list[dict],
    root: Path,
    kind: str,
    model_folder: Path,
    out: Path,
    processes: int,
    device: str = "cpu",
) -> dict[str, str]:
    """Encode `records` into `out` (`kind`: "codes", "speakers" or "mels"); returns the file's metadata."""
    if not records:
        raise DataError("no records to encode: check --manifest and --split")
    ids = hashlib.sha256(
        "\n".join(f"{r['id']} {r['path']} {r['start']} {r['duration']}" for r in records).encode()
    ).hexdigest()
    weights = [
        Path(model_folder) / part / "model.safetensors"
        for part in (("tokenizer", "speaker", "flow") if kind == "mels" else ("",))
    ]
    for path in weights:
        if not path.is_file():
            raise CheckpointError(f"no checkpoint {path}: restore it with `git checkout` or train it")
    metadata = {"kind": kind, "records_sha256": ids, "model_sha256": " ".join(map(sha256, weights))}
    if kind == "mels":
        metadata["mel_window"] = str(
            configs.load(FlowConfig, Path(model_folder) / "flow" / "config.yaml").mel_window
        )
    if out.exists():
        with safe_open(str(out), "pt") as file:
            if file.metadata() == metadata:
                return metadata
    key = hashlib.sha256(repr(sorted(metadata.items())).encode()).hexdigest()[:12]
    parts_folder = out.with_name(f"{out.name}.parts-{key}")
    parts_folder.mkdir(parents=True, exist_ok=True)
    parts, args = cut_parts(records), (kind, Path(model_folder), device, Path(root), parts_folder)
    hours = sum(r["duration"] for r in records) / 3600
    with tqdm(
        total=hours,
        unit="h",
        desc=kind,
        bar_format=f"{{desc}} {{percentage:3.0f}}% {{n:.2f}}/{hours:.2f} h [{{elapsed}}<{{remaining}}]",
    ) as bar:
        if processes == 1:
            single = Worker(*args)
            for part in parts:
                bar.update(single.run(part) / 3600)
        else:
            with get_context("spawn").Pool(processes, start, args) as pool:
                for seconds in pool.imap_unordered(run_part, reversed(parts)):
                    bar.update(seconds / 3600)
    merged: dict[str, Tensor] = {}
    for number, _ in parts:
        merged |= load_file(parts_folder / f"{number:06d}.safetensors")
    write_tensors(out, merged, metadata)
    shutil.rmtree(parts_folder)
    return metadata


def main(argv: list[str] | None = None) -> None:
    parser = options.Parser(description=__doc__)
    parser.add_argument("--manifest", required=True, type=Path)
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--tokenizer", type=Path, help="tokenizer checkpoint folder: write codes")
    model.add_argument(
        "--speaker", type=Path, help="speaker encoder checkpoint folder: write speaker vectors"
    )
    model.add_argument(
        "--codec", type=Path, help="folder of tokenizer, speaker and flow: write the flow's mels"
    )
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--split", help="only this split")
    parser.add_argument("--part", help="only this part of the corpus (synthetic, raw)")
    parser.add_argument("--every", type=options.count, default=1, metavar="N", help="only every Nth record")
    parser.add_argument("--processes", type=options.count, default=os.cpu_count() or 1)
    parser.add_argument(
        "--device", choices=BATCH_SECONDS, default="cpu", help="of the model; a few processes keep a GPU busy"
    )
    args = parser.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError("no CUDA device here: leave --device out")
    records = [
        r
        for r in read_manifest(args.manifest)
        if args.split in (None, r["split"]) and args.part in (None, r.get("part"))
    ][:: args.every]
    kind = "codes" if args.tokenizer else "speakers" if args.speaker else "mels"
    export(
        records,
        args.manifest.parent,
        kind,
        args.tokenizer or args.speaker or args.codec,
        args.out,
        args.processes,
        args.device,
    )


if __name__ == "__main__":
    with in_one_line():
        main()
