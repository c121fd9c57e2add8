"""Inside a notebook: `run = report.start(...)` collects numbers, figures and sounds, and stamps them."""

import html
import io
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omnilib.errors import UserError
from omnilib.paths import NOTEBOOKS, REPORTS, ROOT, RUNS
from omnilib.provenance import commit_of, peak_memory_gb, read_json, stamp, write_json, write_stamp
from omnilib.report.headlines import load_summary, read_metrics, split_timings
from omnilib.report.html import data_uri, html_table, show
from omnilib.report.index import measured, rule_of

VERDICTS = ("reproduced", "trend holds", "differs", "not attempted")
AUDIO_RATE = 24000
SPEED_FILE = "speed.json"  # what `python -m omnilib.bench.speed --out` writes, below reports/<scale>


def start(name: str, scale: str, seed: int = 0, out_dir: str = "", **parameters: Any) -> "Run":
    """Begin a report: seeds everything, prints commit, device and versions, returns the collector.

    Args:
        name: notebook file name without .ipynb.
        out_dir: report folder; "" means runs/notebooks/<scale>/<name>, so that exploring does not touch `reports/`.
    """
    from omnilib.environment import device_model, versions
    from omnilib.provenance import git_state
    from omnilib.seed import seed_everything

    seed_everything(seed)
    folder = ROOT / out_dir if out_dir else RUNS / "notebooks" / scale / name  # an absolute out_dir wins
    folder.mkdir(parents=True, exist_ok=True)
    run = Run(name, scale, folder, {"scale": scale, "seed": seed, **parameters})
    git, version = git_state(), versions()
    print(f"{name} · scale {scale} · seed {seed} · commit {commit_of(git)}")
    print(
        f"{device_model()} · " + " · ".join(f"{k} {version[k]}" for k in ("python", "torch", "transformers"))
    )
    run.write()
    write_json(
        folder / "provenance.json", {"status": "running", "parameters": run.parameters, "settings": {}}
    )
    return run


