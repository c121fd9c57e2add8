"""`/v1/chat/completions`: words, recordings and pictures in; words and speech out, whole or as they are made.

    question = {"type": "input_audio", "input_audio": {"data": ..., "format": "wav"}}
    client.chat.completions.create(model="omni", messages=[{"role": "user", "content": [question]}],
        modalities=["text", "audio"], audio={"voice": "default", "format": "wav"})

The interface is OpenAI's. Fields that would change the answer in a way this server cannot are refused,
others are not looked at. A spoken answer has its words in `message.content` too, not in
`message.audio.transcript` alone. All messages come with each request; of an earlier spoken answer the id
is enough. `conversation`, ours: a name under which one request at a time is answered.
"""

import base64
import json
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from typing import Literal

from anyio import to_thread
from fastapi import Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from omnilib.brain.decode import AnswerSettings
from omnilib.omni import Answer
from omnilib.output import pcm
from omnilib.serve.http import EVENTS, PatientResponse, Refusal, failed, fields_of, read_json
from omnilib.serve.media import Budget, decoded
from omnilib.serve.sound import encoded, known_voice
from omnilib.serve.talks import SharedBrain, Talks, Written
from omnilib.speak import LANGUAGES
from omnilib.tracks import Piece

SOUNDS = ("wav", "mp3", "flac", "opus", "pcm16")
HEARD = ("wav", "mp3", "flac", "ogg", "opus")  # what a recording may say it is; its own header decides
UNABLE = ("tools", "functions", "logprobs", "stop", "logit_bias", "frequency_penalty", "presence_penalty")
NONE_OF = (None, False, 0, [], {}, "")


class VoiceName(BaseModel):
    """A voice as an object."""

    id: str


class Sound(BaseModel):
    """How the answer shall sound."""

    voice: str | VoiceName | None = None
    format: str | None = None


class StreamOptions(BaseModel):
    """What a stream ends with."""

    include_usage: bool = False


class Wish(BaseModel):
    """The body of /v1/chat/completions."""

    messages: list[dict] = Field(min_length=1)
    model: str | None = None
    modalities: list[Literal["text", "audio"]] | None = None
    audio: Sound | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=0, lt=2**63)
    n: int | None = None
    language: str | None = None  # ours: of the default voice and of how the answer is read
    conversation: str | None = Field(None, min_length=1, max_length=200)

    @property
    def speaks(self) -> bool:
        """Whether sound is asked for."""
        return "audio" in (self.modalities or ())

    @property
    def format(self) -> str:
        """Of the sound."""
        given = self.audio.format if self.audio else None
        return given or ("pcm16" if self.stream else "wav")

    @property
    def voice(self) -> str | None:
        """Its name."""
        given = self.audio.voice if self.audio else None
        return given.id if isinstance(given, VoiceName) else given


def understood(body: dict) -> Wish:
    """The body as a `Wish`.

    Raises:
        Refusal: a field is missing, of another kind, or asks for what is not there.
    """
    wish = fields_of(Wish, body)
    for name in UNABLE:
        if body.get(name) not in NONE_OF:
            raise Refusal(400, f"{name}: not possible with this model; leave it out")
    kind = body.get("response_format")
    if kind not in NONE_OF and not (isinstance(kind, dict) and kind.get("type") == "text"):
        raise Refusal(400, "response_format: only {'type': 'text'} is possible")
    if wish.n not in (None, 1):
        raise Refusal(400, "n: only one answer at a time is possible")
    if wish.speaks and wish.format not in SOUNDS:
        raise Refusal(400, f"no audio.format '{wish.format[:20]}': choose one of {', '.join(SOUNDS)}")
    if wish.speaks and wish.stream and wish.format != "pcm16":
        raise Refusal(400, "audio.format: a stream has pcm16 (24000 Hz, mono); leave stream out for a file")
    if wish.language is not None and wish.language not in LANGUAGES:
        raise Refusal(400, f"unknown language '{wish.language[:20]}': choose one of {', '.join(LANGUAGES)}")
    return wish


# ---- messages ----------------------------------------------------------------------------------------------


