"""Tiny parts on demand: every training script runs a few steps on the frozen recordings. Seconds each;
numbers mean nothing.

    folder = smoke.folder("tokenizer", "flow")             # runs/smoke/<fingerprint>, trained at the first call

The folder's name changes with the code and the recordings, so a stale model is never read.
"""

import contextlib
import hashlib
import importlib
import json
import random
import shutil
import wave as wavefile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from filelock import FileLock

from omnilib import config as configs
from omnilib import frozen
from omnilib.audio import VOICE_RATE
from omnilib.data import read_manifest, write_manifest
from omnilib.paths import CONFIGS, ROOT, RUNS

SMOKE = RUNS / "smoke"
KEPT = 3  # smoke folders of earlier code that stay
DEV_LINES = 2  # of each speaker's training lines


def folder(*parts: str) -> Path:
    """The smoke folder, with these parts trained."""
    home = SMOKE / fingerprint()
    home.mkdir(parents=True, exist_ok=True)
    with FileLock(home / ".lock"):
        train_missing(home, parts)
    for stale in sorted(SMOKE.glob("*/"), key=lambda p: p.stat().st_mtime)[:-KEPT]:
        shutil.rmtree(stale, ignore_errors=True)
    return home


def fingerprint() -> str:
    """Name of the smoke folder: changes with the code and the recordings, so a stale model is never read."""
    digest = hashlib.sha256()
    files = [
        *(ROOT / "omnilib").rglob("*.py"),
        *CONFIGS.glob("smoke/*.yaml"),
        *CONFIGS.glob("nano/*.yaml"),
        frozen.FOLDER / "manifest.jsonl",
    ]
    for path in sorted(files):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def train_missing(folder: Path, parts: tuple[str, ...]) -> None:
    """Train parts and what they need, in order; a part is there when its `.done` is."""
    for part in parts:
        needs, recipe = RECIPES[part]
        train_missing(folder, needs)
        done = folder / part / ".done"
        if done.exists():
            continue
        shutil.rmtree(folder / part, ignore_errors=True)
        (folder / part).mkdir(parents=True)
        with quiet(folder / part / "output.txt"):
            recipe(folder)
        done.touch()


@contextlib.contextmanager
def quiet(path: Path) -> Iterator[None]:
    """Send what is printed to a file, and leave the random generators as they were."""
    states = random.getstate(), np.random.get_state()  # noqa: NPY002  the global state is what we keep
    with (
        torch.random.fork_rng(),
        path.open("w") as file,
        contextlib.redirect_stdout(file),
        contextlib.redirect_stderr(file),
    ):
        yield
    random.setstate(states[0])
    np.random.set_state(states[1])  # noqa: NPY002


def smoke_corpus(folder: Path) -> None:
    """The frozen training lines as WAV shards: most to train on, some as dev; other speakers' recordings as
    test."""
    records, seen = [], {}
    for record in [*frozen.recordings("train"), *frozen.recordings("pair")]:
        number = seen[record["speaker"]] = seen.get(record["speaker"], 0) + 1
        split = "test" if record["role"] == "pair" else "dev" if number <= DEV_LINES else "train"
        samples = (frozen.wave_of(record, VOICE_RATE).clamp(-1, 1) * 32767).short().numpy()
        path = f"{record['id']}.wav"
        with wavefile.open(str(folder / "corpus" / path), "wb") as file:
            file.setparams((1, 2, VOICE_RATE, 0, "NONE", ""))
            file.writeframes(samples.tobytes())
        place = {
            "path": path,
            "start": 0.0,
            "duration": len(samples) / VOICE_RATE,
            "rate": VOICE_RATE,
            "split": split,
        }
        records.append(record | place)
    write_manifest(folder / "corpus" / "manifest.jsonl", records)
    # the text tokenizer reads every frozen text: whole words keep transcripts shorter than their recordings
    write_manifest(folder / "corpus" / "text.jsonl", [r | {"split": "train"} for r in frozen.recordings()])


def program(name: str) -> ModuleType:
    """A training or evaluation program, imported by name so that this module depends on none of them."""
    return importlib.import_module(name)


def run(module: str, config: str, part: str, *overrides: str) -> Callable[[Path], None]:
    """A recipe: one training script with one config; `{}` in an override is the smoke folder."""

    def recipe(folder: Path) -> None:
        script = program(f"omnilib.train.{module}")
        chosen = [o.replace("{}", str(folder)) for o in ("manifest={}/corpus/manifest.jsonl", *overrides)]
        script.main(["--config", config, "--out", str(folder / part), "--set", *chosen])

    return recipe


def hift(folder: Path) -> None:
    """The vocoder script has no command line inside; its loop is called with the config."""
    script = program("omnilib.train.hift")
    script.train(
        configs.load(script.Config, "smoke/hift", [f"manifest={folder}/corpus/manifest.jsonl"]),
        folder / "hift",
    )