def few_colours(png: bytes) -> bytes:
    """A picture in its 128 commonest colours, without remarks: a third of the bytes, the same ones at every run."""
    from PIL import Image

    buffer = io.BytesIO()
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    picture.quantize(128, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(
        buffer, "png", optimize=True
    )
    return buffer.getvalue()


@dataclass
class Run:
    """What one notebook found; written at every addition: to metrics.json, and what measures speed to timings.json."""

    name: str
    scale: str
    folder: Path
    parameters: dict
    settings: dict = field(default_factory=dict)
    metrics: dict[str, dict] = field(default_factory=dict)
    figures: list[dict] = field(default_factory=list)
    sounds: list[dict] = field(default_factory=list)
    paper: list[dict] = field(default_factory=list)
    claims: list[dict] = field(default_factory=list)
    started: float = field(default_factory=time.time)

    def write(self) -> None:
        metrics, _ = split_timings(self.metrics)
        paper = [row for row in self.paper if row not in self.speed().get("paper", [])]
        whole = {"name": self.name, "scale": self.scale, "settings": self.settings, "metrics": metrics}
        write_json(
            self.folder / "metrics.json",
            whole | {"figures": self.figures, "sounds": self.sounds, "paper": paper},
        )
        write_json(self.folder / "timings.json", self.speed())

    def speed(self) -> dict:
        """What differs from machine to machine: figures of speed and the rows of the paper's table drawn from them."""
        _, metrics = split_timings(self.metrics)
        rows = [row for row in self.paper if row["metric"] in metrics]
        return ({"metrics": metrics} if metrics else {}) | ({"paper": rows} if rows else {})

    def set(self, **settings: Any) -> None:
        """Record decoding, retry and judge settings: they are part of every number."""
        self.settings.update(settings)
        self.write()

    def metric(
        self,
        name: str,
        value: float,
        n: int,
        ci95: tuple[float, float] | None = None,
        unit: str = "",
        source: str = "",
        timing: bool | None = None,
    ) -> float:
        """Record one measured number with its sample count and 95 % interval; returns the value.

        Args:
            unit: "rate" or "%": a share, kept as a fraction and shown in percent; "" tells a share by its name.
            timing: it measures speed and goes to timings.json; None tells it by unit ("s/s", "x") or name (rtf, ttfs...).
        """
        interval = [significant(c) for c in ci95] if ci95 is not None else None
        self.metrics[name] = {"value": significant(value), "n": int(n), "ci95": interval, "unit": unit}
        if source:
            self.metrics[name]["source"] = source
        if timing is not None:
            self.metrics[name]["timing"] = timing
        self.write()
        return value

    def from_summary(self, *names: str) -> dict[str, float]:
        """Take headline figures that `make reproduce` measured (reports/<scale>/summary.json); absent ones are left out."""
        summary, found = load_summary(self.scale), {}
        for name in names:
            entry = summary.get(name)
            if entry and entry.get("value") is not None:
                ci95 = entry["ci95"] if isinstance(entry.get("ci95"), list) else None
                found[name] = self.metric(name, entry["value"], entry["n"] or 0, ci95, source=entry["source"])
        return found

    def passes(self, name: str, value: float, line: float, below: bool = True) -> bool:
        """Is it learning? Print and record whether a figure is beyond its pass line; returns it."""
        ok = value < line if below else value > line
        sign = "below" if below else "above"
        told = "PASS" if ok else "NOT YET"
        print(f"{told}  {name.replace('_', ' ')}: {value:.4g}, the line is {sign} {line:.4g}")
        self.set(pass_lines={**self.settings.get("pass_lines", {}), name: told})
        return ok

    def from_report(self, file: str, *names: str) -> dict[str, float]:
        """Take figures that a program measured (reports/<scale>/<file>); absent ones are left out."""
        entries, found = read_json(REPORTS / self.scale / file).get("metrics", {}), {}
        for key in names:
            if (entry := entries.get(key)) and entry.get("value") is not None:
                source = f"reports/{self.scale}/{file}"
                more = {"ci95": entry.get("ci95"), "unit": entry.get("unit") or "", "source": source}
                found[key] = self.metric(key, entry["value"], entry.get("n") or 0, **more)
        return found

    def from_speed_bench(self, *names: str) -> dict[str, float]:
        """Take figures of the speed bench (reports/<scale>/speed.json); says in one line how to get them when it has not run.

        A ratio is the median over rounds in which plain loop and ours took turns; its range is the lowest and the highest.
        """
        source = f"reports/{self.scale}/{SPEED_FILE}"
        entries, found = read_json(REPORTS / self.scale / SPEED_FILE), {}
        if not entries:
            print(f"no speed figures at {self.scale}: python -m omnilib.bench.speed --out {source}")
        for key in names:
            entry = entries.get(key)
            if isinstance(entry, dict) and entry.get("ratio") is not None:
                spread = tuple(entry["spread"]) if entry.get("spread") else None
                more = {"ci95": spread, "unit": "x", "source": source}
                found[key] = self.metric(key, entry["ratio"], 1, timing=True, **more)
            elif isinstance(entry, int | float):
                found[key] = self.metric(key, entry, 1, source=source, timing=True)
        return found

    def figure(self, figure: Any, name: str, caption: str = "", timing: bool = False) -> None:
        """Save a matplotlib figure as figures/<name>.png and show it; `timing`: it draws speed, another machine draws another."""
        from matplotlib import pyplot

        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=100, bbox_inches="tight")
        pyplot.close(figure)
        data = few_colours(buffer.getvalue())
        self.keep("figures", f"{name}.png", data, caption, **({"timing": True} if timing else {}))
        show(
            f'<figure><img alt="{html.escape(caption or name)}" src="{data_uri("image/png", data)}">',
            caption,
        )

    def drawing(self, drawing: Any, name: str, caption: str = "") -> None:
        """Save a drawing of `omnilib.drawings` as figures/<name>.svg and show it."""
        data = drawing.svg().encode()
        self.keep("figures", f"{name}.svg", data, caption)
        alt = html.escape(caption or drawing.title)
        show(
            f'<figure><img class="diagram" alt="{alt}" src="{data_uri("image/svg+xml", data)}">',
            caption,
        )

    def audio(self, wave: Any, rate: int, name: str, caption: str = "", demo: bool = False) -> None:
        """Save a wave (T,) as audio/<name>.mp3 and show a player; `demo` puts it on the front page too."""
        data = encode_mp3(wave, rate)
        self.keep("sounds", f"{name}.mp3", data, caption, demo=demo)
        show(
            f'<figure><audio controls preload="none" src="{data_uri("audio/mpeg", data)}"></audio>',
            caption or name,
        )

    def keep(self, kind: str, file: str, data: bytes, caption: str, **more: Any) -> None:
        """Write a file of the report and list it once."""
        folder = {"figures": "figures", "sounds": "audio"}[kind]
        path = self.folder / folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        items = [i for i in getattr(self, kind) if i["file"] != f"{folder}/{file}"]
        setattr(self, kind, [*items, {"file": f"{folder}/{file}", "caption": caption, **more}])
        self.write()

    def claim(
        self, claim: str, ref: str, paper: str, verdict: str, metric: str | None = None, **more: str
    ) -> None:
        """Add a row to the table that `paper_table()` draws; fields as there."""
        self.claims.append(
            {"claim": claim, "ref": ref, "paper": paper, "verdict": verdict, "metric": metric, **more}
        )

    def paper_table(self, rows: list[dict] | None = None) -> None:
        """Draw "what the paper says vs what we measured": the rows given, or those added with `claim`.

        Each row: claim, ref (table or section), paper (their value), metric (a recorded name, or None), verdict, and
        optionally rule (when the verdict is `trend holds`: "at most 8 points above recordings"), judge (judge and decoding),
        unit ("%" shows a share in percent) and why (required for `not attempted`). A number never comes from the row
        itself: without a recorded metric the row reads `not attempted`.
        """
        recorded = read_metrics(self.folder)["metrics"]
        self.paper = [paper_row(row, recorded, self.scale) for row in rows or self.claims]
        self.write()
        head = (
            "claim (paper ref)",
            "paper",
            "measured",
            "scale · n",
            "judge / decoding",
            "verdict",
            "holds when",
        )
        cells = [
            (
                f"{r['claim']} ({r['ref']})",
                r["paper"],
                r["measured"],
                r["scale_n"],
                r["judge"],
                r["verdict"] + (f": {r['why']}" if r["why"] else ""),
                r["rule"],
            )
            for r in self.paper
        ]
        show(html_table(head, cells))

    def finish(self) -> None:
        """Write provenance.json and timings.json, and print what was recorded."""
        notebook = NOTEBOOKS / f"{self.name}.ipynb"
        files = {"notebook": notebook} if notebook.exists() else {}
        record = stamp(self.scale, self.parameters, self.settings, files, time.time() - self.started)
        write_stamp(
            self.folder,
            {"status": "ok", "error": "", **record, "peak_memory_gb": peak_memory_gb()},
            self.speed(),
        )
        print(f"{len(self.metrics)} metrics, {len(self.figures)} figures, {len(self.sounds)} sounds")


