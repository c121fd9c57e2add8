"""Chats and transcriptions, asked by the real `openai` client over a real socket."""

import base64
import io
import json
import socket
import struct
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import httpx
import numpy as np
import openai
import pytest
import soundfile
import torch
from PIL import Image

from omnilib.brain.ask import Brain
from omnilib.omni import Omni
from omnilib.serve.app import build_app
from omnilib.serve.http import Limits
from tests.serve.conftest import STORY, start, tiny_brain
from tests.tiny import tone

LIMITS = Limits(talks=4, waiting=12, upload=4 << 20, seconds=20.0, pixels=1_000_000, words=4000, patience=2.0)


@pytest.fixture(scope="module")
def brain():
    return tiny_brain()


@pytest.fixture(scope="module")
def server(speech, brain):
    speech.settings = replace(speech.settings, rows_per_token=1.0)  # random weights never stop by themselves
    app = build_app(speech, LIMITS, brain=brain)
    port, stop = start(app)
    yield port, app.state.talks
    stop()


@pytest.fixture(autouse=True)
def story(brain):
    brain.script, brain.pause = STORY, 0.0


@pytest.fixture
def client(server):
    return openai.OpenAI(base_url=f"http://127.0.0.1:{server[0]}/v1", api_key="-", max_retries=0)


@pytest.fixture
def post(server):
    url = f"http://127.0.0.1:{server[0]}"
    return lambda path="/v1/chat/completions", **given: httpx.post(url + path, timeout=30, **given)


def wav(samples, rate=16000, form="WAV"):
    file = io.BytesIO()
    kinds = {"MP3": "MPEG_LAYER_III"}
    soundfile.write(file, samples, rate, format=form, subtype=kinds.get(form, "PCM_16"))
    return file.getvalue()


def png(width=56, height=56, colour="red", form="PNG"):
    file = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(file, form)
    return file.getvalue()


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def audio_part(data=None, form="wav"):
    data = wav(tone(1.0)) if data is None else data
    return {"type": "input_audio", "input_audio": {"data": b64(data), "format": form}}


def image_part(data=None, kind="image/png"):
    return {"type": "image_url", "image_url": {"url": f"data:{kind};base64,{b64(data or png())}"}}


def user(*parts):
    return {"role": "user", "content": list(parts) if parts else "hi"}


def ask(client, *messages, **fields):
    return client.chat.completions.create(model="omni", messages=list(messages) or [user()], **fields)


def spoken(**fields):
    return {"modalities": ["text", "audio"], "audio": {"voice": "ann", "format": "wav"}} | fields


def free(talks, seconds=10.0):
    end = time.monotonic() + seconds
    while talks.inside and time.monotonic() < end:
        time.sleep(0.01)
    return talks.inside == talks.active == 0 and not talks.conversations


def alone(speech, brain):
    return Omni(brain, speech).conversation("ann").ask("hi", max_new_tokens=LIMITS.tokens)


# ---- answers ---------------------------------------------------------------------------------------------


def test_words_get_words(client):
    answer = ask(client)
    assert answer.choices[0].message.content == STORY and answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].message.audio is None and answer.object == "chat.completion"
    usage = answer.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens and usage.prompt_tokens > 4


def test_an_answer_that_is_cut_says_so(client):
    answer = ask(client, max_tokens=4)
    assert answer.choices[0].finish_reason == "length" and answer.usage.completion_tokens == 4
    assert ask(client, max_completion_tokens=5).usage.completion_tokens == 5


def test_an_answer_ends_with_the_context_and_says_so(client):
    answer = ask(client, user({"type": "text", "text": "ab " * 670}))
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.total_tokens == 2048 and STORY.startswith(answer.choices[0].message.content)


def test_what_random_weights_write_is_what_the_library_writes(speech):
    brain = tiny_brain(Brain)
    port, stop = start(build_app(speech, LIMITS, brain=brain))
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="-", max_retries=0)
    try:
        words = ask(client, user({"type": "text", "text": "hi"}, audio_part()), max_tokens=8)
        file = io.BytesIO(wav(tone(1.0)))
        wave = torch.from_numpy(soundfile.read(file, dtype="float32")[0])
        expected = brain.ask("hi<speech>", audio=[wave], max_new_tokens=8).text
        assert words.choices[0].message.content == expected
    finally:
        stop()


