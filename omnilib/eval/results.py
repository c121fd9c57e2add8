"""What an evaluation leaves behind: facts about the checkpoints, metrics.json, records, a page, the flat summary.

reports/<scale>/eval/{metrics.json, utterances.jsonl, long.jsonl, audio/*.mp3, report.html, provenance.json, timings.json}
reports/<scale>/summary.json    headline figures, each {"value", "n", "ci95", "source"}; other measurements add theirs
reports/<scale>/timings.json    those that measure speed, which differ from machine to machine

The folder is replaced as a whole when all of it is written; a stopped evaluation leaves the earlier one.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from omnilib import report, retrain
from omnilib.errors import CheckpointError
from omnilib.paths import REPORTS
from omnilib.provenance import (
    commit_of,
    git_state,
    peak_memory_gb,
    read_json,
    stamp,
    write_json,
    write_stamp,
    write_text,
)
from omnilib.report import sources
from omnilib.report.folders import fresh_folder, replace_folder
from omnilib.report.headlines import split_timings
from omnilib.storage import SCALE

NATURAL = (  # of a frozen set drawn from the natural corpus: there when measured
    *("wer_everyday_en_gt", "wer_everyday_en_codec", "wer_everyday_en_tts"),
    *("zh_everyday_gt", "zh_everyday_codec", "zh_everyday_tts"),
    *("clone_similarity", "clone_impostor", "clone_nearest"),
    *("clone_human_similarity", "clone_human_impostor", "clone_human_nearest"),
    *("wer_en_seen_gt", "wer_en_seen_tts", "zh_seen_gt", "zh_seen_tts", "wer_en_human_voice_tts"),
    *(f"dnsmos_{language}_{system}" for language in ("en", "zh") for system in ("gt", "codec", "tts")),
)
SUMMARY = (
    *("wer_en_gt", "wer_en_codec", "wer_en_tts", "wer_en_open_gt", "wer_en_open_tts"),
    *("zh_gt", "zh_codec", "zh_tts", "zh_open_gt", "zh_open_tts", "zh_cer_gt", "zh_cer_tts"),
    *(
        "long_wer_en",
        "long_similarity_first_last",
        "long_flagged_texts",
        "sim_seen",
        "sim_unseen",
        "sim_gt_pair",
        "sim_threshold",
    ),
    *("rtf_total", "rtf_mouth", "rtf_flow", "rtf_hift", "ttfs_stream_s", "retrain_hours", "params_total"),
)
MODULES = ("tokenizer", "speaker", "flow", "hift", "speechlm")
WORST = 20  # sentences shown on the page


def count_parameters(folder: Path) -> int:
    """Parameters of a checkpoint, read from the header of its safetensors file.

    Raises:
        CheckpointError: missing or truncated file.
    """
    try:
        with safe_open(str(folder / "model.safetensors"), "pt") as file:
            names = [name for name in file.keys() if not name.endswith(SCALE)]  # noqa: SIM118  not a dict
            return sum(int(np.prod(file.get_slice(name).get_shape())) for name in names)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"cannot read {folder.name}/model.safetensors: {error}; restore it with `git checkout`"
        ) from None


def parameters_of(folder: Path) -> dict:
    """Parameters of the five modules that speak."""
    counts = {name: count_parameters(folder / name) for name in MODULES}
    return {"value": sum(counts.values()), "n": len(counts), "ci95": None, "modules": counts}


def training_hours(folder: Path) -> dict:
    """Wall time of all stages that make the checkpoints, run as `omnilib/retrain.py` plans, and that of each.

    It is that of each meta.json, or what wall_times.json says instead: {"corpus": seconds, ...}.
    """
    stages = {}
    for path in sorted(folder.glob("*/meta.json")):
        seconds = json.loads(path.read_text(encoding="utf-8")).get("train_seconds")
        if seconds is not None:
            stages[path.parent.name] = seconds
    times = folder / "wall_times.json"
    if times.is_file():
        stages |= json.loads(times.read_text(encoding="utf-8"))
    return {
        "value": retrain.wall_seconds(stages) / 3600 if stages else None,
        "n": len(stages),
        "ci95": None,
        "stages_seconds": stages,
    }


def write_jsonl(path: Path, rows: Iterable[dict]) -> None:
    """One JSON object a line, under a temporary name, then renamed."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
    )
    temporary.replace(path)


def write_summary(folder: Path, metrics: dict[str, dict], source: str) -> None:
    """The flat headline figures, summary.json and timings.json; what was not measured now reads null.

    Args:
        source: folder of the figures, as the tables name it; keys of other evaluations in the files stay.
    """
    nothing = {"value": None, "n": 0, "ci95": None}
    flat = {
        name: {k: metrics.get(name, nothing)[k] for k in ("value", "n", "ci95")}
        for name in (*SUMMARY, *(n for n in NATURAL if n in metrics))
    }
    for path, own in zip(
        (folder / "summary.json", folder / "timings.json"), split_timings(flat), strict=True
    ):
        old = {name: entry for name, entry in read_json(path).items() if name not in flat}
        write_json(
            path, {name: entry | {"source": f"{source}/{file_of(path)}"} for name, entry in own.items()} | old
        )


