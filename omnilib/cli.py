"""`omni`: speak, ask, chat, serve, reproduce, compare, train, data, fetch, doctor, verify, report.

A mistake of the user's is one line on stderr and exit code 2; heavy imports wait until a command needs them.
"""

import argparse
import contextlib
import errno
import os
import runpy
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from omnilib import options
from omnilib.errors import CheckpointError, UserError
from omnilib.flags import DATA_TASKS, build_parser, stages
from omnilib.output import STANDARD_OUTPUT, WaveOutput, check_output, shown
from omnilib.paths import CHECKPOINTS, REPORTS, ROOT, RUNS, need_workspace
from omnilib.serve import __main__ as server

if TYPE_CHECKING:
    from omnilib.speak import SpeechStream, TextToSpeech

NEED_WORKSPACE = ("reproduce", "compare", "verify", "report")  # they read or write reports/


def read_text(given: str) -> str:
    """What to say: the argument, or standard input for `-`.

    Raises:
        UserError: not UTF-8, or no text at all.
    """
    if given != "-":
        raw = given.encode(
            "utf-8", "surrogateescape"
        )  # bytes of the command line that its locale could not read
    elif sys.stdin is None:
        raise UserError("standard input is closed: give the text as an argument")
    else:
        if sys.stdin.isatty():
            print("type the text, then Ctrl-D", file=sys.stderr)
        raw = sys.stdin.buffer.read()
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in raw:
        raise UserError(
            "the text is not UTF-8 (it looks like UTF-16, or like no text at all): save it as UTF-8"
        )
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise UserError(
            f"the text is not UTF-8 (line {line}): save it as UTF-8, or convert it with iconv"
        ) from None


def speak(args: argparse.Namespace) -> int:
    """Write what the model says; 1 when not all of the text was spoken."""
    check_output(args.out, args.voice)
    if args.voice_text and not args.voice:
        raise UserError("--voice-text is what is said in a recording: give the recording with --voice")
    text = read_text(args.text)
    from transformers.utils import logging

    from omnilib.device import check_device
    from omnilib.speak import TextToSpeech, check_text

    logging.disable_progress_bar()  # of a fraction of a second
    check_text(text, args.language)  # before the seconds of loading
    check_device(args.device)
    speaker = TextToSpeech.load(args.scale, args.device, args.precision)
    for entry in speaker.voices.values():
        check_output(args.out, speaker.folder / entry["file"])
    request = {
        "voice": args.voice,
        "voice_text": args.voice_text,
        "language": args.language,
        "seed": args.seed,
    }
    request |= {"temperature": args.temperature, "progress": sys.stderr is not None and sys.stderr.isatty()}
    if args.stream:
        result, told = stream_speech(speaker, text, args.out, request)
    else:
        result = speaker.speak(text, **request)
        with WaveOutput(args.out, result.rate, expected=len(result.wave)) as output:
            output.write(result.wave)
        shares = ", ".join(f"{name} {seconds:.2f}" for name, seconds in result.timings.items())
        told = f"{result.seconds:.1f} s of speech, real-time factor {result.rtf:.2f} (seconds: {shares})"
    tell(f"{shown(args.out)}: {told}", to_errors=str(args.out) in STANDARD_OUTPUT)
    if args.voice_text and args.voice in speaker.voices:
        print(f"warning: --voice-text was not used: what voice {args.voice} says is known", file=sys.stderr)
    for message in result.messages:
        print(f"warning: {message}", file=sys.stderr)
    return 0 if result.complete else 1


def ask(args: argparse.Namespace) -> int:
    """Print the answer as it comes; 1 when it was cut."""
    text = read_text(args.text)
    from transformers.utils import logging

    from omnilib.brain.ask import Brain, turn

    logging.disable_progress_bar()  # of a fraction of a second
    files = {"audio": args.audio, "images": args.image, "videos": args.video}
    turn(text, **files)  # before the seconds of loading
    talk = Brain.load(args.scale, args.device).conversation()
    settings = {"max_new_tokens": args.max_new_tokens, "temperature": args.temperature, "seed": args.seed}
    for words in talk.stream(text, **files, **settings):
        print(words, end="", flush=True)
    print(flush=True)
    return 0 if talk.last.complete else 1


