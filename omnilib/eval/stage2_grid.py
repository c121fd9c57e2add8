"""Stage 2 on a small grid: what does unfreezing the language model change, and the adapter's 5x rate (paper section 3.2)?

    python -m omnilib.eval.stage2_grid --steps 300 --seeds 3            # an hour on two slow cores at nano

Every run starts from the stage-1 checkpoint and sees the same batches; one factor changes: which part learns, and how fast
the adapter does. Judged on unseen sentences: teacher-forced loss and token error, and the phoneme error of speech decoded
from text (read from the tokens by the tokenizer's own phoneme head, so no vocoder and no judge is involved). A finished run
is kept in --work; start the script again to go on after a stop.

Writes reports/nano/stage2_grid/metrics.json (chapter 06 draws it).
"""

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch

from omnilib import config as configs
from omnilib import frozen, options
from omnilib.data import sha256
from omnilib.errors import in_one_line
from omnilib.eval.probes import phoneme_errors, speak_records
from omnilib.mouth.decode import DecodeSettings
from omnilib.mouth.rows import layout_of
from omnilib.mouth.speechlm import SpeechLM
from omnilib.paths import DATA, REPORTS, ROOT, RUNS
from omnilib.provenance import stamp, write_json
from omnilib.report import sources
from omnilib.text import load_tokenizer
from omnilib.train.common import autocast, check_finite, count_parameters, lr_at, seed_everything
from omnilib.train.speechlm import Config, Conversations, build, evaluate, optimizers_of
from omnilib.voice.phonemes import PhonemeHead
from omnilib.voice.tokenizer import SpeechTokenizer

# name -> (is the backbone frozen, the adapter's rate as a multiple of the backbone's)
VARIANTS = {
    "frozen": (True, 1.0),
    "adapter x1": (False, 1.0),
    "adapter x2": (False, 2.0),
    "adapter x5": (False, 5.0),
}
MEASURES = ("dev_speech_loss", "dev_text_loss", "dev_token_error", "phoneme_error")
CURVE_POINTS = 6
SPOKEN_LINES = 24


def spoken_error(model: SpeechLM, tokenizer, config: Config, parts: Path) -> float:
    """Phoneme error of frozen English test sentences decoded from text, in the voice of their own speaker."""
    records = frozen.recordings("eval", "en")[::3][:SPOKEN_LINES]
    settings = DecodeSettings(
        seed=config.seed, chunk_min_tokens=config.chunk_min, chunk_max_tokens=config.chunk_max
    )
    results = speak_records(model, tokenizer, SpeechTokenizer.load(parts / "tokenizer"), records, settings)
    return phoneme_errors(PhonemeHead.load(parts / "tokenizer"), [r.tokens for r in results], records)[0]


