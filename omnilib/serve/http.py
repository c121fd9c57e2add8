"""What every endpoint shares: limits, refusals in OpenAI's shape, bodies and streams that cannot hang.

Every mistake has a status code and one line: {"error": {"message", "type", "param", "code"}}.

    400  the request is not understood, or asks for what is not there     413  too large, long or many
    401  no token, or another one                                         415  a kind of file that is not read
    408  the body did not come in time                                    422  a file that is damaged
    409  this conversation is being answered                              429  as many as may wait are waiting
    503  the brain is not loaded
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import TypeVar

from anyio import to_thread
from fastapi import Request
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, ValidationError

from omnilib.errors import UserError

MEGABYTE = 1 << 20
EVENTS = "text/event-stream"
Fields = TypeVar("Fields", bound=BaseModel)


@dataclass(frozen=True)
class Limits:
    """What a request may cost."""

    slots: int = 16  # texts spoken together
    waiting: int = 16  # requests that may wait for that, or to be answered; more get a 429
    body: int = 8 * MEGABYTE  # bytes of a request to speak
    text: int = 4096  # characters to speak, as OpenAI's
    patience: float = 30.0  # seconds for a client to send its body, and to take each piece of the answer
    talks: int = 4  # chats and transcriptions answered together
    upload: int = 32 * MEGABYTE  # bytes of a chat or a recording to transcribe
    seconds: float = 600.0  # of all recordings of a request
    pixels: int = 24_000_000  # of all pictures of a request
    words: int = 200_000  # characters of all messages of a chat
    tokens: int = 1024  # of an answer


class Refusal(Exception):
    """A status code and one line."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


def error_of(status: int, message: str) -> dict:
    """OpenAI's shape of an error."""
    kind = "invalid_request_error" if status < 500 and status != 429 else "server_error"
    return {"error": {"message": " ".join(message.split()), "type": kind, "param": None, "code": status}}


def refused(status: int, message: str) -> JSONResponse:
    """The answer to a mistake."""
    return JSONResponse(error_of(status, message), status, {"Retry-After": "1"} if status == 429 else None)


def failed(error: Exception) -> bytes:
    """The last event of a stream that cannot go on."""
    said = str(error) if isinstance(error, UserError) else f"the answer failed ({type(error).__name__})"
    return b"data: " + json.dumps(error_of(500, said)).encode() + b"\n\n"


class PatientResponse(StreamingResponse):
    """A stream that ends when its client takes nothing for `patience` seconds, and always calls `over`."""

    def __init__(
        self, pieces: AsyncIterator[bytes], media: str, patience: float, over: Callable[[], None]
    ) -> None:
        super().__init__(pieces, media_type=media)
        self.patience, self.over = patience, over

    async def __call__(self, scope, receive, send) -> None:
        async def bounded(message) -> None:
            await asyncio.wait_for(send(message), self.patience)

        try:
            await super().__call__(scope, receive, bounded)
        finally:
            self.over()


def content_type(request: Request) -> str:
    """What the body says it is."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def read_bytes(request: Request, most: int, patience: float, keep: bool = True) -> bytes:
    """The body. What is too large is read to its end and thrown away, so that its sender hears why.

    Args:
        keep: False: read it only so that its sender hears an answer.

    Raises:
        Refusal: larger than `most` bytes, or slower than `patience` seconds.
    """
    parts, size = [], 0

    async def read() -> None:
        nonlocal size
        async for part in request.stream():
            size += len(part)
            if keep and size <= most:
                parts.append(part)
            else:
                parts.clear()

    try:
        await asyncio.wait_for(read(), patience)
    except TimeoutError:
        if size <= most:
            raise Refusal(408, f"the request did not arrive within {patience:g} seconds") from None
    if size > most:
        raise Refusal(413, f"the request is larger than {most / MEGABYTE:g} MB")
    return b"".join(parts)


async def read_json(request: Request, most: int, patience: float) -> dict:
    """The JSON object of a request.

    Raises:
        Refusal: too large, too slow, or no JSON object.
    """
    if content_type(request) != "application/json":
        raise Refusal(415, "send the request as application/json")
    body = await read_bytes(request, most, patience)
    try:
        found = await to_thread.run_sync(json.loads, body)
    except (ValueError, RecursionError):
        raise Refusal(400, "the request is not JSON in UTF-8") from None
    if not isinstance(found, dict):
        raise Refusal(400, "the request is not a JSON object")
    return found


def fields_of(kind: type[Fields], body: dict) -> Fields:
    """The body as fields of a known kind.

    Raises:
        Refusal: a field is missing or of another kind.
    """
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        first = error.errors()[0]
        raise Refusal(400, f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
