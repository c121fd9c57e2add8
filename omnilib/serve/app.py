"""Speech behind a standard interface: `/v1/audio/speech` as OpenAI's clients and vLLM-Omni's speak it.

    python -m omnilib.serve                         # 127.0.0.1:8000
    client = openai.OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="-")
    client.audio.speech.create(model="omni", voice="slt", input="Good morning.").write_to_file("hello.wav")

    body --limits, token--> Wish --prepare--> Job --Batcher--> 25 Hz tokens --Codec.stream--> pieces of sound --> client

Every mistake has a status code and one line: {"error": {"message", "type", "param", "code"}}. Nothing named in a
request is opened or fetched: a voice is one of the server's, or a recording inside the request.
Answering chats and transcribing need the brain, which this server does not load: they say so (503).
"""

import asyncio
import base64
import binascii
import hmac
import io
import json
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import soundfile
from anyio import CapacityLimiter, to_thread
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from pydantic import BaseModel, Field, ValidationError
from starlette.exceptions import HTTPException

from omnilib.errors import UserError
from omnilib.output import pcm, wav_header
from omnilib.serve.batching import Batcher, Busy, Utterance
from omnilib.speak import Job, Reference, TextToSpeech
from omnilib.voice.codec import MelStream

MEGABYTE = 1 << 20
FORMATS = {  # name -> (media type, what libsndfile calls it; None: written here, piece by piece)
    "wav": ("audio/wav", None),
    "pcm": ("audio/pcm", None),
    "flac": ("audio/flac", ("FLAC", "PCM_16")),
    "opus": ("audio/ogg", ("OGG", "OPUS")),
    "mp3": ("audio/mpeg", ("MP3", "MPEG_LAYER_III")),
}
SECONDS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 30)  # edges of the histogram
BRAIN = "chats and transcriptions need the brain, which this server does not load: /v1/audio/speech works"


@dataclass(frozen=True)
class Limits:
    """What a request may cost."""

    slots: int = 16  # requests spoken together
    waiting: int = 16  # requests that may wait for that; more get a 429
    body: int = 8 * MEGABYTE  # bytes
    text: int = 4096  # characters, as OpenAI's
    patience: float = 30.0  # seconds for a client to send its body, and to take each piece of the answer


class Wish(BaseModel):
    """The body of /v1/audio/speech; fields that are not here are not looked at.

    Source: OpenAI's and vLLM-Omni's interface of that name.
    """

    input: str
    model: str | None = None
    voice: str | None = None  # None and "default": the language's
    response_format: str = "wav"
    speed: float = 1.0
    stream: bool = False  # wav with an open length, from the first piece on; pcm always is
    language: str | None = None
    ref_audio: str | None = None  # data:audio/...;base64,...
    ref_text: str | None = None
    seed: int = Field(0, ge=0, lt=2**63)
    temperature: float | None = Field(None, ge=0, le=10, allow_inf_nan=False)