def fit(model: SpeechLM, data: Conversations, dev: Conversations, config: Config) -> list[dict]:
    """Train on `data` for `config.steps`; returns the development measures along the way."""
    optimizers, curve = optimizers_of(model.train(), config), []
    every = max(1, config.steps // CURVE_POINTS)
    for step in range(config.steps + 1):
        if step % every == 0 or step == config.steps:
            curve.append({"step": step, **evaluate(model, dev, "cpu", config.bf16, batches=4)})
            print(f"  step {step}: {curve[-1]}", flush=True)
        if step == config.steps:
            break
        rows, labels, mask = data.batch(step)
        with autocast("cpu", config.bf16):
            loss = model(
                rows, mask, labels, text_weight=config.text_weight, speech_weight=config.speech_weight
            ).loss
        check_finite(loss, step)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        for optimizer in optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = lr_at(step, config.steps, config.lr, config.warmup) * group["scale"]
            optimizer.step()
            optimizer.zero_grad()
    return curve


def train_run(config: Config, frozen: bool, parts: Path) -> dict:
    """One run of the grid: final measures and a curve."""
    seed_everything(config.seed)
    tokenizer = load_tokenizer(ROOT / config.text)
    model = build(config, tokenizer)
    layout = layout_of(model.config, tokenizer)
    data = Conversations(config, tokenizer, layout)
    dev = Conversations(
        replace(config, corrupt=0.0, seed=0), tokenizer, layout, "dev"
    )  # the same for all runs
    if frozen:
        model.freeze_backbone()
    began = time.time()
    curve = fit(model, data, dev, config)
    last = {k: v for k, v in curve[-1].items() if k != "step"}
    spoken = spoken_error(model, tokenizer, config, parts)
    return {
        **last,
        "phoneme_error": spoken,
        "hours": data.hours,
        "curve": curve,
        "trainable": count_parameters(model)["trainable"],
        "seconds": round(time.time() - began, 1),
    }


def summarise(
    runs: list[dict], factor: str = "variant", measures: Sequence[str] = MEASURES
) -> dict[str, dict]:
    """Mean and range over seeds of the final measures, for each value of the factor."""
    result: dict[str, dict] = {}
    for name in dict.fromkeys(r[factor] for r in runs):
        values = {m: [r[m] for r in runs if r[factor] == name] for m in measures}
        result[name] = {
            m: {"value": sum(v) / len(v), "low": min(v), "high": max(v), "n": len(v)}
            for m, v in values.items()
        }
    return result


def fingerprint(config: Config) -> str:
    """Hash of all settings and of the corpus they name: a run kept in --work is used again only for the same."""
    files = (DATA / name for name in (config.manifest, config.tokens))
    told = json.dumps([asdict(config), [sha256(f) for f in files if f.is_file()]], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()[:12]


def main(argv: list[str] | None = None) -> dict[str, dict]:
    parser = options.Parser(description=__doc__)
    parser.add_argument("--config", default="ablations/stage2_grid")
    parser.add_argument("--set", dest="overrides", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--steps", type=options.count, default=300)
    parser.add_argument("--seeds", type=options.count, default=1)
    parser.add_argument("--out", type=Path, default=REPORTS / "nano" / "stage2_grid")
    parser.add_argument("--work", type=Path, default=RUNS / "stage2_grid")
    args = parser.parse_args(argv)
    started, runs = time.time(), []
    warmup = max(1, args.steps // 10)
    fixed = [*args.overrides, f"steps={args.steps}", f"warmup={warmup}"]
    for seed in range(args.seeds):
        for name, (backbone_frozen, rate) in VARIANTS.items():
            config = configs.load(
                Config, args.config, [*fixed, f"seed={seed}", f"adapter_lr_scale={rate}", "stage=2"]
            )
            kept = args.work / f"{name.replace(' ', '_')}-{fingerprint(config)}.json"
            if not kept.is_file():
                print(f"{name}, seed {seed}", flush=True)
                parts = (ROOT / config.text).parent
                write_json(
                    kept,
                    {
                        "variant": name,
                        "seed": seed,
                        "steps": args.steps,
                        **train_run(config, backbone_frozen, parts),
                    },
                )
            runs.append(json.loads(kept.read_text(encoding="utf-8")))
    summary = summarise(runs)
    scale = "smoke" if "smoke" in args.config else "nano"
    decoding = {
        "temperature": DecodeSettings().temperature,
        "retries": 0,
        "lines": SPOKEN_LINES,
        "reader": "phoneme head of the speech tokenizer",
    }
    settings = {
        "steps": args.steps,
        "warmup": warmup,
        "seeds": args.seeds,
        "config": args.config,
        "lr": config.lr,
        "optimizer": config.optimizer,
        "hours": runs[0]["hours"],
    } | decoding
    record = stamp(scale, {"steps": args.steps, "seeds": args.seeds}, settings, {}, time.time() - started)
    if scale == "nano":
        sources.record(args.out, "stage2_grid")
    write_json(
        args.out / "metrics.json",
        {"summary": summary, "runs": runs, "settings": settings, "provenance": record},
    )
    for name, values in summary.items():
        print(f"{name:12s} " + "  ".join(f"{k} {v['value']:.4f}" for k, v in values.items()))
    return summary


if __name__ == "__main__":
    with in_one_line():
        main()