@pytest.mark.parametrize("form", ["wav", "mp3", "flac", "opus", "pcm16"])
def test_a_spoken_answer_has_words_and_a_file_of_every_format(client, speech, brain, form):
    message = ask(client, **spoken(audio={"voice": "ann", "format": form})).choices[0].message
    assert message.audio.transcript == message.content == STORY and message.audio.expires_at > time.time()
    data, whole = base64.b64decode(message.audio.data), alone(speech, brain).wave
    if form == "pcm16":
        wave = np.frombuffer(data, dtype="<i2") / 32767
        np.testing.assert_allclose(wave, whole.clamp(-1, 1).numpy(), atol=1e-3)
    else:
        wave, rate = soundfile.read(io.BytesIO(data))
        assert rate == 24000 and abs(len(wave) - len(whole)) <= (0 if form in ("wav", "flac") else 2500)


def read_stream(stream):
    """Words, transcript, samples and all chunks of a stream."""
    words, transcript, data, chunks = "", "", b"", []
    for chunk in stream:
        chunks.append(chunk)
        for choice in chunk.choices:
            words += choice.delta.content or ""
            audio = getattr(choice.delta, "audio", None)
            audio = audio if isinstance(audio, dict) else audio.model_dump() if audio else {}
            transcript += audio.get("transcript") or ""
            data += base64.b64decode(audio.get("data") or "")
    return words, transcript, np.frombuffer(data, dtype="<i2") / 32767, chunks


def test_a_stream_has_the_words_and_samples_of_the_library(client, speech, brain):
    wanted = spoken(audio={"voice": "ann", "format": "pcm16"}, stream=True)
    words, transcript, wave, chunks = read_stream(
        ask(client, **wanted, stream_options={"include_usage": True})
    )
    assert words == transcript == STORY
    np.testing.assert_allclose(wave, alone(speech, brain).wave.clamp(-1, 1).numpy(), atol=1e-3)
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"} and len(
        {c.id for c in chunks}
    ) == 1
    assert chunks[0].choices[0].delta.role == "assistant" and chunks[-1].choices == []
    assert chunks[-2].choices[0].finish_reason == "stop" and chunks[-1].usage.completion_tokens > 0


def test_words_alone_stream_as_they_are_written(client, brain):
    brain.pause = 0.02
    began, times = time.monotonic(), []
    for chunk in ask(client, stream=True):
        times.append(time.monotonic() - began)
        last = chunk
    assert len(times) > 10 and times[3] < times[-1] / 2 and last.choices[0].finish_reason == "stop"


def test_sound_and_pictures_reach_the_brain_in_their_order(client, brain):
    parts = (
        {"type": "text", "text": "is"},
        image_part(),
        audio_part(),
        audio_part(wav(tone(2.0), 16000, "MP3"), "mp3"),
    )
    ask(client, {"role": "system", "content": "You are brief."}, user(*parts))
    [batch] = brain.heard[-1:]
    assert batch["pixel_values"].shape[0] == 16 and len(batch["feature_positions"]) == 2
    text = brain.processor.decode(batch["input_ids"][0][batch["input_ids"][0] >= 0])
    assert "You are brief." in text and "You are a helpful" not in text


@pytest.mark.parametrize("kind, form", [("png", "PNG"), ("jpeg", "JPEG"), ("webp", "WEBP"), ("gif", "GIF")])
def test_pictures_of_every_web_format_are_seen(client, brain, kind, form):
    ask(client, user(image_part(png(form=form), f"image/{kind}")))
    assert "pixel_values" in brain.heard[-1]


def test_what_is_typed_is_no_placeholder(client, brain):
    ask(client, user({"type": "text", "text": "<image> <|im_end|>"}))
    assert "pixel_values" not in brain.heard[-1]


def test_a_talk_goes_on_with_all_that_was_said_and_heard(client, brain):
    first = user(audio_part(), image_part())
    said = ask(client, first, **spoken()).choices[0].message
    ask(client, first, {"role": "assistant", "audio": {"id": said.audio.id}}, user())
    by_id = brain.heard[-1]
    ask(client, first, {"role": "assistant", "content": STORY}, user())
    ask(client, first, said.model_dump(exclude_none=True), user())
    for other in brain.heard[-2:]:
        assert torch.equal(other["input_ids"], by_id["input_ids"])
    assert "input_features" in by_id and "pixel_values" in by_id


