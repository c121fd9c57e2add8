"""What the server gives: seconds of speech a second, and the time to the first sound, for 1, 4 and 16 clients.

    OMP_NUM_THREADS=1 python -m omnilib.bench.serve                       # reports/nano/serve.json
    python -m omnilib.bench.serve --clients 1 4 --requests 1 --memory 200 --output -

The server runs in this process behind a real socket; its clients are threads that ask for a stream of PCM and read
as fast as it comes. First sound is counted from the request to the first bytes. --memory asks that many requests one
after the other and records the resident memory after each tenth.
"""

import argparse
import json
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np

from omnilib.errors import UserError
from omnilib.options import Parser, count
from omnilib.paths import REPORTS
from omnilib.provenance import stamp, write_json
from omnilib.speak import TextToSpeech

TEXTS = (
    "The light of the morning was on the water, and the boats had not gone out.",
    "She asked him for the way to the station, and he told her to follow the river.",
    "It was late in the year when they came back to the house by the sea.",
    "He opened the letter, read it twice, and put it back on the table.",
)


def resident() -> float:
    """MB of this process in memory."""
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * 4096 / 2**20


def ask(url: str, number: int) -> tuple[float, float]:
    """One request: seconds to the first sound, seconds of speech."""
    body = {"input": TEXTS[number % len(TEXTS)], "response_format": "pcm", "seed": number}
    begun, first, size = time.perf_counter(), None, 0
    with httpx.stream("POST", f"{url}/v1/audio/speech", json=body, timeout=600) as answer:
        answer.raise_for_status()
        for piece in answer.iter_bytes():
            first = first or time.perf_counter() - begun
            size += len(piece)
    return first, size / 2 / 24_000


def throughput(url: str, clients: int, requests: int) -> dict:
    """`clients` at once, each with `requests` in turn."""
    begun = time.perf_counter()
    with ThreadPoolExecutor(clients) as many:
        found = list(many.map(lambda number: ask(url, number), range(clients * requests)))
    wall, audio = time.perf_counter() - begun, sum(seconds for _, seconds in found)
    first = [seconds for seconds, _ in found]
    p50, p95 = np.percentile(first, [50, 95])
    return {
        "audio_s_per_s": round(audio / wall, 3),
        "first_sound_p50_s": round(float(p50), 3),
        "first_sound_p95_s": round(float(p95), 3),
        "audio_s": round(audio, 1),
        "wall_s": round(wall, 1),
    }


def measure(scale: str, clients: list[int], requests: int, memory: int) -> dict:
    """All figures of a scale."""
    import uvicorn

    from omnilib.serve.app import build_app

    server = uvicorn.Server(uvicorn.Config(build_app(TextToSpeech.load(scale)), port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.05)
        url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        ask(url, 0)  # the voice is analysed
        found = {f"serve_{n}": throughput(url, n, requests) for n in clients}
        held = []
        for number in range(memory):
            ask(url, number)
            if number % 10 == 9:
                held.append(round(resident()))
        return (
            {f"serve_audio_s_per_s_{n}": found[f"serve_{n}"]["audio_s_per_s"] for n in clients}
            | found
            | {"memory_mb_every_10_requests": held}
        )
    finally:
        server.should_exit = True
        thread.join()


def main(argv: list[str] | None = None) -> int:
    """Exit code: 0, or 2 (a mistake)."""
    parser = Parser(prog="python -m omnilib.bench.serve", description=__doc__.splitlines()[0])
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--scale", default="nano")
    parser.add_argument("--clients", type=count, nargs="+", default=[1, 4, 16])
    parser.add_argument("--requests", type=count, default=2, help="of each client")
    parser.add_argument("--memory", type=int, default=0, metavar="N", help="requests for the memory curve")
    parser.add_argument(
        "--output", default=str(REPORTS / "nano" / "serve.json"), help="a file, or - to print"
    )
    args = parser.parse_args(argv)
    try:
        found = measure(args.scale, args.clients, args.requests, args.memory)
    except UserError as error:
        print(f"omni: {error}", file=sys.stderr)
        return 2
    print(json.dumps(found, indent=1))
    if args.output != "-":
        write_json(Path(args.output), found | {"stamp": stamp(args.scale, vars(args))})
    return 0


if __name__ == "__main__":
    sys.exit(main())
