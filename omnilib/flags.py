"""Every command and flag of `omni`."""

import argparse
from pathlib import Path

from omnilib import options
from omnilib.serve import __main__ as server

DATA_TASKS = {  # name -> (module, what it does)
    "build-nano": ("data_prep.nano", "speak and collect the nano corpus"),
    "corpus": ("data_prep.corpora", "records of a published corpus on this disk"),
    "synthesise": ("data_prep.synthetic", "speak conversations with reference voices"),
    "curate": ("data_prep.curate", "raw recordings to checked segments"),
    "validate": ("data_prep.validate", "find what is wrong with a curated corpus"),
    "shards": ("data_prep.shards", "length-bucketed training shards with checksums"),
    "wild": ("data_prep.wild", "a set of recordings with known faults"),
    "score": ("data_prep.score", "what curation made of that set"),
    "plan": ("data_prep.cost", "cost of curating many hours"),
}
SPEAK_NOTES = """\
examples:
  omni speak "the light of the morning" -o hello.wav
  omni speak - -o - --stream < story.txt | ffplay -nodisp -autoexit -     a wave as it is made; words go to standard error

A file that stands there stays until the new one is complete. Exit codes: 0, 1 (not all was spoken, or the system refused), 2 (a mistake).
Checkpoints are those of the clone that this program stands in; an installed copy finds them by OMNILIB_HOME=<clone>."""
ASK_NOTES = """\
examples:
  omni ask "What is in the picture?" --image cat.png
  omni ask --audio question.wav --image cat.png
  omni ask "Which of <image> and <image> is brighter?" --image a.png --image b.png

Without <image>, <video>, <speech> in the text, files stand before it. The answer goes to standard output as it is made.
Exit codes: 0, 1 (the answer was cut at --max-new-tokens, or the system refused), 2 (a mistake)."""
CHAT_NOTES = """\
examples:
  omni chat --audio question.wav --voice my_voice.wav --voice-text "what I say in it"
  omni chat "What is in the picture?" --image cat.png --play
  omni chat --text-only < questions.txt                    one question a line

Ctrl-C stops an answer, and what was said stays. Words go to standard output, each answer's wave and
conversation.json to --out; named again, that folder's conversation goes on.
Exit codes: 0, 1 (an answer was cut), 2 (a mistake)."""
TRAIN = Path(__file__).resolve().parent / "train"