class Refusal(Exception):
    """A status code and one line."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


def refused(status: int, message: str) -> JSONResponse:
    kind = "invalid_request_error" if status < 500 and status != 429 else "server_error"
    error = {"message": " ".join(message.split()), "type": kind, "param": None, "code": status}
    return JSONResponse({"error": error}, status, {"Retry-After": "1"} if status == 429 else None)


class PatientResponse(StreamingResponse):
    """A stream that ends when its client takes nothing for `patience` seconds, and that always calls `over`."""

    def __init__(self, pieces: AsyncIterator[bytes], media: str, patience: float, over):
        super().__init__(pieces, media_type=media)
        self.patience, self.over = patience, over

    async def __call__(self, scope, receive, send) -> None:
        async def bounded(message) -> None:
            await asyncio.wait_for(send(message), self.patience)

        try:
            await super().__call__(scope, receive, bounded)
        finally:
            self.over()


class Voices:
    """References of requests, and each voice's share of the flow, computed once for the server's own voices."""

    def __init__(self, speech: TextToSpeech):
        self.speech, self.warmed, self.lock = speech, {}, threading.Lock()

    def pick(self, wish: Wish) -> str | None:
        """A name of the server's own voices, or None for the default.

        Raises:
            Refusal: no such voice.
        """
        if wish.voice in (None, "", "default"):
            return None
        if wish.voice not in self.speech.voices:
            known = ", ".join([*self.speech.voices, "default"])
            raise Refusal(400, f"no voice '{wish.voice[:60]}': choose one of {known}, or send ref_audio")
        return wish.voice

    def prepare(self, wish: Wish) -> Job:
        """Everything about a request that can be wrong is found here.

        Raises:
            Refusal, UserError: the text or the voice cannot be used.
        """
        details = wish.language, wish.seed, wish.temperature
        if wish.ref_audio is None:
            return self.speech.job(wish.input, self.pick(wish), None, *details)
        head, comma, coded = wish.ref_audio.partition(",")
        if not (comma and head.startswith("data:") and head.endswith(";base64")):
            raise Refusal(400, "ref_audio must be data:audio/wav;base64,...: nothing is fetched or opened")
        if not (wish.ref_text and wish.ref_text.strip()):
            raise Refusal(400, "say in ref_text what is spoken in ref_audio: the model continues from it")
        try:
            data = base64.b64decode(coded, validate=True)
        except (binascii.Error, ValueError):
            raise Refusal(400, "ref_audio is not base64") from None
        with tempfile.TemporaryDirectory(prefix="omni-serve-") as folder:
            path = Path(folder) / "ref_audio"
            path.write_bytes(data)
            try:
                return self.speech.job(wish.input, str(path), wish.ref_text, *details)
            except UserError as error:
                raise Refusal(400, str(error).replace(str(path), "ref_audio")) from None
            finally:
                self.speech.heard.pop(
                    (str(path), wish.ref_text), None
                )  # the server remembers no visitor's voice

    def warm(self, reference: Reference) -> MelStream:
        """The voice in the flow."""
        with self.lock:
            if reference.name not in self.speech.voices:
                return self.speech.codec.warm(reference.voice)
            if reference.name not in self.warmed:
                self.warmed[reference.name] = self.speech.codec.warm(reference.voice)
            return self.warmed[reference.name]

    def sound(self, utterance: Utterance) -> Iterator:
        """Pieces of the wave (n,), as the tokens come."""
        yield from self.speech.codec.stream(utterance, self.warm(utterance.job.reference))


def encoded(wave: bytes, kind: str, rate: int) -> bytes:
    """16-bit samples as a whole file."""
    if FORMATS[kind][1] is None:
        return (wav_header(rate, len(wave) // 2) if kind == "wav" else b"") + wave
    (form, subtype), file = FORMATS[kind][1], io.BytesIO()
    raw = {"samplerate": rate, "channels": 1, "format": "RAW", "subtype": "PCM_16", "endian": "LITTLE"}
    soundfile.write(file, soundfile.read(io.BytesIO(wave), **raw)[0], rate, format=form, subtype=subtype)
    return file.getvalue()


async def read_body(request: Request, limits: Limits) -> dict:
    """The JSON object of a request.

    Raises:
        Refusal: too large, too slow, or no JSON object.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Refusal(415, "send the request as application/json")

    async def read() -> bytes:
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > limits.body:
                raise Refusal(413, f"the request is larger than {limits.body / MEGABYTE:g} MB")
        return body

    try:
        found = json.loads(await asyncio.wait_for(read(), limits.patience))
    except TimeoutError:
        raise Refusal(408, f"the request did not arrive within {limits.patience:g} seconds") from None
    except (ValueError, RecursionError):
        raise Refusal(400, "the request is not JSON in UTF-8") from None
    if not isinstance(found, dict):
        raise Refusal(400, "the request is not a JSON object")
    return found


