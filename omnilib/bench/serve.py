"""What the server gives: seconds of speech a second, and the time to the first sound, for 1, 4 and 16 clients.

    OMP_NUM_THREADS=1 python -m omnilib.bench.serve                       # reports/nano/serve.json
    python -m omnilib.bench.serve --clients 1 4 --requests 1 --memory 200 --output -

The server runs in this process behind a real socket; its clients are threads that ask for a stream of PCM
and read as fast as it comes. First sound is counted from the request to the first bytes; with a trained
brain, `chat_N` has the same of chats: a spoken question, a spoken answer. --memory asks that many
requests one after the other, of every kind in turn (speech, words, a picture, a spoken question, a
transcript, a client that vanishes, a body that is refused), and records the resident memory after each
tenth: `serve_memory_growth_mb` is the last quarter over the second one.
"""

import base64
import io
import json
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import soundfile

from omnilib.errors import UserError
from omnilib.eval.results import add_bench
from omnilib.options import Parser, count, count_or_none
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


def read(answer: httpx.Response, begun: float, sound: Callable[[bytes], int]) -> tuple[float, float]:
    """Seconds to the first sound and of speech, of a stream whose pieces hold `sound` bytes of PCM."""
    answer.raise_for_status()
    first, size = None, 0
    for piece in answer.iter_lines() if sound is sound_of_event else answer.iter_bytes():
        size += (held := sound(piece))
        first = first or (time.perf_counter() - begun if held else None)
    return first or time.perf_counter() - begun, size / 2 / 24_000


def ask(url: str, number: int) -> tuple[float, float]:
    """One text: seconds to the first sound, seconds of speech."""
    body = {"input": TEXTS[number % len(TEXTS)], "response_format": "pcm", "seed": number}
    begun = time.perf_counter()
    with httpx.stream("POST", f"{url}/v1/audio/speech", json=body, timeout=600) as answer:
        return read(answer, begun, len)


def sound_of_event(line: str) -> int:
    """Bytes of PCM in a line of a chat's stream."""
    if not line.startswith("data: {"):
        return 0
    event = json.loads(line.removeprefix("data: "))
    deltas = [choice["delta"] for choice in event.get("choices", ())]
    return sum(len(base64.b64decode(delta.get("audio", {}).get("data", ""))) for delta in deltas)


def talk(url: str, number: int, most: int = 48) -> tuple[float, float]:
    """One spoken question, answered in speech: as `ask`."""
    body = chat_of([heard(number)], most) | {"modalities": ["text", "audio"], "stream": True}
    begun = time.perf_counter()
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=600) as answer:
        return read(answer, begun, sound_of_event)


def chat_of(parts: list[dict], most: int) -> dict:
    """The body of a chat of one turn."""
    return {"messages": [{"role": "user", "content": parts}], "max_tokens": most}


def recording(number: int) -> bytes:
    """A second of a tone, as WAV."""
    file, times = io.BytesIO(), np.arange(16_000) / 16_000
    soundfile.write(file, 0.3 * np.sin(2 * np.pi * (200 + 10 * (number % 8)) * times), 16_000, format="WAV")
    return file.getvalue()


def heard(number: int) -> dict:
    data = base64.b64encode(recording(number)).decode()
    return {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}


def seen(number: int) -> dict:
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (112, 112), (number % 256, 80, 160)).save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}


def vanish(url: str, number: int) -> None:
    """Leave after the first bytes."""
    body = {"input": TEXTS[number % len(TEXTS)], "response_format": "pcm"}
    with httpx.stream("POST", f"{url}/v1/audio/speech", json=body, timeout=600) as answer:
        next(answer.iter_bytes())


def refused(url: str, number: int) -> None:
    """Send what is no recording."""
    part = {"type": "input_audio", "input_audio": {"data": "A" * 400_000, "format": "wav"}}
    for path, body in (("chat/completions", chat_of([part], 4)), ("audio/speech", {"input": "a" * 100_000})):
        assert httpx.post(f"{url}/v1/{path}", json=body, timeout=600).status_code >= 400


def words(url: str, number: int, *parts: dict) -> None:
    """A chat in words."""
    text = {"type": "text", "text": TEXTS[number % len(TEXTS)]}
    body = chat_of([*parts, text], 8)
    httpx.post(f"{url}/v1/chat/completions", json=body, timeout=600).raise_for_status()


