"""`python -m omnilib.serve`: load the mouth and serve it; on this machine only, unless a token is set."""

import ipaddress
import os
import sys

from omnilib import options
from omnilib.errors import MissingTool, UserError

NOTES = """\
OMNI_TOKEN=<secret> in the environment asks every request for `Authorization: Bearer <secret>`; it must be set to
listen anywhere but on this machine."""


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def serve(scale: str, device: str, host: str, port: int, token: str | None) -> None:
    """Serve until a signal comes.

    Raises:
        UserError: no token for the outside, a package or a checkpoint is missing.
    """
    if not token and not is_loopback(host):
        raise UserError(f"to listen on {host}, where others can reach it, set OMNI_TOKEN=<secret>")
    try:
        import uvicorn

        from omnilib.serve.app import build_app
    except ImportError as error:
        raise MissingTool(
            f"serving needs {error.name}: pip install fastapi uvicorn prometheus-client"
        ) from None
    from omnilib.speak import TextToSpeech

    app = build_app(TextToSpeech.load(scale, device), token=token)
    uvicorn.run(app, host=host, port=port, log_level="warning", timeout_graceful_shutdown=5)


def main(argv: list[str] | None = None) -> int:
    """Exit code: 0, or 2 (a mistake)."""
    parser = options.Parser(prog="python -m omnilib.serve", description="Speech over HTTP.", epilog=NOTES)
    parser.add_argument("--scale", default="nano", help="checkpoints/<scale>, or a folder")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=options.count, default=8000)
    args = parser.parse_args(argv)
    try:
        serve(args.scale, args.device, args.host, args.port, os.environ.get("OMNI_TOKEN"))
    except UserError as error:
        print(f"omni: {' '.join(str(error).splitlines())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
