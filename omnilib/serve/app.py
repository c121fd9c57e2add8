"""Speech behind a standard interface: `/v1/audio/speech` as OpenAI's clients and vLLM-Omni's speak it.

    python -m omnilib.serve                         # 127.0.0.1:8000
    client = openai.OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="-")
    answer = client.audio.speech.create(model="omni", voice="default", input="the light of the morning")
    answer.write_to_file("hello.wav")

    body --limits, token--> Wish --prepare--> Job --Batcher--> 25 Hz tokens --Codec.stream, in Company--> sound --> client

Nothing named in a request is opened or fetched: a voice is one of the server's, or a recording inside the
request. `chat.py` and `transcribe.py` answer with the brain; without one they say so (503), and speech
works.
"""

import hmac
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

from anyio import CapacityLimiter, to_thread
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import generate_latest
from pydantic import BaseModel, Field
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from omnilib.brain.ask import Brain
from omnilib.errors import UserError
from omnilib.output import pcm, wav_header
from omnilib.serve.batching import Batcher, Busy, Utterance
from omnilib.serve.chat import complete
from omnilib.serve.http import Limits, PatientResponse, Refusal, fields_of, read_json, refused
from omnilib.serve.media import decoded
from omnilib.serve.meters import Meters
from omnilib.serve.sound import FORMATS, encoded, known_voice
from omnilib.serve.talks import Talks
from omnilib.serve.transcribe import transcribe
from omnilib.speak import Job, Reference, TextToSpeech
from omnilib.voice.codec import MelStream

NO_BRAIN = (
    "chats and transcriptions need the brain, which this server was started without: /v1/audio/speech works"
)


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


class Voices:
    """References of requests, and each voice's share of the flow, computed once for the server's own voices."""

    def __init__(self, speech: TextToSpeech):
        self.speech, self.warmed, self.lock = speech, {}, threading.Lock()

    def prepare(self, wish: Wish) -> Job:
        """Everything about a request that can be wrong is found here.

        Raises:
            Refusal, UserError: the text or the voice cannot be used.
        """
        details = wish.language, wish.seed, wish.temperature
        if wish.ref_audio is None:
            return self.speech.job(wish.input, known_voice(wish.voice, self.speech), None, *details)
        head, comma, coded = wish.ref_audio.partition(",")
        if not (comma and head.startswith("data:") and head.endswith(";base64")):
            raise Refusal(400, "ref_audio must be data:audio/wav;base64,...: nothing is fetched or opened")
        if not (wish.ref_text and wish.ref_text.strip()):
            raise Refusal(400, "say in ref_text what is spoken in ref_audio: the model continues from it")
        data = decoded(coded, "ref_audio")
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


def understood(body: dict, limits: Limits) -> Wish:
    """The body as a `Wish`.

    Raises:
        Refusal: a field is missing, of another kind, or asks for what is not there.
    """
    wish = fields_of(Wish, body)
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


class Guard:
    """Asks for the token and counts answers. Plain ASGI: behind it a handler notices that its client has gone."""

    def __init__(self, app: ASGIApp, meters: Meters, token: str | None):
        self.app, self.meters, self.token = app, meters, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.meters.answers.labels(message["status"]).inc()
            await send(message)

        given = Headers(scope=scope).get("authorization", "").removeprefix("Bearer ").encode()
        if self.token and scope["path"] != "/health" and not hmac.compare_digest(given, self.token.encode()):
            answer = refused(401, "give the server's token: Authorization: Bearer <token>")
            return await answer(scope, receive, counted)
        try:
            await self.app(scope, receive, counted)
        except Exception:  # whoever is above answers
            self.meters.answers.labels(500).inc()
            raise


def build_app(
    speech: TextToSpeech,
    limits: Limits | None = None,
    token: str | None = None,
    brain: Brain | None = None,
    why: str = NO_BRAIN,
) -> FastAPI:
    """The application.

    Args:
        brain: None: chats and transcriptions are refused with `why`.
        token: what `Authorization: Bearer ...` must say, except for /health; None: nobody is asked.
    """
    limits = limits or Limits()
    speech.codec.meet()
    batcher, voices = Batcher(speech, limits.slots, limits.waiting), Voices(speech)
    meters, threads = Meters(), CapacityLimiter(limits.slots + limits.waiting + 4)
    talks = Talks(brain, speech, limits, meters, why)
    for name in ("active", "waiting"):
        meters.watch(f"requests_{name}", f"Texts {name}", lambda name=name: len(getattr(batcher, name)))
        meters.watch(
            f"talks_{name}", f"Chats and transcriptions {name}", lambda name=name: getattr(talks, name)
        )

    @asynccontextmanager
    async def life(_: FastAPI):
        yield
        await to_thread.run_sync(batcher.close)

    app = FastAPI(title="omni", lifespan=life, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.batcher, app.state.talks = batcher, talks

    app.add_middleware(Guard, meters=meters, token=token)

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
        speaking = {"active": len(batcher.active), "waiting": len(batcher.waiting)}
        return {"status": "ok"} | speaking | {"brain": brain is not None, "talks": talks.inside}

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(generate_latest(meters.registry), media_type="text/plain; version=0.0.4")

    @app.get("/v1/audio/voices")
    async def list_voices() -> dict:
        return {"voices": list(speech.voices)}

    @app.get("/v1/models")
    async def list_models() -> dict:
        return {
            "object": "list",
            "data": [{"id": "omni", "object": "model", "created": 0, "owned_by": "omnilib"}],
        }

    @app.post("/v1/audio/transcriptions")
    async def write_down(request: Request) -> Response:
        return await transcribe(request, talks)

    @app.post("/v1/chat/completions")
    async def answer(request: Request) -> Response:
        return await complete(request, talks)

    @app.post("/v1/audio/speech")
    async def speak(request: Request) -> Response:
        begun = time.perf_counter()
        wish = understood(await read_json(request, limits.body, limits.patience), limits)
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
