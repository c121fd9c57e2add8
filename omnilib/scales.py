"""One dial for size: where the recordings and the trained parts of a scale are.

    smoke   every training script runs a few steps on the frozen recordings: seconds, kept in runs/smoke, numbers mean nothing
    nano    checkpoints/nano, trained in hours on 2 CPU cores and committed

Both have the same folders, so a chapter reads the same at either scale:

    folder = scales.checkpoints(scale, "tokenizer")        # trains it first at smoke
    codes, _ = SpeechTokenizer.load(folder / "tokenizer").encode(mel)
"""

import contextlib
import hashlib
import json
import random
import shutil
import wave as wavefile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor
from transformers.utils import logging

from omnilib.audio import VOICE_RATE, load_wave
from omnilib.data import read_manifest, write_manifest
from omnilib.errors import CheckpointError, ConfigError, DataError
from omnilib.paths import CHECKPOINTS, CONFIGS, REPORTS, ROOT, RUNS

FROZEN = ROOT / "data_prep" / "frozen"
SMOKE = RUNS / "smoke"
KEPT = 3  # smoke folders of earlier code that stay
DEV_LINES = 2  # of each speaker's training lines, at smoke

# ------------------------------------------------------------------------------------------------ recordings


def recordings(role: str | None = None, language: str | None = None) -> list[dict]:
    """Records of the frozen subset, by role: reference, eval, open, pair, train, human.

    Raises:
        DataError: none fits.
    """
    records = [
        r
        for r in read_manifest(FROZEN / "manifest.jsonl")
        if role in (None, r["role"]) and language in (None, r["language"])
    ]
    if not records:
        raise DataError(
            f"the frozen subset has no '{role}' recording in '{language}': restore data_prep/frozen with `git checkout`"
        )
    return records


def wave_of(record: dict, rate: int) -> Tensor:
    """Sound of a frozen record at `rate`: (T,)."""
    return load_wave(FROZEN / record["path"], rate)


def long_texts() -> list[dict]:
    """The texts of 300-500 words for long-form speech, each with the speaker who is to read it."""
    path = FROZEN / "longform.jsonl"
    if not path.is_file():
        raise DataError("no data_prep/frozen/longform.jsonl: restore it with `git checkout`")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# ------------------------------------------------------------------------------------------------ checkpoints


def checkpoints(scale: str, *parts: str) -> Path:
    """Folder that holds `parts` of a scale; at smoke, parts not there yet are trained first (seconds).

    Raises:
        ConfigError: no such scale or part.
        CheckpointError: a committed part is missing.
    """
    logging.disable_progress_bar()  # a bar for each loaded file only fills a report's pages
    unknown = [p for p in parts if p not in RECIPES]
    if unknown:
        raise ConfigError(f"no part '{unknown[0]}': choose from {', '.join(RECIPES)}")
    if scale == "nano":
        missing = [p for p in parts if not (CHECKPOINTS / scale / p).is_dir()]
        if missing:
            raise CheckpointError(
                f"checkpoints/nano/{missing[0]} is missing: restore it with `git checkout` or run `make retrain`"
            )
        return CHECKPOINTS / scale
    if scale != "smoke":
        raise ConfigError(
            f"scale '{scale}': a chapter runs at smoke or nano; paper scale needs the published weights (see weights.py)"
        )
    folder = SMOKE / fingerprint()
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        train_missing(folder, parts)
    for stale in sorted(SMOKE.glob("*/"), key=lambda p: p.stat().st_mtime)[:-KEPT]:
        shutil.rmtree(stale, ignore_errors=True)
    return folder


def training_log(scale: str, part: str) -> list[dict]:
    """What a training script logged, one dict a line."""
    path = checkpoints(scale, part) / part / "log.jsonl"
    if not path.is_file():
        raise CheckpointError(f"no {part}/log.jsonl at {scale}: train it with `make retrain`")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def meta(scale: str, part: str) -> dict:
    """meta.json of a trained part: resolved config, steps, wall time, final metrics."""
    return json.loads((checkpoints(scale, part) / part / "meta.json").read_text(encoding="utf-8"))