def understood(body: dict, limits: Limits) -> Wish:
    """The body as a `Wish`.

    Raises:
        Refusal: a field is missing, of another kind, or asks for what is not there.
    """
    try:
        wish = Wish.model_validate(body)
    except ValidationError as error:
        first = error.errors()[0]
        raise Refusal(400, f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    if len(wish.input) > limits.text:
        raise Refusal(400, f"input has {len(wish.input)} characters: send {limits.text} at most at a time")
    if wish.response_format not in FORMATS:
        raise Refusal(
            400, f"no response_format '{wish.response_format[:20]}': choose one of {', '.join(FORMATS)}"
        )
    if wish.speed != 1:
        raise Refusal(400, "speed: only 1 is possible")
    if wish.stream and FORMATS[wish.response_format][1]:
        raise Refusal(400, "stream works with response_format wav or pcm")
    return wish


class Meters:
    """What /metrics shows."""

    def __init__(self, batcher: Batcher):
        self.registry = CollectorRegistry()
        self.answers = Counter("omni_answers", "Answers by status code", ["status"], registry=self.registry)
        self.audio = Counter("omni_audio_seconds", "Seconds of speech sent", registry=self.registry)
        self.first = Histogram(
            "omni_first_sound_seconds", "From request to first sound", buckets=SECONDS, registry=self.registry
        )
        for name, held in (("active", "active"), ("waiting", "waiting")):
            gauge = Gauge(f"omni_requests_{name}", f"Requests {name}", registry=self.registry)
            gauge.set_function(lambda held=held: len(getattr(batcher, held)))


def build_app(speech: TextToSpeech, limits: Limits | None = None, token: str | None = None) -> FastAPI:
    """The application.

    Args:
        token: what `Authorization: Bearer ...` must say, except for /health; None: nobody is asked.
    """
    limits = limits or Limits()
    batcher, voices = Batcher(speech, limits.slots, limits.waiting), Voices(speech)
    meters, threads = Meters(batcher), CapacityLimiter(limits.slots + limits.waiting + 4)

    @asynccontextmanager
    async def life(_: FastAPI):
        yield
        await to_thread.run_sync(batcher.close)

    app = FastAPI(title="omni", lifespan=life, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.batcher = batcher

    @app.middleware("http")
    async def guard(request: Request, call) -> Response:
        given = request.headers.get("authorization", "").removeprefix("Bearer ").encode()
        if token and request.url.path != "/health" and not hmac.compare_digest(given, token.encode()):
            answer = refused(401, "give the server's token: Authorization: Bearer <token>")
        else:
            answer = await call(request)
        meters.answers.labels(answer.status_code).inc()
        return answer

    @app.exception_handler(Refusal)
    async def on_refusal(_: Request, error: Refusal) -> JSONResponse:
        return refused(error.status, str(error))

    @app.exception_handler(UserError)
    async def on_mistake(_: Request, error: UserError) -> JSONResponse:
        return refused(429 if isinstance(error, Busy) else 400, str(error))

    @app.exception_handler(HTTPException)
    async def on_http(request: Request, error: HTTPException) -> JSONResponse:
        return refused(error.status_code, f"{request.method} {request.url.path[:80]}: {error.detail}")

    @app.exception_handler(Exception)
    async def on_fault(_: Request, error: Exception) -> JSONResponse:
        return refused(500, f"the server failed ({type(error).__name__}): its log says where")

    @app.get("/health")
    async def health() -> dict:
        return {"status": "ok", "active": len(batcher.active), "waiting": len(batcher.waiting)}

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(generate_latest(meters.registry), media_type="text/plain; version=0.0.4")

    @app.get("/v1/audio/voices")
    async def list_voices() -> dict:
        return {"voices": list(speech.voices)}

    @app.post("/v1/audio/transcriptions")
    @app.post("/v1/chat/completions")
    async def needs_brain(request: Request) -> Response:
        size = request.headers.get("content-length", "0")
        if size.isdecimal() and int(size) > limits.body:
            raise Refusal(413, f"the request is larger than {limits.body / MEGABYTE:g} MB")
        raise Refusal(503, BRAIN)

    @app.post("/v1/audio/speech")
    async def speak(request: Request) -> Response:
        begun = time.perf_counter()
        wish = understood(await read_body(request, limits), limits)
        job = await to_thread.run_sync(voices.prepare, wish, limiter=threads)
        utterance = batcher.submit(job)
        pieces = voices.sound(utterance)
        media, whole = FORMATS[wish.response_format][0], wish.response_format != "pcm" and not wish.stream

        def piece() -> bytes | None:
            wave = next(pieces, None)
            if wave is None:
                return None
            meters.audio.inc(len(wave) / speech.rate)
            return pcm(wave)

        async def stream(first: bytes | None) -> AsyncIterator[bytes]:
            if wish.response_format == "wav":
                yield wav_header(speech.rate)
            while first is not None:
                yield first
                first = await to_thread.run_sync(piece, limiter=threads)

        try:
            first = await to_thread.run_sync(
                piece, limiter=threads
            )  # an error before it still gets its status
            meters.first.observe(time.perf_counter() - begun)
            if not whole:
                return PatientResponse(stream(first), media, limits.patience, utterance.cancel)
            parts = []
            while first is not None:
                if await request.is_disconnected():
                    raise Refusal(499, "the client has gone")
                parts.append(first)
                first = await to_thread.run_sync(piece, limiter=threads)
            data = await to_thread.run_sync(encoded, b"".join(parts), wish.response_format, speech.rate)
            return Response(data, media_type=media)
        except BaseException:
            utterance.cancel()
            raise

    return app