def user_part(part: object, place: str, budget: Budget) -> dict:
    """A part of a user's message, as the brain takes it."""
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return {"type": "text", "text": budget.text(part["text"])}
    held = part.get(kind) if kind in ("input_audio", "image_url") else None
    if kind == "input_audio" and isinstance(held, dict) and isinstance(held.get("data"), str):
        form = str(held.get("format", "wav"))
        if form not in HEARD:
            raise Refusal(415, f"{place}: no format '{form[:20]}' is read: send {', '.join(HEARD)}")
        name = f"{place}.input_audio"
        return {"type": "audio", "audio": budget.audio(decoded(held["data"], name), name)}
    if kind == "image_url" and isinstance(held, dict) and isinstance(held.get("url"), str):
        return {"type": "image", "image": budget.picture(held["url"], f"{place}.image_url")}
    raise Refusal(
        400,
        f"{place}: a part is {{'type': 'text', 'text'}}, "
        "{'type': 'input_audio', 'input_audio': {'data', 'format'}} "
        "or {'type': 'image_url', 'image_url': {'url'}}",
    )


def words_of(content: object, place: str, budget: Budget) -> str:
    """The text of a message that has no media."""
    parts = [content] if isinstance(content, str) else content if isinstance(content, list) else [None]
    texts = [part.get("text") if isinstance(part, dict) else part for part in parts]
    if not all(isinstance(text, str) for text in texts):
        raise Refusal(400, f"{place}: content must be text")
    return budget.text("".join(texts))


def read_messages(messages: list[dict], talks: Talks) -> list[dict]:
    """All messages, their recordings and pictures decoded, as `BrainProcessor.chat` takes them.

    Raises:
        Refusal: what is wrong, and in which message.
    """
    budget, read = Budget(talks.limits), []
    for i, message in enumerate(messages):
        place, role, content = f"messages.{i}", message.get("role"), message.get("content")
        if role in ("system", "developer"):
            if i:
                raise Refusal(400, f"{place}: a {role} message must be the first")
            read.append({"role": "system", "content": words_of(content, place, budget)})
        elif role == "assistant":
            spoken = message.get("audio")
            if content in (None, "") and isinstance(spoken, dict) and isinstance(spoken.get("id"), str):
                content = talks.recall(spoken["id"])
            read.append({"role": role, "content": words_of(content, place, budget)})
        elif role == "user":
            parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
            if not isinstance(parts, list) or not parts:
                raise Refusal(400, f"{place}: content must be text or a list of parts")
            made = [user_part(part, f"{place}.content.{k}", budget) for k, part in enumerate(parts)]
            if all(part["type"] == "text" and not part["text"].strip() for part in made):
                raise Refusal(400, f"{place}: there is nothing in it to answer")
            read.append({"role": role, "content": made})
        else:
            raise Refusal(400, f"{place}: no role {role!r:.40}: choose one of system, user, assistant")
    if read[-1]["role"] != "user":
        raise Refusal(400, "messages: the last one must be the user's")
    return read


# ---- answers -----------------------------------------------------------------------------------------------