def report_of(scale: str, name: str) -> dict | None:
    """metrics.json of a report that a script wrote; at smoke the script runs now; None when nobody ran it at nano."""
    path = (checkpoints(scale, name) / name if scale == "smoke" else REPORTS / scale / name) / "metrics.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


# ------------------------------------------------------------------------------------------------ smoke


def fingerprint() -> str:
    """Name of the smoke folder: changes with the code and the recordings, so a stale model is never read."""
    digest = hashlib.sha256()
    files = [
        *(ROOT / "omnilib").rglob("*.py"),
        *CONFIGS.glob("smoke/*.yaml"),
        *CONFIGS.glob("nano/*.yaml"),
        FROZEN / "manifest.jsonl",
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
    """The frozen training lines as WAV shards: most to train on, some as dev; other speakers' recordings as test."""
    records, seen = [], {}
    for record in [*recordings("train"), *recordings("pair")]:
        number = seen[record["speaker"]] = seen.get(record["speaker"], 0) + 1
        split = "test" if record["role"] == "pair" else "dev" if number <= DEV_LINES else "train"
        samples = (wave_of(record, VOICE_RATE).clamp(-1, 1) * 32767).short().numpy()
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
    write_manifest(folder / "corpus" / "text.jsonl", [r | {"split": "train"} for r in recordings()])


def run(module: str, config: str, part: str, *overrides: str) -> Callable[[Path], None]:
    """A recipe: one training script with one config; `{}` in an override is the smoke folder."""

    def recipe(folder: Path) -> None:
        import importlib

        script = importlib.import_module(f"omnilib.train.{module}")
        chosen = [o.replace("{}", str(folder)) for o in ("manifest={}/corpus/manifest.jsonl", *overrides)]
        script.main(["--config", config, "--out", str(folder / part), "--set", *chosen])

    return recipe


def hift(folder: Path) -> None:
    """The vocoder script has no command line inside; its loop is called with the config."""
    from omnilib import config as configs
    from omnilib.train import hift as script

    script.train(
        configs.load(script.Config, "smoke/hift", [f"manifest={folder}/corpus/manifest.jsonl"]),
        folder / "hift",
    )


def encode(kind: str, part: str, name: str) -> Callable[[Path], None]:
    """A recipe: codes or speaker vectors of the whole smoke corpus."""

    def recipe(folder: Path) -> None:
        from omnilib.train.encode import export

        records = read_manifest(folder / "corpus" / "manifest.jsonl")
        export(
            records,
            folder / "corpus",
            kind,
            folder / part,
            folder / name / f"{name}.safetensors",
            processes=1,
        )

    return recipe


def voices(folder: Path) -> None:
    """Reference recordings and decoding settings, as `speak.TextToSpeech` reads them; short, because a smoke model never stops."""
    entries = {}
    for record in recordings("reference"):
        name = Path(record["path"]).name
        shutil.copy(FROZEN / record["path"], folder / "voices" / name)
        entries[record["speaker"]] = {"file": name, "text": record["text"], "language": record["language"]}
    (folder / "voices" / "voices.json").write_text(
        json.dumps(entries, ensure_ascii=False, indent=1) + "\n", encoding="utf-8"
    )
    (folder / "decode.yaml").write_text(
        "chunk_min_tokens: 20\nchunk_max_tokens: 80\nrows_per_token: 1.5\nmax_rows: 150\n", encoding="utf-8"
    )


def grid(folder: Path) -> None:
    """The stage-2 ablation, a few steps a run."""
    from omnilib.eval import stage2_grid

    arguments = [
        "--config",
        "smoke/speechlm",
        "--out",
        str(folder / "stage2_grid"),
        "--work",
        str(folder / "stage2_grid" / "runs"),
    ]
    stage2_grid.main(
        [*arguments, "--steps", "4", "--seeds", "1", "--set", *(o.replace("{}", str(folder)) for o in SPOKEN)]
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
}
SPEAKER = ("speechlm", "tokenizer", "speaker", "flow", "hift", "voices")  # what `speak.TextToSpeech` needs
