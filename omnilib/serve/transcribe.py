"""`/v1/audio/transcriptions`: a recording in, its words out, by the brain.

    client.audio.transcriptions.create(model="omni", file=open("hello.wav", "rb")).text

A form with `file`, and `response_format` json or text; with `stream` words come as events, as OpenAI's do.
"""

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial

from anyio import to_thread
from fastapi import Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from pydantic import BaseModel, Field
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from omnilib.audio import TOKENIZER_RATE
from omnilib.serve.http import EVENTS, PatientResponse, Refusal, content_type, failed, fields_of, read_bytes
from omnilib.serve.media import Budget
from omnilib.serve.talks import Talks, Written
from omnilib.speak import LANGUAGES

ASK = "Write down what is said."  # as the brain was trained
FORMATS = ("json", "text")
A_SECOND = 24  # ids that a second of speech may take
FIELDS = 32  # of a form


class Wish(BaseModel):
    """The fields beside the file."""

    model: str | None = None
    language: str | None = None  # checked; the brain hears by itself which one it is
    response_format: str = "json"
    temperature: float = Field(0.0, ge=0, le=1, allow_inf_nan=False)
    stream: bool = False


async def read_form(request: Request, most: int, patience: float) -> tuple[bytes, dict]:
    """The file of a form, and its other fields.

    Raises:
        Refusal: no such form, too large, too slow, or without a file.
    """
    if content_type(request) != "multipart/form-data":
        raise Refusal(415, "send the recording as multipart/form-data, in the field file")
    body = await read_bytes(request, most, patience)

    async def at_once() -> AsyncIterator[bytes]:
        yield body

    try:
        form = await MultiPartParser(request.headers, at_once(), max_files=1, max_fields=FIELDS).parse()
    except (MultiPartException, ValueError) as error:
        said = error.message if isinstance(error, MultiPartException) else "not multipart/form-data"
        raise Refusal(400, f"the form is not understood: {said}") from None
    file = form.get("file")
    try:
        if not isinstance(file, UploadFile):
            raise Refusal(400, "file: send a recording in this field, with a name")
        return await file.read(), {name: value for name, value in form.items() if isinstance(value, str)}
    finally:
        await form.close()


def understood(fields: dict) -> Wish:
    """The fields as a `Wish`.

    Raises:
        Refusal: of another kind, or asks for what is not there.
    """
    wish = fields_of(Wish, fields)
    if wish.response_format not in FORMATS:
        raise Refusal(
            400, f"no response_format '{wish.response_format[:20]}': choose one of {', '.join(FORMATS)}"
        )
    if wish.language not in (None, "", *LANGUAGES):
        raise Refusal(400, f"unknown language '{wish.language[:20]}': choose one of {', '.join(LANGUAGES)}")
    return wish


async def events(answer: Written, pieces, first, talks: Talks) -> AsyncIterator[bytes]:
    """Words as they come, then all of them."""
    piece = first
    try:
        while piece is not None:
            if piece.text:
                yield event("transcript.text.delta", delta=piece.text)
            piece = await to_thread.run_sync(next, pieces, None, limiter=talks.threads)
    except Exception as error:
        yield failed(error)
        return
    yield event("transcript.text.done", text=answer.brain.text.strip())


def event(kind: str, **fields: str) -> bytes:
    return b"data: " + json.dumps({"type": kind} | fields, ensure_ascii=False).encode() + b"\n\n"


async def transcribe(request: Request, talks: Talks) -> Response:
    """Answer a request.

    Raises:
        Refusal, UserError: what is wrong with it.
    """
    limits, seat = talks.limits, await talks.enter(request)
    try:
        data, fields = await read_form(request, limits.upload, limits.patience)
        wish = understood(fields)
        wave = await to_thread.run_sync(Budget(limits).audio, data, "file", limiter=talks.readers)
        del data
        seconds = len(wave) / TOKENIZER_RATE
        await seat.sit(request)
        question = [{"type": "audio", "audio": wave}, {"type": "text", "text": ASK}]
        most = min(limits.tokens, 64 + round(seconds * A_SECOND))
        settings = replace(talks.brain.settings, max_new_tokens=most, temperature=wish.temperature)
        ask = partial(talks.ask, [{"role": "user", "content": question}], settings)
        answer, _ = await to_thread.run_sync(ask, limiter=talks.threads)
        seat.answer, pieces = answer, iter(answer)
        piece = await to_thread.run_sync(next, pieces, None, limiter=talks.threads)
        if wish.stream:
            stream = events(answer, pieces, piece, talks)
            return PatientResponse(stream, EVENTS, limits.patience, seat.leave)
        while piece is not None:
            if await request.is_disconnected():
                raise Refusal(499, "the client has gone")
            piece = await to_thread.run_sync(next, pieces, None, limiter=talks.threads)
    except BaseException:
        seat.leave()
        raise
    seat.leave()
    text = answer.brain.text.strip()
    if wish.response_format == "text":
        return PlainTextResponse(text + "\n")
    return JSONResponse({"text": text, "usage": {"type": "duration", "seconds": round(seconds)}})