def file_of(path: Path) -> str:
    """The file of an evaluation from which a summary is drawn."""
    return "timings.json" if path.name == "timings.json" else "metrics.json"


def add_to_summary(path: Path, entries: dict[str, dict], source: str) -> None:
    """Put headline figures into the flat summary; what is there under other names stays."""
    old = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    write_json(
        path,
        old
        | {
            name: {k: e[k] for k in ("value", "n", "ci95")} | {"source": source}
            for name, e in entries.items()
        },
    )


def add_bench(path: Path, entries: dict[str, dict], reports: Path = REPORTS) -> None:
    """Headline figures of speed that a bench wrote to reports/<scale>/...json join the scale's timings.json.

    A file elsewhere is a look: nothing is added.
    """
    if path.resolve().is_relative_to(reports.resolve()):
        below = path.resolve().relative_to(reports.resolve())
        add_to_summary(reports / below.parts[0] / "timings.json", entries, f"reports/{below.as_posix()}")


def unit_of(entry: dict) -> str:
    """Rates are shown in percent."""
    return "%" if entry["unit"] == "rate" else entry["unit"]


def write_page(path: Path, metrics: dict[str, dict], records: Sequence[dict]) -> None:
    """report.html: every figure with its conditions, and the sentences that went worst."""
    rows = [
        (
            name,
            report.number(m, unit_of(m)),
            m["n"],
            "-" if m["temperature"] is None else m["temperature"],
            m["judge"] or "-",
        )
        for name, m in metrics.items()
    ]
    spoken = [r for r in records if r["system"] == "tts" and r["role"] == "eval"]
    worst = sorted(spoken, key=lambda r: -r["wer" if r["language"] == "en" else "pinyin"]["error"])[:WORST]
    cells = [
        (r["speaker"], r["text"], r["transcript"], f"{r['similarity']:.2f}", ", ".join(r["flags"]) or "-")
        for r in worst
    ]
    body = (
        "<h1>Evaluation</h1>"
        + report.html_table(("measure", "value (95 % interval)", "n", "temperature", "judge"), rows)
        + f"<h2>The {len(cells)} sentences that went worst</h2>"
        + report.html_table(("speaker", "text", "heard", "similarity", "flags"), cells)
    )
    footer = (
        f'<p class="soft">Commit {commit_of(git_state())}. Date, duration, device and seconds of each part: timings.json. Another machine may change '
        "this line and the rows of rtf and ttfs; a processor of another family may also let the judge hear some words otherwise.</p>"
    )
    write_text(path, report.page("Evaluation", body + footer))


def write_sounds(folder: Path, demos: Sequence[tuple[str, str, torch.Tensor, int]]) -> list[dict]:
    """MP3 of each (name, caption, wave, rate); returns the entries of metrics.json."""
    (folder / "audio").mkdir(parents=True, exist_ok=True)
    entries = []
    for name, caption, wave, rate in demos:
        (folder / "audio" / f"{name}.mp3").write_bytes(report.encode_mp3(wave, rate))
        entries.append(
            {
                "file": f"audio/{name}.mp3",
                "caption": caption,
                "demo": name.endswith("-tts") or name == "long-start",
            }
        )
    return entries


def write(
    reports: Path,
    scale: str,
    metrics: dict[str, dict],
    settings: dict,
    parameters: dict,
    manifest: Path,
    records: Sequence[dict] = (),
    long_records: Sequence[dict] = (),
    demos: Sequence[tuple[str, str, torch.Tensor, int]] = (),
    seconds: float = 0.0,
) -> None:
    """Everything, under `reports`/`scale`.

    Args:
        settings: of decoding and judges; its `wall_seconds` (of each part) goes to timings.json.
    """
    settings = dict(settings)
    parts = settings.pop("wall_seconds", {})
    plain, speed = split_timings(metrics)
    target = reports / scale / "eval"
    with fresh_folder(target) as folder:
        sounds = write_sounds(folder, demos)
        whole = {"name": "eval", "scale": scale, "settings": settings, "metrics": plain}
        write_json(folder / "metrics.json", whole | {"figures": [], "sounds": sounds, "paper": []})
        write_jsonl(folder / "utterances.jsonl", records)
        write_jsonl(folder / "long.jsonl", long_records)
        write_page(folder / "report.html", metrics, records)
        stamped = stamp(scale, parameters, settings, {"frozen": manifest}, seconds)
        sources.record(folder, "eval", scale)
        stamped |= {"status": "ok", "error": "", "peak_memory_gb": peak_memory_gb()}
        write_stamp(folder, stamped, {"parts_seconds": parts, "metrics": speed})
        replace_folder(folder, target)
    write_summary(reports / scale, metrics, f"reports/{scale}/eval")