def build_parser() -> argparse.ArgumentParser:
    """Every command and flag."""
    parser = options.Parser(prog="omni", description="MGM-Omni to read, train, re-run and trust.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    speak = commands.add_parser(
        "speak",
        help="text in, wave out",
        epilog=SPEAK_NOTES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    speak.add_argument("text", help="what to say, or - to read it (UTF-8) from standard input")
    speak.add_argument(
        "-o", "--out", type=Path, required=True, metavar="OUT.wav", help="the wave; - for standard output"
    )
    speak.add_argument(
        "--voice",
        metavar="NAME|REF.wav",
        help="a committed voice (default: the first), or a recording of 1-30 s to clone",
    )
    speak.add_argument("--voice-text", help="what is said in the recording (needed with a recording)")
    speak.add_argument("--language", help="en or zh (default: told from the text)")
    speak.add_argument(
        "--scale",
        default="nano",
        help="checkpoints/<scale>, or a folder of checkpoints: ours, or a published MGM-Omni-TTS",
    )
    speak.add_argument("--device", default="cpu", help="cpu or cuda")
    speak.add_argument(
        "--precision",
        default="auto",
        metavar="auto|fp32|bf16|int8",
        help="of the weights (default: auto, fp32 for small models, bf16 for large ones)",
    )
    speak.add_argument("--seed", type=options.seed, default=0)
    speak.add_argument(
        "--temperature", type=options.temperature, help="0 is greedy (default: the checkpoint's)"
    )
    speak.add_argument(
        "--stream",
        action="store_true",
        help="make sound while the text is decoded: with -o - it leaves as it is made",
    )

    ask = commands.add_parser(
        "ask",
        help="words, sound, pictures and videos in, an answer out",
        epilog=ASK_NOTES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    ask.add_argument(
        "text", nargs="?", default="", help="the question, or - to read it; none if it is spoken in --audio"
    )
    for name, what in (("audio", "a recording"), ("image", "a picture"), ("video", "a video")):
        ask.add_argument(
            f"--{name}", action="append", default=[], metavar="FILE", help=f"{what} (repeatable)"
        )
    ask.add_argument(
        *("--scale", "--checkpoint"), default="nano", metavar="NAME|FOLDER", dest="scale",
        help="checkpoints/NAME/brain, or a folder: ours, or a published MGM-Omni",
    )  # fmt: skip
    ask.add_argument("--max-new-tokens", type=options.count, default=256, metavar="N", help="of the answer")
    ask.add_argument("--device", default="cpu", help="cpu or cuda")
    ask.add_argument("--seed", type=options.seed, default=0)
    ask.add_argument("--temperature", type=options.temperature, default=0.0, help="0 is greedy")

    chat = commands.add_parser(
        "chat",
        help="talk: words, sound, pictures and videos in, words and speech out, turn after turn",
        epilog=CHAT_NOTES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_chat_arguments(chat)

    serve = commands.add_parser(
        "serve", help="speech, chats and transcriptions over HTTP", epilog=server.NOTES
    )
    server.add_arguments(serve)

    reproduce = commands.add_parser(
        "reproduce", help="re-evaluate the checkpoints, run every notebook, rebuild reports/"
    )
    reproduce.add_argument(
        "--only", metavar="NN", help="only the notebooks whose name starts with NN, no re-evaluation"
    )
    reproduce.add_argument("--notebooks", action="store_true", help="every notebook, no re-evaluation")
    reproduce.add_argument("--scale", default="nano", choices=["smoke", "nano", "paper"])
    reproduce.add_argument(
        *("-p", "--parameter"), action="append", default=[], metavar="NAME=VALUE[,VALUE...]",
        help="a parameter of the notebooks (repeatable); several values are a sweep: one table and one plot in runs/variants",
    )  # fmt: skip
    reproduce.add_argument("--seed", metavar="N[,N...]", help="seed of the notebooks: the same as -p seed=N")

    compare = commands.add_parser(
        "compare", help="two runs or commits side by side: settings and figures that differ"
    )
    compare.add_argument(
        "a", metavar="A", help="a report folder, reports/<scale>, a file of figures, a commit, or COMMIT:PATH"
    )
    compare.add_argument("b", metavar="B")
    compare.add_argument("--scale", type=options.scale, default="nano", help="of which a commit's reports are read")

    train = commands.add_parser("train", help="run one training stage")
    train.add_argument("stage", nargs="?", help=", ".join(stages()))
    train.add_argument(
        "rest", nargs=argparse.REMAINDER, help="--config NAME --set key=value ... --out FOLDER"
    )

    data = commands.add_parser("data", help="build, curate, check, shard and plan corpora")
    data.add_argument("task", nargs="?", help=", ".join(DATA_TASKS))
    data.add_argument("rest", nargs=argparse.REMAINDER)

    fetch = commands.add_parser(
        "fetch", help="download published weights from the hub, pinned to a commit (uses the network)"
    )
    fetch.add_argument(
        "pin",
        metavar="OWNER/NAME@COMMIT",
        help="for example wcy1122/MGM-Omni-TTS-2B-0927@<40 hex digits>; a branch tells its commit",
    )
    fetch.add_argument("-o", "--out", type=Path, help="folder (default: checkpoints/paper/NAME)")

    commands.add_parser("doctor", help="versions, device, judges and engines: what is here, what is missing")

    verify = commands.add_parser(
        "verify", help="recompute chosen numbers from the checkpoints and compare with the reports"
    )
    verify.add_argument("--scale", type=options.scale, default="nano")
    verify.add_argument(
        "--arithmetic",
        action="store_true",
        help="only recount the figures from their records: seconds, no model",
    )

    report = commands.add_parser(
        "report", help="rebuild reports/index.html, reports/README.md and README's results table"
    )
    report.add_argument("--scale", type=options.scale, default="nano")
    report.add_argument(
        "--check",
        action="store_true",
        help="write nothing; fail when what stands behind a figure has changed since",
    )
    report.add_argument(
        "--accept",
        metavar="RESULT",
        help="keep this result's figures although something behind them has changed (with --why)",
    )
    report.add_argument(
        "--why", default="", help="what changed, and why the figures are kept: printed on the front page"
    )
    return parser


def add_chat_arguments(chat: argparse.ArgumentParser) -> None:
    """Of `omni chat`."""
    chat.add_argument(
        "text", nargs="?", default="", help="the first question; none if it is spoken in --audio"
    )
    for name, what in (("audio", "a recording"), ("image", "a picture"), ("video", "a video")):
        chat.add_argument(
            f"--{name}", action="append", default=[], metavar="FILE", help=f"{what} of the first question"
        )
    chat.add_argument("--voice", metavar="NAME|REF.wav", help="a committed voice, or a recording of 1-30 s")
    chat.add_argument("--voice-text", help="what is said in the recording (needed with a recording)")
    chat.add_argument("--language", help="en or zh: of the default voice, and how the answer is read")
    chat.add_argument("--system", help="what the brain is told before all questions")
    chat.add_argument("--text-only", action="store_true", help="no speech")
    chat.add_argument("--play", action="store_true", help="play the answer while it is made")
    chat.add_argument(
        *("-o", "--out"), type=Path, metavar="FOLDER", help="where it is kept (default: runs/chat/<time>)"
    )
    chat.add_argument("--scale", default="nano", help="checkpoints/<scale>, or a folder of brain and mouth")
    chat.add_argument("--max-new-tokens", type=options.count, default=256, metavar="N", help="of an answer")
    chat.add_argument("--device", default="cpu", help="cpu or cuda")
    chat.add_argument("--seed", type=options.seed, default=0)
    chat.add_argument("--temperature", type=options.temperature, default=0.0, help="0 is greedy")


def stages() -> list[str]:
    """Training scripts, one per stage (the folder holds shared helpers too)."""
    return sorted(
        p.stem for p in TRAIN.glob("*.py") if '__name__ == "__main__"' in p.read_text(encoding="utf-8")
    )