class Completion:
    """One answer on its way out, in OpenAI's words.

    Args:
        answer, brain: of `Talks.ask`.
        most: ids that it may have.
        begun: when the request came, as `time.perf_counter` counts.
    """

    def __init__(
        self, talks: Talks, wish: Wish, answer: Answer | Written, brain: SharedBrain, most: int, begun: float
    ):
        self.talks, self.wish, self.answer, self.brain = talks, wish, answer, brain
        self.most, self.begun = most, begun
        self.name, self.created = f"chatcmpl-{uuid.uuid4().hex}", int(time.time())
        self.rate, self.pieces, self.heard = talks.omni.speech.rate, iter(answer), False

    def piece(self) -> Piece | None:
        """The next piece, counted; None after the last."""
        piece = next(self.pieces, None)
        if piece is not None and len(piece.wave):
            if not self.heard:
                self.talks.meters.first.observe(time.perf_counter() - self.begun)
            self.heard = True
            self.talks.meters.audio.inc(len(piece.wave) / self.rate)
        return piece

    @property
    def finish(self) -> str:
        return "length" if self.brain.cut or len(self.answer.brain.ids) >= self.most else "stop"

    @property
    def usage(self) -> dict:
        written = len(self.answer.brain.ids)
        counts = {"prompt_tokens": self.brain.positions, "completion_tokens": written}
        return counts | {"total_tokens": self.brain.positions + written}

    def whole(self, wave: bytes) -> dict:
        """The answer as one object; `wave`: 16-bit samples."""
        text = self.answer.brain.text.strip()
        message = {"role": "assistant", "content": text, "refusal": None}
        if self.wish.speaks:
            name, until = self.talks.remember(text)
            form = "pcm" if self.wish.format == "pcm16" else self.wish.format
            data = base64.b64encode(encoded(wave, form, self.rate)).decode()
            message["audio"] = {"id": name, "data": data, "expires_at": until, "transcript": text}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": self.finish}
        return self.head("chat.completion") | {"choices": [choice], "usage": self.usage}

    def head(self, kind: str) -> dict:
        made = {"id": self.name, "object": kind, "created": self.created}
        return made | {"model": self.wish.model or "omni"}

    def event(self, delta: dict | None, finish: str | None = None, **more) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        chunk = self.head("chat.completion.chunk") | {"choices": [] if delta is None else [choice]} | more
        return b"data: " + json.dumps(chunk, ensure_ascii=False).encode() + b"\n\n"

    def delta(self, piece: Piece, name: str | None) -> dict:
        """What is new in a piece."""
        made: dict = {"content": piece.text} if piece.text else {}
        if self.wish.speaks:
            audio = {"id": name} if name else {}
            audio |= {"transcript": piece.text} if piece.text else {}
            audio |= {"data": base64.b64encode(pcm(piece.wave)).decode()} if len(piece.wave) else {}
            made |= {"audio": audio} if audio else {}
        return made

    async def events(self, first: Piece | None) -> AsyncIterator[bytes]:
        """Server-sent events: chunks, then [DONE]. A failure on the way is an event too."""
        yield self.event({"role": "assistant", "content": ""})
        name = f"audio_{uuid.uuid4().hex}" if self.wish.speaks else None
        told, piece = False, first
        try:
            while piece is not None:
                if delta := self.delta(piece, None if told else name):
                    told = told or "audio" in delta
                    yield self.event(delta)
                piece = await to_thread.run_sync(self.piece, limiter=self.talks.threads)
        except Exception as error:
            yield failed(error)
            return
        if told:
            _, until = self.talks.remember(self.answer.brain.text.strip(), name)
            yield self.event({"audio": {"id": name, "expires_at": until}})
        yield self.event({}, self.finish)
        if self.wish.stream_options and self.wish.stream_options.include_usage:
            yield self.event(None, usage=self.usage)
        yield b"data: [DONE]\n\n"


def settings_of(wish: Wish, talks: Talks) -> AnswerSettings:
    """How the brain shall answer."""
    most = talks.limits.tokens
    wanted = wish.max_completion_tokens or wish.max_tokens or most
    given = {"temperature": wish.temperature, "top_p": wish.top_p, "seed": wish.seed}
    changed = {name: value for name, value in given.items() if value is not None}
    return replace(talks.brain.settings, max_new_tokens=min(wanted, most), **changed)


async def complete(request: Request, talks: Talks) -> Response:
    """Answer a request.

    Raises:
        Refusal, UserError: what is wrong with it.
    """
    begun, limits, seat = time.perf_counter(), talks.limits, await talks.enter(request)
    try:
        wish = understood(await read_json(request, limits.upload, limits.patience))
        seat.claim(wish.conversation)
        voice = known_voice(wish.voice, talks.omni.speech)
        messages = await to_thread.run_sync(read_messages, wish.messages, talks, limiter=talks.readers)
        wish.messages = []  # megabytes of base64
        await seat.sit(request)
        settings = settings_of(wish, talks)
        ask = partial(talks.ask, messages, settings, voice, wish.language, wish.speaks)
        seat.answer, brain = await to_thread.run_sync(ask, limiter=talks.threads)
        completion = Completion(talks, wish, seat.answer, brain, settings.max_new_tokens, begun)
        piece = await to_thread.run_sync(
            completion.piece, limiter=talks.threads
        )  # an error before it still gets its status
        if wish.stream:
            return PatientResponse(completion.events(piece), EVENTS, limits.patience, seat.leave)
        waves = []
        while piece is not None:
            if await request.is_disconnected():
                raise Refusal(499, "the client has gone")
            waves.append(pcm(piece.wave))
            piece = await to_thread.run_sync(completion.piece, limiter=talks.threads)
        answer = JSONResponse(await to_thread.run_sync(completion.whole, b"".join(waves)))
    except BaseException:
        seat.leave()
        raise
    seat.leave()
    return answer
