"""`omni serve`, or `python -m omnilib.serve`: mouth and brain over HTTP."""

import argparse
import ipaddress
import os
import socket
import sys
from typing import TYPE_CHECKING

from omnilib import options
from omnilib.errors import CheckpointError, MissingTool, UserError

if TYPE_CHECKING:
    from omnilib.brain.ask import Brain

NOTES = """\
OMNI_TOKEN=<secret> in the environment (or --token) asks every request for `Authorization: Bearer <secret>`;
it must be set to listen anywhere but on this machine. Paths: /v1/audio/speech, /v1/audio/transcriptions,
/v1/chat/completions, /v1/audio/voices, /v1/models, /health, /metrics. Without a trained brain the first one
works, and the next two say why not."""
DOC = "Speech, chats and transcriptions over HTTP, as OpenAI's clients speak it."


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def listen(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        UserError: the address is none of this machine's, or in use.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=256)
    except (OSError, OverflowError) as error:
        said = getattr(error, "strerror", None) or "no such port"
        raise UserError(f"cannot listen on {host}:{port} ({said}): choose another --host or --port") from None


def load_brain(scale: str, device: str, wanted: bool) -> tuple["Brain | None", str]:
    """The brain, or None and what to do to have it; speech works without."""
    from omnilib.brain.ask import Brain
    from omnilib.serve.app import NO_BRAIN

    if not wanted:
        return None, NO_BRAIN
    try:
        return Brain.load(scale, device), NO_BRAIN
    except (CheckpointError, MissingTool) as error:
        return None, f"{error}; then start the server again (/v1/audio/speech works)"


def serve(args: argparse.Namespace) -> None:
    """Serve until a signal comes.

    Args:
        args: of `add_arguments`.

    Raises:
        UserError: no token for the outside, a package or a checkpoint is missing, the address is taken.
    """
    token = args.token or os.environ.get("OMNI_TOKEN")
    if not token and not is_loopback(args.host):
        raise UserError(f"to listen on {args.host}, where others can reach it, set OMNI_TOKEN=<secret>")
    try:
        import uvicorn

        from omnilib.serve.app import build_app
    except ImportError as error:
        raise MissingTool(
            f"serving needs {error.name}: pip install fastapi uvicorn prometheus-client python-multipart"
        ) from None
    from transformers.utils import logging

    from omnilib.serve.http import MEGABYTE, Limits
    from omnilib.speak import TextToSpeech

    logging.disable_progress_bar()  # of a fraction of a second
    limits = Limits(
        slots=args.slots,
        waiting=args.waiting,
        talks=args.talks,
        upload=args.upload * MEGABYTE,
        seconds=args.seconds,
        tokens=args.max_new_tokens,
        patience=args.patience,
    )
    with listen(args.host, args.port) as sock:  # before the seconds of loading
        speech = TextToSpeech.load(args.scale, args.device)
        brain, why = load_brain(args.scale, args.device, not args.no_brain)
        config = uvicorn.Config(
            build_app(speech, limits, token, brain, why), log_level="warning", timeout_graceful_shutdown=5
        )
        host = f"[{args.host}]" if ":" in args.host else args.host
        told = (
            "speech, chats, transcriptions" if brain else f"speech; {why}" if not args.no_brain else "speech"
        )
        print(f"omni: http://{host}:{sock.getsockname()[1]}/v1 ({told})", flush=True)
        uvicorn.Server(config).run(sockets=[sock])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Of `omni serve`."""
    parser.add_argument("--scale", default="nano", help="checkpoints/<scale>, or a folder")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--host", default="127.0.0.1", help="where to listen (default: this machine only)")
    parser.add_argument("--port", type=port, default=8000, help="0: any free one, which is printed")
    parser.add_argument(
        "--token", help="what clients must send; others on this machine see it: prefer OMNI_TOKEN"
    )
    parser.add_argument("--no-brain", action="store_true", help="speech alone")
    whole = {"type": options.count, "metavar": "N"}
    parser.add_argument("--slots", default=16, help="texts spoken together", **whole)
    parser.add_argument("--talks", default=4, help="chats and transcriptions answered together", **whole)
    parser.add_argument(
        "--waiting", default=16, help="requests of each that may wait; more get a 429", **whole
    )
    parser.add_argument("--upload", default=32, help="MB of a chat or recording", **whole)
    parser.add_argument(
        "--seconds", type=options.positive, default=600.0, metavar="S", help="of sound in a request"
    )
    parser.add_argument("--max-new-tokens", default=1024, help="of an answer", **whole)
    parser.add_argument(
        "--patience",
        type=options.positive,
        default=30.0,
        metavar="S",
        help="a client may keep the server waiting",
    )


def port(text: str) -> int:
    """A port: 0 to 65535."""
    value = int(text)
    if not 0 <= value <= 65535:
        raise argparse.ArgumentTypeError(f"{text} is no port: give 1 to 65535, or 0 for any")
    return value


port.__name__ = "whole number"


def main(argv: list[str] | None = None) -> int:
    """Exit code: 0, or 2 (a mistake)."""
    parser = options.Parser(prog="python -m omnilib.serve", description=DOC, epilog=NOTES)
    add_arguments(parser)
    try:
        serve(parser.parse_args(argv))
    except UserError as error:
        print(f"omni: {' '.join(str(error).splitlines())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