def chat(args: argparse.Namespace) -> int:
    """Hold a conversation."""
    from omnilib.chat import run

    return run(args, read_text(args.text))


def serve(args: argparse.Namespace) -> int:
    """Serve until a signal comes."""
    server.serve(args)
    return 0


def stream_speech(speaker: "TextToSpeech", text: str, out: Path, request: dict) -> tuple["SpeechStream", str]:
    """Write pieces as they are born; returns the finished stream and a line about it."""
    started, first = time.perf_counter(), None
    stream = speaker.stream(text, **request)
    with WaveOutput(out, speaker.rate) as output:
        for piece in stream:
            first = first or time.perf_counter() - started
            output.write(piece)
    seconds, spent = output.samples / speaker.rate, time.perf_counter() - started
    return stream, f"{seconds:.1f} s of speech, first sound after {first or 0:.2f} s, all after {spent:.2f} s"


def tell(line: str, to_errors: bool = False) -> None:
    """Print a line about the result: to standard error when standard output carries the wave.

    Raises:
        OSError: standard output is closed or full.
    """
    if to_errors:
        print(line, file=sys.stderr)
    elif sys.stdout is None:
        raise OSError(errno.EBADF, f"standard output is closed; {line}")
    else:
        print(line, flush=True)


def reproduce(args: argparse.Namespace) -> int:
    """Evaluation, notebooks, index: failures are listed at the end and stop nothing else.

    Only a whole run without a failure writes the front page; changed parameters never touch the plain reports.
    """
    from omnilib import report
    from omnilib.report.folders import check_writable
    from omnilib.report.parameters import combinations

    started, failures = time.time(), []
    notebooks = report.list_notebooks(args.only)
    report.check_scale(args.scale)
    notebooks, left_out = report.with_parts(notebooks, args.scale)
    if not notebooks:
        raise CheckpointError(left_out[0])
    print(*left_out, sep="\n", end="\n" * bool(left_out), flush=True)
    given = [*args.parameter, *([f"seed={args.seed}"] if args.seed is not None else [])]
    if given:
        return variants(notebooks, args.scale, combinations(given, notebooks))
    reports = (
        RUNS / "reports" if args.scale == "smoke" else REPORTS
    )  # smoke numbers mean nothing: not beside real ones
    check_writable(reports)
    if args.only is None and not args.notebooks and args.scale == "nano":
        print("evaluating the committed checkpoints", flush=True)
        if subprocess.call([sys.executable, "-m", "omnilib.eval.nano"], cwd=ROOT) != 0:
            failures.append("omnilib.eval.nano (its message stands above)")
    outcomes = report.run_notebooks(notebooks, args.scale, reports)
    failures += [f"{o.name}: {o.error}" for o in outcomes if not o.ok]
    where = (
        (reports / "index.html").relative_to(ROOT) if reports.is_relative_to(ROOT) else reports / "index.html"
    )
    if failures or (args.only is not None and args.scale != "smoke"):
        told = f"{where} stays as it was" + ("" if failures else " (`omni report` rebuilds it)")
    else:
        report.build_index(reports, args.scale, readme=ROOT / "README.md" if args.scale == "nano" else None)
        told = f"{where} rebuilt"
    print(
        f"{told}; {sum(o.ok for o in outcomes)} of {len(outcomes)} notebooks ok; {(time.time() - started) / 60:.1f} minutes"
    )
    for failure in failures:
        print(f"FAILED {failure}", file=sys.stderr)
    return 1 if failures else 0


def variants(notebooks: list[Path], scale: str, every: list[dict]) -> int:
    """Run notebooks with changed parameters into runs/variants, then one table and one plot of each notebook's runs."""
    from omnilib import report
    from omnilib.report.compare import sweep
    from omnilib.report.folders import check_writable
    from omnilib.report.parameters import variant_name

    home, outcomes = RUNS / "variants", []
    check_writable(home)
    for values in every:
        outcomes += report.run_notebooks(notebooks, scale, home, values, name=variant_name(values))
    for notebook in notebooks:
        folders = [p.parent for p in sorted((home / scale).glob(f"{notebook.stem}@*/metrics.json"))]
        if folders:
            files = sweep(folders, home / scale / f"{notebook.stem}-sweep")
            print(
                f"{len(folders)} runs of {notebook.stem}: {', '.join(str(f.relative_to(ROOT) if f.is_relative_to(ROOT) else f) for f in files)}"
            )
    for outcome in outcomes:
        if not outcome.ok:
            print(f"FAILED {outcome.name}: {outcome.error}", file=sys.stderr)
    return 0 if all(o.ok for o in outcomes) else 1