def significant(value: float) -> float:
    """Six digits (whole numbers stay): processors differ in rounding from about the eighth digit on."""
    return float(value) if float(value).is_integer() else float(f"{value:.6g}")


def holds(trend: bool) -> str:
    """Verdict on a trend that a run below paper scale was looked at for."""
    return "trend holds" if trend else "differs"


def paper_row(row: dict, recorded: dict[str, dict], scale: str) -> dict:
    """Check one row and fill in its measured value.

    Raises:
        UserError: a verdict outside the list, `reproduced` below paper scale, or `not attempted` without a reason.
    """
    name, verdict, why = row.get("metric"), row["verdict"], row.get("why", "")
    if verdict not in VERDICTS:
        raise UserError(f"verdict '{verdict}' of '{row['claim']}' is not one of: {', '.join(VERDICTS)}")
    if verdict == "reproduced" and scale != "paper":
        raise UserError(
            f"'{row['claim']}': a {scale} run never earns `reproduced`; say `trend holds` or `differs`"
        )
    entry = recorded.get(name) if name else None
    if entry is None and verdict != "not attempted":
        verdict, why = "not attempted", f"no metric '{name}' was recorded in this run"
    if verdict == "not attempted" and not why:
        raise UserError(f"'{row['claim']}': `not attempted` needs a reason in `why`")
    row = {**row, "metric": name, "verdict": verdict, "why": why}
    shown = measured(row, entry) if entry else "-"
    count = f"{scale} · {entry['n']}" if entry else "-"
    keep = {k: str(row.get(k, "")) for k in ("claim", "ref", "paper", "judge")}
    rule = str(row.get("rule") or rule_of(row))
    return {
        **keep,
        "metric": name,
        "measured": shown,
        "scale_n": count,
        "verdict": verdict,
        "why": why,
        "rule": rule,
    }


def encode_mp3(wave: Any, rate: int) -> bytes:
    """A mono wave (T,) as MP3 at 24 kHz: every browser plays it, and it is 8 times smaller than WAV."""
    import numpy
    import soundfile
    import soxr

    samples = numpy.asarray(wave, dtype=numpy.float32).reshape(-1)
    if rate != AUDIO_RATE:
        samples = soxr.resample(samples, rate, AUDIO_RATE)
    buffer = io.BytesIO()
    soundfile.write(buffer, samples.clip(-1, 1), AUDIO_RATE, format="MP3", subtype="MPEG_LAYER_III")
    return buffer.getvalue()
