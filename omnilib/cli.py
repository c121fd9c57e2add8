"""`omni`: speak, reproduce, train, data, fetch, doctor, verify, report.

A mistake of the user's is one line on stderr and exit code 2; heavy imports wait until a command needs them.
"""

import argparse
import os
import runpy
import subprocess
import sys
import time
from pathlib import Path

from omnilib.errors import UserError
from omnilib.paths import CHECKPOINTS, REPORTS, ROOT

DATA_TASKS = {  # name -> (module, what it does)
    "build-nano": ("data_prep.nano", "speak and collect the nano corpus"),
    "corpus": ("data_prep.corpora", "records of a published corpus on this disk"),
    "synthesise": ("data_prep.synthetic", "speak conversations with reference voices"),
    "curate": ("data_prep.curate", "raw recordings to checked segments"),
    "validate": ("data_prep.validate", "find what is wrong with a curated corpus"),
    "shards": ("data_prep.shards", "length-bucketed training shards with checksums"),
    "wild": ("data_prep.wild", "a set of recordings with known faults"),
    "score": ("data_prep.score", "what curation made of that set"),
    "plan": ("data_prep.plan", "cost of curating many hours"),
}
TRAIN = Path(__file__).resolve().parent / "train"


def build_parser() -> argparse.ArgumentParser:
    """Every command and flag."""
    parser = argparse.ArgumentParser(prog="omni", description="MGM-Omni to read, train, re-run and trust.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    speak = commands.add_parser("speak", help="text in, wave out")
    speak.add_argument("text", help="what to say, or `-` to read it from standard input")
    speak.add_argument("-o", "--out", type=Path, required=True, metavar="OUT.wav")
    speak.add_argument("--voice", metavar="NAME|REF.wav", help="a committed voice (default: the first), or a recording of 1-30 s to clone")
    speak.add_argument("--voice-text", help="what is said in the recording (needed with a recording)")
    speak.add_argument("--language", help="en or zh (default: told from the text)")
    speak.add_argument("--scale", default="nano", help="checkpoints/<scale>, or a folder of checkpoints: ours, or a published MGM-Omni-TTS")
    speak.add_argument("--device", default="cpu", help="cpu or cuda")
    speak.add_argument("--seed", type=int, default=0)
    speak.add_argument("--temperature", type=float, help="0 is greedy (default: the checkpoint's)")
    speak.add_argument("--stream", action="store_true", help="write the file piece by piece, as sound is made")

    reproduce = commands.add_parser("reproduce", help="re-evaluate the checkpoints, run every notebook, rebuild reports/")
    reproduce.add_argument("--only", metavar="NN", help="only the notebooks whose name starts with NN, no re-evaluation")
    reproduce.add_argument("--notebooks", action="store_true", help="every notebook, no re-evaluation")
    reproduce.add_argument("--scale", default="nano", choices=["smoke", "nano", "paper"])

    train = commands.add_parser("train", help="run one training stage")
    train.add_argument("stage", nargs="?", help=", ".join(stages()))
    train.add_argument("rest", nargs=argparse.REMAINDER, help="--config NAME --set key=value ... --out FOLDER")

    data = commands.add_parser("data", help="build, curate, check, shard and plan corpora")
    data.add_argument("task", nargs="?", help=", ".join(DATA_TASKS))
    data.add_argument("rest", nargs=argparse.REMAINDER)

    fetch = commands.add_parser("fetch", help="download published weights from the hub, pinned to a commit (uses the network)")
    fetch.add_argument(
        "pin", metavar="OWNER/NAME@COMMIT", help="for example wcy1122/MGM-Omni-TTS-2B-0927@<40 hex digits>; a branch tells its commit"
    )
    fetch.add_argument("-o", "--out", type=Path, help="folder (default: checkpoints/paper/NAME)")

    commands.add_parser("doctor", help="versions, device, judges and engines: what is here, what is missing")

    verify = commands.add_parser("verify", help="recompute chosen numbers from the checkpoints and compare with the reports")
    verify.add_argument("--scale", default="nano")

    report = commands.add_parser("report", help="rebuild reports/index.html, reports/README.md and README's results table")
    report.add_argument("--scale", default="nano")
    return parser


def stages() -> list[str]:
    """Training scripts, one per stage (the folder holds shared helpers too)."""
    return sorted(p.stem for p in TRAIN.glob("*.py") if '__name__ == "__main__"' in p.read_text(encoding="utf-8"))


def speak(args: argparse.Namespace) -> int:
    """Write what the model says."""
    check_output(args.out)
    text = sys.stdin.read() if args.text == "-" else args.text
    from omnilib.speak import Speaker, check_text

    check_text(text, args.language)  # before the seconds of loading
    speaker = Speaker.load(args.scale, args.device)
    request = {"voice": args.voice, "voice_text": args.voice_text, "language": args.language, "seed": args.seed}
    if args.stream:
        return speak_streaming(speaker, text, args, request)
    result = speaker.speak(text, temperature=args.temperature, **request)
    result.save(args.out)
    shares = ", ".join(f"{name} {seconds:.2f}" for name, seconds in result.timings.items())
    print(f"{args.out}: {result.seconds:.1f} s of speech, real-time factor {result.rtf:.2f} (seconds: {shares})")
    for chunk in result.flagged:
        print(f"warning: chunk {chunk + 1} ended by a failure guard; try another --seed or a lower --temperature", file=sys.stderr)
    return 0


def speak_streaming(speaker: object, text: str, args: argparse.Namespace, request: dict) -> int:
    """Write pieces as they are born, and say when the first one came."""
    import soundfile

    started, samples, first = time.perf_counter(), 0, None
    with soundfile.SoundFile(args.out, "w", speaker.rate, 1, "PCM_16") as file:
        for piece in speaker.stream(text, temperature=args.temperature, **request):
            first = first or time.perf_counter() - started
            file.write(piece.cpu().numpy())
            file.flush()
            samples += len(piece)
    print(
        f"{args.out}: {samples / speaker.rate:.1f} s of speech, first sound after {first or 0:.2f} s, all after {time.perf_counter() - started:.2f} s"
    )
    return 0


def check_output(path: Path) -> None:
    """Find out now, not after the work, that a file cannot be written.

    Raises:
        UserError: no such folder, not writable, or not a .wav name.
    """
    if path.suffix.lower() != ".wav":
        raise UserError(f"cannot write {path}: give a name that ends in .wav")
    if path.is_dir() or not path.parent.is_dir():
        raise UserError(f"cannot write {path}: the folder {path.parent} does not exist; create it first")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UserError(f"cannot write {path}: no permission; choose another folder with -o")


def reproduce(args: argparse.Namespace) -> int:
    """Evaluation, notebooks, index: what fails is named at the end and the rest goes on."""
    from omnilib import report

    started, failures = time.time(), []
    reports = ROOT / "runs" / "reports" if args.scale == "smoke" else REPORTS  # smoke numbers mean nothing: not beside real ones
    notebooks = report.list_notebooks(args.only)
    if args.only is None and not args.notebooks and args.scale == "nano":
        print("evaluating the committed checkpoints", flush=True)
        if subprocess.call([sys.executable, "-m", "omnilib.eval.nano"], cwd=ROOT) != 0:
            failures.append("omnilib.eval.nano (its message stands above)")
    outcomes = report.run_notebooks(notebooks, args.scale, reports)
    failures += [f"{o.name}: {o.error}" for o in outcomes if not o.ok]
    report.build_index(reports, args.scale, readme=ROOT / "README.md" if args.scale == "nano" else None)
    where = (reports / "index.html").relative_to(ROOT) if reports.is_relative_to(ROOT) else reports / "index.html"
    print(
        f"{where} rebuilt; {len(outcomes) - sum(not o.ok for o in outcomes)} of {len(outcomes)} notebooks ok; {(time.time() - started) / 60:.1f} minutes"
    )
    for failure in failures:
        print(f"FAILED {failure}", file=sys.stderr)
    return 1 if failures else 0


def run_module(name: str, arguments: list[str]) -> int:
    """Run a script of ours in this process, so that its UserErrors stay one line."""
    sys.argv = [name, *arguments]
    runpy.run_module(name, run_name="__main__", alter_sys=True)
    return 0


def train(args: argparse.Namespace) -> int:
    """Hand over to omnilib/train/<stage>.py."""
    if args.stage is None:
        print(f"usage: omni train STAGE --config NAME [--set key=value ...] --out FOLDER\nstages: {', '.join(stages())}")
        return 0
    if args.stage not in stages():
        raise UserError(f"no training stage '{args.stage}': choose one of {', '.join(stages())}")
    return run_module(f"omnilib.train.{args.stage}", args.rest)


def data(args: argparse.Namespace) -> int:
    """Hand over to data_prep."""
    if args.task is None:
        print("usage: omni data TASK [--help] ...\n" + "\n".join(f"  {task:<11} {what}" for task, (_, what) in DATA_TASKS.items()))
        return 0
    if args.task not in DATA_TASKS:
        raise UserError(f"no data task '{args.task}': choose one of {', '.join(DATA_TASKS)}")
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
    print(f"{folder}: speak with `omni speak TEXT --scale {folder} --voice REF.wav --voice-text ... -o out.wav`")
    return 0


def doctor(args: argparse.Namespace) -> int:
    from omnilib import environment

    return environment.doctor()


def verify(args: argparse.Namespace) -> int:
    """A table of recomputed numbers beside the committed ones; 1 when one is outside its tolerance."""
    from omnilib.eval.recheck import recheck

    checks = recheck(args.scale)
    print(f"{'':<8}{'committed':>10}{'now':>10}{'tolerance':>11}  what")
    for check in checks:
        print(f"{'ok' if check.ok else 'DIFFERS':<8}{check.committed:>10.4f}{check.measured:>10.4f}{check.tolerance:>11.2g}  {check.name}")
    return 0 if all(check.ok for check in checks) else 1


def report(args: argparse.Namespace) -> int:
    from omnilib.report import build_index

    build_index(scale=args.scale, readme=ROOT / "README.md")
    print("wrote reports/index.html, reports/README.md and the results table of README.md")
    return 0


COMMANDS = {
    "speak": speak,
    "reproduce": reproduce,
    "train": train,
    "data": data,
    "fetch": fetch,
    "doctor": doctor,
    "verify": verify,
    "report": report,
}


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns its exit code."""
    args = build_parser().parse_args(argv)
    try:
        code = COMMANDS[args.command](args)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader, `head` say, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except UserError as error:
        print(f"omni: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("omni: stopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    raise SystemExit(main())