def compare(args: argparse.Namespace) -> int:
    """Settings and figures of two runs; 0 when no figure differs beyond its interval, 1 when one does or only one side has it."""
    from omnilib.report.compare import read_side, text_of

    text, code = text_of(read_side(args.a, args.scale), read_side(args.b, args.scale))
    print(text)
    return code


def run_module(name: str, arguments: list[str]) -> int:
    """Run a script of ours in this process, so that its UserErrors stay one line."""
    sys.argv, several_lines = [name, *arguments], argparse.ArgumentParser.error
    argparse.ArgumentParser.error = options.Parser.error  # the script's own parser is a plain one
    try:
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    except SystemExit as stop:
        if isinstance(stop.code, str):  # how a script of its own ends after a UserError
            raise UserError(stop.code.removeprefix("error: ")) from None
        raise
    finally:
        argparse.ArgumentParser.error = several_lines
    return 0


def train(args: argparse.Namespace) -> int:
    """Hand over to omnilib/train/<stage>.py."""
    if args.stage is None:
        print(
            f"usage: omni train STAGE --config NAME [--set key=value ...] --out FOLDER\nstages: {', '.join(stages())}"
        )
        return 0
    if args.stage not in stages():
        raise UserError(f"no training stage '{args.stage}': choose one of {', '.join(stages())}")
    return run_module(f"omnilib.train.{args.stage}", args.rest)


def data(args: argparse.Namespace) -> int:
    """Hand over to data_prep."""
    if args.task is None:
        print(
            "usage: omni data TASK [--help] ...\n"
            + "\n".join(f"  {task:<11} {what}" for task, (_, what) in DATA_TASKS.items())
        )
        return 0
    if args.task not in DATA_TASKS:
        raise UserError(f"no data task '{args.task}': choose one of {', '.join(DATA_TASKS)}")
    if args.task == "wild" and not {"-h", "--help"} & set(args.rest):
        need_workspace()  # it speaks between recordings of data_prep/frozen
    return run_module(DATA_TASKS[args.task][0], args.rest)


def fetch(args: argparse.Namespace) -> int:
    """Download, then say whether every weight fits our classes."""
    from omnilib import weights

    folder = args.out or CHECKPOINTS / "paper" / weights.split_pin(args.pin)[0].split("/")[1]
    weights.download(args.pin, folder)
    fits = weights.check(folder)
    print(weights.report(fits))
    if not all(fit.fits for fit in fits):
        return 1
    if weights.is_brain(folder):
        print(f"{folder}: a brain; load it with `omnilib.weights.load_brain`")
        return 0
    print(
        f"{folder}: speak with `omni speak TEXT --scale {folder} --voice REF.wav --voice-text ... -o out.wav`"
    )
    return 0


def doctor(args: argparse.Namespace) -> int:
    from omnilib import environment

    return environment.doctor()


def verify(args: argparse.Namespace) -> int:
    """A table of recomputed numbers beside the committed ones; 1 when one is outside its tolerance."""
    if args.arithmetic:
        from omnilib.eval.recount import recount

        checks = recount(REPORTS, args.scale, CHECKPOINTS / args.scale)
    else:
        from omnilib.eval.recheck import recheck

        checks = recheck(args.scale)
    print(f"{'':<8}{'committed':>10}{'now':>10}{'tolerance':>11}  what")
    for check in checks:
        print(
            f"{'ok' if check.ok else 'DIFFERS':<8}{check.committed:>10.4f}{check.measured:>10.4f}{check.tolerance:>11.2g}  {check.name}"
        )
    return 0 if all(check.ok for check in checks) else 1