def written(url: str, number: int) -> None:
    """A transcript."""
    files = {"file": ("a.wav", recording(number))}
    httpx.post(f"{url}/v1/audio/transcriptions", files=files, timeout=600).raise_for_status()


def memory_curve(url: str, requests: int, brain: bool) -> dict:
    """MB after each tenth request, and how much the last quarter has more than the second."""
    kinds = [ask, vanish, refused]
    if brain:
        kinds += [words, lambda u, n: words(u, n, seen(n)), lambda u, n: talk(u, n, 16), written]
    held = []
    for number in range(requests):
        kinds[number % len(kinds)](url, number)
        if number % 10 == 9:
            held.append(round(resident(), 1))
    quarter = len(held) // 4
    found = {"memory_mb_every_10_requests": held}
    if quarter:
        growth = np.median(held[-quarter:]) - np.median(held[quarter : 2 * quarter])
        found["serve_memory_growth_mb"] = round(float(growth), 1)
    return found


def throughput(url: str, clients: int, requests: int, one: Callable = ask) -> dict:
    """`clients` at once, each with `requests` in turn."""
    begun = time.perf_counter()
    with ThreadPoolExecutor(clients) as many:
        found = list(many.map(lambda number: one(url, number), range(clients * requests)))
    wall, audio = time.perf_counter() - begun, sum(seconds for _, seconds in found)
    first = [seconds for seconds, _ in found]
    p50, p95 = np.percentile(first, [50, 95])
    return {
        "audio_s_per_s": round(audio / wall, 3),
        "first_sound_p50_s": round(float(p50), 3),
        "first_sound_p95_s": round(float(p95), 3),
        "audio_s": round(audio, 1),
        "wall_s": round(wall, 1),
        "requests": len(found),
    }


def headlines(found: dict) -> dict[str, dict]:
    """Figures under their keys as every summary has them."""
    entries = {}
    for name, row in found.items():
        what, _, clients = name.partition("_")
        if what in ("serve", "chat") and clients.isdigit():
            for key in ("audio_s_per_s", "first_sound_p50_s", "first_sound_p95_s"):
                entries[f"{what}_{key}_{clients}"] = {"value": row[key], "n": row["requests"], "ci95": None}
    if (growth := found.get("serve_memory_growth_mb")) is not None:
        requests = 10 * len(found["memory_mb_every_10_requests"])
        entries["serve_memory_growth_mb"] = {"value": growth, "n": requests, "ci95": None, "unit": "MB"}
    return entries


def measure(scale: str, clients: list[int], requests: int, memory: int) -> dict:
    """All figures of a scale."""
    import uvicorn

    from omnilib.serve.__main__ import load_brain
    from omnilib.serve.app import build_app

    brain, _ = load_brain(scale, "cpu", wanted=True)
    app = build_app(TextToSpeech.load(scale), brain=brain)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.05)
        url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        ask(url, 0)  # the voice is analysed
        found = {f"serve_{n}": throughput(url, n, requests) for n in clients}
        if brain is not None:
            talk(url, 0)
            found |= {f"chat_{n}": throughput(url, n, requests, talk) for n in clients}
        return (
            {f"serve_audio_s_per_s_{n}": found[f"serve_{n}"]["audio_s_per_s"] for n in clients}
            | found
            | memory_curve(url, memory, brain is not None)
        )
    finally:
        server.should_exit = True
        thread.join()


def main(argv: list[str] | None = None) -> int:
    """Exit code: 0, or 2 (a mistake)."""
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", default="nano")
    parser.add_argument("--clients", type=count, nargs="+", default=[1, 4, 16])
    parser.add_argument("--requests", type=count, default=6, help="of each client")
    parser.add_argument(
        "--memory", type=count_or_none, default=0, metavar="N", help="requests for the memory curve"
    )
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
        metrics = headlines(found)
        write_json(Path(args.output), found | {"metrics": metrics, "stamp": stamp(args.scale, vars(args))})
        add_bench(Path(args.output), metrics)
    return 0


if __name__ == "__main__":
    sys.exit(main())