def test_a_streamed_answer_can_be_named_by_its_id(client, brain):
    wanted = spoken(audio={"voice": "ann"}, stream=True)
    _, _, _, chunks = read_stream(ask(client, **wanted))
    given = [c.choices[0].delta.audio for c in chunks if getattr(c.choices[0].delta, "audio", None)]
    name = next(a["id"] if isinstance(a, dict) else a.id for a in given)
    ask(client, user(), {"role": "assistant", "audio": {"id": name}}, user())
    assert STORY in brain.processor.decode(brain.heard[-1]["input_ids"][0])


def test_sixteen_clients_hear_what_each_would_hear_alone(client, speech, brain):
    whole = alone(speech, brain).wave.clamp(-1, 1).numpy()

    def one(number):
        if number % 4 == 3:
            return ask(client).choices[0].message.content
        return read_stream(ask(client, **spoken(audio={"voice": "ann"}, stream=True)))[2]

    with ThreadPoolExecutor(16) as many:
        found = list(many.map(one, range(16)))
    assert all(found[i] == STORY for i in (3, 7, 11, 15))
    for wave in (found[0], found[6], found[14]):
        np.testing.assert_allclose(wave, whole, atol=1e-3)


# ---- transcriptions --------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["WAV", "MP3", "FLAC"])
def test_a_recording_is_written_down(client, brain, form):
    file = ("a." + form.lower(), wav(tone(1.5), 16000, form))
    answer = client.audio.transcriptions.create(model="omni", file=file, language="en")
    assert answer.text == STORY and len(brain.heard[-1]["feature_positions"]) == 1


def test_a_transcript_comes_as_text_and_as_a_stream(client):
    file = ("a.wav", wav(tone(1.5)))
    text = client.audio.transcriptions.create(model="omni", file=file, response_format="text")
    assert str(text) == STORY + "\n"
    events = list(client.audio.transcriptions.create(model="omni", file=file, stream=True))
    assert "".join(e.delta for e in events[:-1]) == events[-1].text == STORY


# ---- what cannot be answered -----------------------------------------------------------------------------


def chat(*parts, **fields):
    return {"model": "omni", "messages": [user(*parts)]} | fields


def flac_bomb():
    file = io.BytesIO()
    with soundfile.SoundFile(file, "w", 48000, 8, format="FLAC") as out:
        for _ in range(19):
            out.write(np.zeros((48000, 8)))
    return file.getvalue()


def png_bomb(side=30_000):
    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    body = b"IHDR" + head
    return (
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body)) + png()[33:]
    )


def one_hertz(hours=8):
    data = bytearray(wav(np.zeros(hours * 3600)))
    data[24:28] = struct.pack("<I", 1)
    return bytes(data)


PROMISES = bytearray(wav(tone(1.0)))
PROMISES[40:44] = struct.pack("<I", 10 * len(PROMISES))
NAN = io.BytesIO()
soundfile.write(NAN, np.full(16000, np.nan), 16000, format="WAV", subtype="FLOAT")