def report(args: argparse.Namespace) -> int:
    """Rebuild the front page from what was measured at nano (or paper) scale; README's table shows nano alone."""
    from omnilib.report import build_index

    if args.scale not in ("nano", "paper"):
        raise UserError(
            f"the front page shows nano or paper figures, not '{args.scale}'; a smoke run has its own in runs/reports/index.html"
        )
    if args.check or args.accept:
        return check_sources(args)
    build_index(REPORTS, args.scale, readme=ROOT / "README.md" if args.scale == "nano" else None)
    print(
        "wrote reports/index.html, reports/README.md"
        + (" and the results table of README.md" if args.scale == "nano" else "")
    )
    return 0


def check_sources(args: argparse.Namespace) -> int:
    """Name the results that are older than their code, data, checkpoints or packages; or accept a change by name."""
    from omnilib.report import sources

    if args.accept:
        print(
            f"{args.accept}: accepted {', '.join(sources.accept(args.accept, args.why, REPORTS, args.scale))}"
        )
        return 0
    stale = sources.check(REPORTS, args.scale)
    for name, changes in stale.items():
        print(f"{name}: {'; '.join(changes)}")
    if stale:
        print(
            "measure these again (`make reproduce`, `make retrain`), or keep them and say why: omni report --accept RESULT --why ...",
            file=sys.stderr,
        )
    return 1 if stale else 0


COMMANDS = {
    "speak": speak,
    "ask": ask,
    "chat": chat,
    "serve": serve,
    "reproduce": reproduce,
    "compare": compare,
    "train": train,
    "data": data,
    "fetch": fetch,
    "doctor": doctor,
    "verify": verify,
    "report": report,
}


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns its exit code: 0, 1 (a failure), 2 (a mistake of the user's), 130 and 143 (stopped)."""
    reserve_descriptors()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a name that the locale cannot write is no reason to stop
            stream.reconfigure(errors="backslashreplace")
    args = build_parser().parse_args(argv)
    before = stop_on_signals()
    try:
        if args.command in NEED_WORKSPACE:
            need_workspace()
        code = COMMANDS[args.command](args)
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader, `head` say, has had enough
        drop_output()
        return 141
    except UserError as error:
        print(f"omni: {' '.join(str(error).splitlines())}", file=sys.stderr)
        return 2
    except OSError as error:
        if type(error) is not OSError and not isinstance(error, REFUSALS):
            raise  # a library's own kind of error: no user's doing
        drop_output()
        print(f"omni: {one_line(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("omni: stopped", file=sys.stderr)
        return 130
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stop_on_signals() -> dict:
    """Treat SIGTERM like Ctrl-C, so that half-written files are removed; returns the earlier handlers."""
    if threading.current_thread() is not threading.main_thread():
        return {}

    def stop(number: int, _frame) -> None:
        raise SystemExit(128 + number)

    numbers = [signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
    wanted = [
        number for number in numbers if signal.getsignal(number) != signal.SIG_IGN
    ]  # `nohup` goes on ignoring
    return {number: signal.signal(number, stop) for number in wanted}


def reserve_descriptors() -> None:
    """Where a standard stream was closed, open /dev/null: the next file would get its number, and a library's words with it."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number: this one
    if sys.stderr is None:  # print() would take standard output instead
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115, PTH123


def drop_output() -> None:
    """Send the rest of standard output nowhere: Python would try to write it once more at the end."""
    if sys.stdout is not None:
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


REFUSALS = (  # what the system says no to, whatever file, folder or network a user named
    *(PermissionError, FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError),
    *(ConnectionError, TimeoutError, shutil.Error),
)
HINTS = {
    errno.ENOSPC: "free some space, or write elsewhere",
    errno.EROFS: "set OMNILIB_RUNS and OMNILIB_REPORTS to folders that can be written",
    errno.EACCES: "set OMNILIB_RUNS and OMNILIB_REPORTS to folders that can be written, or ask for permission",
    errno.EDQUOT: "your quota is used up; write elsewhere",
}


def one_line(error: OSError) -> str:
    """What the system refused, to which file, and what to do."""
    words = error.strerror or " ".join(str(error).splitlines()) or type(error).__name__
    name = f": {shown(Path(os.fsdecode(error.filename)))}" if isinstance(error.filename, str | bytes) else ""
    return f"{words}{name}" + (f"; {HINTS[error.errno]}" if error.errno in HINTS else "")


if __name__ == "__main__":
    raise SystemExit(main())