def encode(kind: str, part: str, name: str) -> Callable[[Path], None]:
    """A recipe: codes or speaker vectors of the whole smoke corpus."""

    def recipe(folder: Path) -> None:
        records = read_manifest(folder / "corpus" / "manifest.jsonl")
        program("omnilib.train.encode").export(
            records,
            folder / "corpus",
            kind,
            folder / part,
            folder / name / f"{name}.safetensors",
            processes=1,
        )

    return recipe


def voices(folder: Path) -> None:
    """Reference recordings and decoding settings, as `speak.TextToSpeech` reads them; short, because a
    smoke model never stops."""
    entries = {}
    for record in frozen.recordings("reference"):
        name = Path(record["path"]).name
        shutil.copy(frozen.FOLDER / record["path"], folder / "voices" / name)
        entries[record["speaker"]] = {"file": name, "text": record["text"], "language": record["language"]}
    (folder / "voices" / "voices.json").write_text(
        json.dumps(entries, ensure_ascii=False, indent=1) + "\n", encoding="utf-8"
    )
    (folder / "decode.yaml").write_text(
        "chunk_min_tokens: 20\nchunk_max_tokens: 80\nrows_per_token: 1.5\nmax_rows: 150\n", encoding="utf-8"
    )


def grid(folder: Path) -> None:
    """The stage-2 ablation, a few steps a run."""
    out = folder / "stage2_grid"
    arguments = ["--config", "smoke/speechlm", "--out", str(out), "--work", str(out / "runs")]
    overrides = [o.replace("{}", str(folder)) for o in SPOKEN]
    program("omnilib.eval.stage2_grid").main(
        [*arguments, "--steps", "4", "--seeds", "1", "--set", *overrides]
    )


def brain_samples(folder: Path) -> None:
    """A few samples of every task of the brain, questions spoken by flite where it is installed."""
    program("data_prep.brain").build(
        folder / "brain_samples", 4, engine="flite", corpora=[folder / "corpus" / "manifest.jsonl"]
    )


TINY = ("manifest={}/corpus/text.jsonl", "size=3000", "alphabet=1500", "pronunciations=false")
NARROW = (
    "text={}/text",
    "width=32",
    "layers=2",
    "heads=2",
    "kv_heads=2",
    "head_dim=16",
    "mlp=64",
    "pronunciations=false",
)
SHORT = ("steps=8", "batch=4", "context=32", "warmup=2", "log_every=1", "eval_every=8")
SPOKEN = ("manifest={}/corpus/manifest.jsonl", "init={}/speechlm_stage1", "text={}/text", "tokens={}/tokens/tokens.safetensors", "rows=400",
          "chunk_min=20", "chunk_max=80", "languages=[en,zh]", "language_shares=[0.8,0.2]", "seconds=[1.0,3.0,6.0]")  # fmt: skip
EYES = ("manifest={}/brain_samples.jsonl", "vision=[2,16,2,24]")
LONGER = ("steps=40", "log_every=2", "eval_every=10", "eval_batches=2")  # enough to see a loss fall
VOICED = ("tokens={}/tokens/tokens.safetensors", "speakers={}/speakers/speakers.safetensors")

# part -> (what it needs, how it is made), for smoke
RECIPES: dict[str, tuple[tuple[str, ...], Callable[[Path], None]]] = {
    "corpus": ((), smoke_corpus),
    "text": (("corpus",), run("text", "nano/text", "text", *TINY)),
    "backbone": (("text",), run("backbone", "nano/backbone", "backbone", *NARROW, *SHORT)),
    "tokenizer": (("corpus",), run("tokenizer", "smoke/tokenizer", "tokenizer")),
    "speaker": (("corpus",), run("speaker", "smoke/speaker", "speaker", "encoder.dim=192")),
    "tokens": (("tokenizer",), encode("codes", "tokenizer", "tokens")),
    "speakers": (("speaker",), encode("speakers", "speaker", "speakers")),
    "flow": (("tokens", "speakers"), run("flow", "smoke/flow", "flow", "model.vocab=27", *VOICED)),
    "hift": (("corpus",), hift),
    "speechlm_stage1": (
        ("backbone", "tokens"),
        run("speechlm", "smoke/speechlm_stage1", "speechlm_stage1", *SPOKEN[1:], "init={}/backbone"),
    ),
    "speechlm": (("speechlm_stage1",), run("speechlm", "smoke/speechlm", "speechlm", *SPOKEN[1:])),
    "voices": ((), voices),
    "stage2_grid": (("speechlm_stage1",), grid),
    "brain_samples": (("corpus",), brain_samples),
    "encoders": (("corpus",), run("encoders", "smoke/encoders", "encoders", *LONGER)),
    "brain_stage1": (
        ("brain_samples",),
        run("brain", "smoke/brain_stage1", "brain_stage1", *EYES, *LONGER, "steps=60", "ctc_steps=20"),
    ),
    "brain_eyes": (
        ("brain_stage1",),
        run(
            "brain", "smoke/brain_eyes", "brain_eyes", *EYES, *LONGER, "init={}/brain_stage1", "ctc_steps=40"
        ),
    ),
    "brain": (
        ("brain_eyes",),
        run("brain", "smoke/brain", "brain", *EYES, *LONGER, "init={}/brain_eyes"),
    ),
}