@pytest.mark.parametrize(
    "body, status, says",
    [
        (b"{", 400, "not JSON"),
        (b"[]", 400, "not a JSON object"),
        ({}, 400, "messages"),
        ({"messages": []}, 400, "messages"),
        ({"messages": ["hi"]}, 400, "messages.0"),
        ({"messages": [{"role": "tool", "content": "a"}]}, 400, "no role 'tool'"),
        ({"messages": [{"role": "user", "content": None}]}, 400, "messages.0: content"),
        ({"messages": [{"role": "user", "content": " "}]}, 400, "nothing in it to answer"),
        ({"messages": [user(), {"role": "system", "content": "a"}]}, 400, "must be the first"),
        ({"messages": [user(), {"role": "assistant", "content": "a"}]}, 400, "must be the user's"),
        ({"messages": [{"role": "assistant", "audio": {"id": "audio_0"}}, user()]}, 400, "no spoken answer"),
        ({"messages": [{"role": "assistant", "content": [image_part()]}, user()]}, 400, "must be text"),
        (chat({"type": "video_url", "video_url": {"url": "data:"}}), 400, "a part is"),
        (chat({"type": "text", "text": 5}), 400, "a part is"),
        (chat({"type": "text", "text": "a" * 4001}), 413, "4000 characters"),
        (chat({"type": "input_audio", "input_audio": {"data": "%%"}}), 400, "not base64"),
        (chat(audio_part(form="aac")), 415, "no format 'aac'"),
        (chat(audio_part(b"no sound at all")), 415, "not readable as audio"),
        (chat(audio_part(b"\0")), 415, "not readable as audio"),
        (chat(audio_part(one_hertz())), 422, "no rate of a recording"),
        (chat(audio_part(bytes(PROMISES))), 422, "cut short"),
        (chat(audio_part(NAN.getvalue())), 422, "NaN"),
        (chat(audio_part(wav(np.zeros(21 * 8000), 8000))), 413, "21 s"),
        (chat(*[audio_part(wav(np.zeros(11 * 8000), 8000))] * 2), 413, "at most 20 s in all"),
        (chat(audio_part(flac_bomb())), 413, "samples"),
        (
            chat({"type": "image_url", "image_url": {"url": "http://127.0.0.1/a.png"}}),
            400,
            "nothing is fetched",
        ),
        (chat({"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}), 400, "nothing is fetched"),
        (chat({"type": "image_url", "image_url": {"url": "data:image/png;base64,%%"}}), 400, "not base64"),
        (chat(image_part(kind="text/html")), 415, "send a picture"),
        (chat(image_part(b"%!PS-Adobe-3.0 EPSF-3.0\n")), 415, "not a picture that is read"),
        (chat(image_part(png()[:80])), 422, "image_url"),
        (chat(image_part(png(1100, 1000))), 413, "1 million pixels"),
        (chat(*[image_part(png(800, 800))] * 2), 413, "1 million pixels"),
        (chat(image_part(png_bomb())), 413, "too large"),
        (chat(image_part(png(1000, 2))), 422, "200 times"),
        (chat({"type": "text", "text": "a b " * 600}), 400, "positions"),
        (chat(modalities=["video"]), 400, "modalities"),
        (chat(**spoken(audio={"voice": "alloy"})), 400, "choose one of ann, bo"),
        (chat(**spoken(audio={"voice": {"id": "../ann"}})), 400, "choose one of ann, bo"),
        (chat(**spoken(audio={"format": "aac"})), 400, "choose one of wav"),
        (chat(**spoken(stream=True)), 400, "pcm16"),
        (chat(temperature=-1), 400, "temperature"),
        (chat(max_tokens=0), 400, "max_tokens"),
        (chat(n=2), 400, "n: only one"),
        (chat(tools=[{"type": "function"}]), 400, "tools: not possible"),
        (chat(stop=["a"]), 400, "stop: not possible"),
        (chat(response_format={"type": "json_object"}), 400, "response_format"),
        (chat(language="fr"), 400, "unknown language"),
    ],
)
def test_a_bad_chat_gets_its_status_and_one_line(post, server, body, status, says):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = post(content=data, headers={"content-type": "application/json"})
    message = answer.json()["error"]["message"]
    assert (answer.status_code, says in message) == (status, True), message
    assert "\n" not in message and "/tmp" not in message and free(server[1])


@pytest.mark.parametrize(
    "given, status, says",
    [
        ({"json": {}}, 415, "multipart/form-data"),
        ({"content": b"x", "headers": {"content-type": "multipart/form-data"}}, 400, "not understood"),
        ({"content": b"x", "headers": {"content-type": "multipart/form-data; boundary=b"}}, 400, ""),
        ({"files": {"other": ("a.wav", b"x")}}, 400, "file: send"),
        ({"files": {"file": (None, "words")}}, 400, "file: send"),
        ({"files": [("file", ("a.wav", b"x")), ("file", ("b.wav", b"x"))]}, 400, "Too many files"),
        ({"files": {"file": ("a.wav", b"")}}, 422, "not readable as audio"),
        ({"files": {"file": ("a.wav", b"no sound")}}, 415, "not readable as audio"),
        ({"files": {"file": ("a.wav", one_hertz())}}, 422, "no rate of a recording"),
        ({"files": {"file": ("a.wav", wav(np.zeros(21 * 8000), 8000))}}, 413, "21 s"),
        ({"files": {"file": ("a.wav", bytes(5 << 20))}}, 413, "larger than 4 MB"),
        (
            {"files": {"file": ("a.wav", wav(tone(1.0)))}, "data": {"response_format": "srt"}},
            400,
            "json, text",
        ),
        ({"files": {"file": ("a.wav", wav(tone(1.0)))}, "data": {"language": "fr"}}, 400, "unknown language"),
        ({"files": {"file": ("a.wav", wav(tone(1.0)))}, "data": {"temperature": "hot"}}, 400, "temperature"),
        (
            {"files": {"file": ("a.wav", wav(tone(1.0)))}, "data": {f"f{i}": "" for i in range(40)}},
            400,
            "fields",
        ),
    ],
)
def test_a_bad_form_gets_its_status_and_one_line(post, server, given, status, says):
    answer = post("/v1/audio/transcriptions", **given)
    message = answer.json()["error"]["message"]
    assert (answer.status_code, says in message) == (status, True), message
    assert "\n" not in message and "/tmp" not in message and free(server[1])


def test_a_64_megabyte_picture_is_told_that_it_is_too_large(client):
    with pytest.raises(openai.APIStatusError, match="larger than 4 MB") as error:
        ask(client, user(image_part(bytes(64 << 20))))
    assert error.value.status_code == 413


def test_an_answer_that_fails_on_its_way_is_an_error_in_the_stream_and_a_500_without(client, brain, server):
    brain.script = "! it breaks after a few words"
    with pytest.raises(openai.APIError, match="the answer failed"):
        list(ask(client, stream=True))
    with pytest.raises(openai.InternalServerError, match="the server failed"):
        ask(client)
    assert free(server[1])


# ---- many, slow and vanishing clients --------------------------------------------------------------------


def test_two_requests_for_one_conversation_are_not_mixed(client, brain, server):
    brain.pause = 0.03
    named = {"extra_body": {"conversation": "a"}}
    stream = ask(client, stream=True, **named)
    next(iter(stream))
    with pytest.raises(openai.ConflictError, match="conversation 'a' is being answered"):
        ask(client, **named)
    assert ask(client, extra_body={"conversation": "b"}).choices[0].message.content == STORY
    stream.close()
    assert free(server[1])
    brain.pause = 0
    assert ask(client, **named).choices[0].message.content == STORY


def raw(port, body):
    peer = socket.socket()
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # before connecting: it bounds the window
    peer.connect(("127.0.0.1", port))
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    peer.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    return peer


@pytest.mark.parametrize("stream", [True, False])
def test_clients_that_vanish_free_their_places(server, client, brain, stream):
    port, talks = server
    brain.pause = 0.02
    peers = [raw(port, json.dumps(chat(stream=stream)).encode()) for _ in range(8)]  # half of them wait
    time.sleep(0.1)
    for peer in peers:
        peer.close()
    assert free(talks)
    brain.pause = 0
    assert ask(client).choices[0].message.content == STORY


def test_a_client_that_does_not_read_is_let_go(server, brain):
    port, talks = server
    brain.script = STORY * 400  # more than the socket holds
    peer = raw(port, json.dumps(chat(stream=True)).encode())
    assert free(talks, 120)  # a slow machine takes long to fill the socket
    peer.close()


def test_a_body_that_does_not_come_is_not_waited_for(server):
    peer = socket.create_connection(("127.0.0.1", server[0]))
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9"
    peer.sendall(head + b"\r\n\r\n{")
    peer.settimeout(10)
    assert b" 408 " in peer.recv(200)


def test_more_chats_than_may_wait_get_a_429(speech):
    brain = tiny_brain()
    brain.pause = 0.02
    port, stop = start(build_app(speech, Limits(talks=1, waiting=1), brain=brain))
    url = f"http://127.0.0.1:{port}/v1/chat/completions"
    try:
        with ThreadPoolExecutor(6) as many:
            found = list(many.map(lambda _: httpx.post(url, json=chat(), timeout=60), range(6)))
        codes = [answer.status_code for answer in found]
        assert set(codes) == {200, 429} and codes.count(200) >= 2
        assert all(a.headers["retry-after"] == "1" for a in found if a.status_code == 429)
        assert httpx.post(url, json=chat(), timeout=60).status_code == 200
    finally:
        stop()


def test_health_and_metrics_tell_of_chats(server, client):
    ask(client, **spoken())
    url = f"http://127.0.0.1:{server[0]}"
    assert httpx.get(url + "/health").json()["brain"] is True
    text = httpx.get(url + "/metrics").text
    assert "omni_talks_active 0.0" in text and "omni_talks_waiting 0.0" in text
    tokens = next(line for line in text.splitlines() if line.startswith("omni_tokens_total"))
    assert float(tokens.split()[1]) > 0 and client.models.list().data[0].id == "omni"


def test_threads_that_answer_are_as_many_as_before(server, client):
    ask(client)
    before = threading.active_count()
    for _ in range(20):
        ask(client)
    assert threading.active_count() <= before + 2
