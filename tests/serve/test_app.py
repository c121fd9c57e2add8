"""The server, asked by the real `openai` client over a real socket."""

import base64
import io
import json
import socket
import struct
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import openai
import pytest
import soundfile

from omnilib.serve.__main__ import main
from omnilib.serve.app import build_app
from omnilib.serve.http import Limits
from tests.serve.conftest import start
from tests.tiny import tone

TEXT = "The light of the morning was on the water. The morning was the light."
LIMITS = Limits(slots=8, waiting=16, body=1 << 20, upload=1 << 20, text=400, patience=2.0)


@pytest.fixture(scope="module")
def server(speech):
    app = build_app(speech, LIMITS)
    port, stop = start(app)
    yield port, app.state.batcher
    stop()


@pytest.fixture
def client(server):
    return openai.OpenAI(base_url=f"http://127.0.0.1:{server[0]}/v1", api_key="-", max_retries=0)


@pytest.fixture
def post(server):
    url = f"http://127.0.0.1:{server[0]}"
    return lambda path="/v1/audio/speech", **given: httpx.post(url + path, timeout=30, **given)


def idle(batcher, seconds=10.0):
    end = time.monotonic() + seconds
    while (batcher.active or batcher.waiting) and time.monotonic() < end:
        time.sleep(0.01)
    return not batcher.active and not batcher.waiting


def wish(**fields):
    return {"model": "omni", "voice": "ann", "input": TEXT, **fields}


def data_url(data: bytes) -> str:
    return "data:audio/wav;base64," + base64.b64encode(data).decode()


def wav(samples, rate):
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format="WAV", subtype="PCM_16")
    return file.getvalue()


def expected(speech, **fields):
    return np.concatenate([p.numpy() for p in speech.stream(TEXT, **fields)])


@pytest.mark.parametrize("kind", ["wav", "flac", "opus", "mp3"])
def test_the_openai_client_gets_a_file_of_every_format(client, speech, kind):
    answer = client.audio.speech.create(**wish(response_format=kind))
    wave, rate = soundfile.read(io.BytesIO(answer.read()))
    whole = len(expected(speech, voice="ann"))
    assert rate == 24000 and abs(len(wave) - whole) <= (0 if kind in ("wav", "flac") else 2500)


def test_a_stream_has_the_samples_of_the_library(client, speech):
    with client.audio.speech.with_streaming_response.create(**wish(response_format="pcm")) as answer:
        pieces = list(answer.iter_bytes())
    wave = np.frombuffer(b"".join(pieces), dtype="<i2") / 32767
    np.testing.assert_allclose(wave, expected(speech, voice="ann"), atol=1e-3)


def test_a_streamed_wav_that_breaks_off_is_readable(client, tmp_path):
    path = tmp_path / "broken.wav"
    with client.audio.speech.with_streaming_response.create(**wish(extra_body={"stream": True})) as answer:
        pieces = answer.iter_bytes()
        path.write_bytes(next(pieces) + next(pieces))
    wave, rate = soundfile.read(path)
    assert rate == 24000 and len(wave) > 0


def test_sixteen_clients_hear_what_each_would_hear_alone(client, speech):
    def ask(seed):
        return client.audio.speech.create(**wish(response_format="pcm", extra_body={"seed": seed})).read()

    with ThreadPoolExecutor(16) as many:
        found = list(many.map(ask, range(16)))
    for seed in (0, 7, 15):
        wave = np.frombuffer(found[seed], dtype="<i2") / 32767
        np.testing.assert_allclose(wave, expected(speech, voice="ann", seed=seed), atol=1e-3)
    assert len(set(found)) == 16


def test_a_voice_in_the_request_is_used_and_forgotten(client, speech, tmp_path):
    before = dict(speech.heard)
    data = wav(tone(2.0), 16000)
    (tmp_path / "ref.wav").write_bytes(data)
    own = {"ref_audio": data_url(data), "ref_text": "the light of the morning"}
    answer = client.audio.speech.create(**wish(response_format="pcm", extra_body=own)).read()
    assert speech.heard == before
    alone = expected(speech, voice=tmp_path / "ref.wav", voice_text=own["ref_text"])
    np.testing.assert_allclose(np.frombuffer(answer, dtype="<i2") / 32767, alone, atol=1e-3)


BOMB = wav(np.zeros(8 * 3600), 1)  # 8 hours, says its header


@pytest.mark.parametrize(
    "body, status, says",
    [
        (b"{", 400, "not JSON"),
        (b"\xff\xfe{}", 400, "not JSON"),
        (b"[" * 100_000, 400, "not JSON"),
        (b"[]", 400, "not a JSON object"),
        ({}, 400, "input"),
        (wish(input=5), 400, "input"),
        (wish(input=""), 400, "nothing to say"),
        (wish(input="?!"), 400, "nothing to say"),
        (wish(input="a" * 401), 400, "401 characters"),
        (wish(voice="alloy"), 400, "choose one of ann, bo"),
        (wish(voice="/etc/passwd"), 400, "no voice"),
        (wish(response_format="aac"), 400, "choose one of wav"),
        (wish(response_format="flac", stream=True), 400, "wav or pcm"),
        (wish(speed=2), 400, "speed"),
        (wish(seed=-1), 400, "seed"),
        (wish(temperature=-1), 400, "temperature"),
        (wish(language="fr"), 400, "unknown language"),
        (wish(ref_audio="http://127.0.0.1/a.wav", ref_text="a"), 400, "nothing is fetched"),
        (wish(ref_audio="/etc/passwd", ref_text="a"), 400, "nothing is fetched"),
        (wish(ref_audio="data:audio/wav;base64,%%%", ref_text="a"), 400, "not base64"),
        (wish(ref_audio=data_url(b"no sound"), ref_text="a b"), 400, "ref_audio"),
        (wish(ref_audio=data_url(BOMB), ref_text="a b"), 400, "ref_audio"),
        (wish(ref_audio=data_url(wav(tone(2.0), 16000))), 400, "ref_text"),
    ],
)
def test_a_bad_body_gets_its_status_and_one_line(post, body, status, says):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = post(content=data, headers={"content-type": "application/json"})
    message = answer.json()["error"]["message"]
    assert answer.status_code == status and says in message
    assert "\n" not in message and "/tmp" not in message


def test_a_header_that_promises_more_than_it_holds_is_refused(post):
    data = bytearray(wav(tone(2.0), 16000))
    data[40:44] = struct.pack("<I", 10 * len(data))
    answer = post(json=wish(ref_audio=data_url(bytes(data)), ref_text="the light of the morning"))
    assert answer.status_code == 400 and "ref_audio" in answer.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/v1/audio/speech", "/v1/chat/completions"])
def test_a_body_of_64_megabytes_is_refused(post, path):
    answer = post(path, json={"input": "x" * (64 << 20)})
    assert answer.status_code == 413 and "larger than 1 MB" in answer.json()["error"]["message"]


def test_other_kinds_of_request_are_refused(post, server):
    assert post(content=b"{}", headers={"content-type": "text/plain"}).status_code == 415
    assert post("/v1/nothing").status_code == 404
    assert httpx.get(f"http://127.0.0.1:{server[0]}/v1/audio/speech").status_code == 405


def test_what_needs_the_brain_says_so(client):
    with pytest.raises(openai.InternalServerError, match="need the brain") as error:
        client.chat.completions.create(model="omni", messages=[{"role": "user", "content": "Hello"}])
    assert error.value.status_code == 503
    with pytest.raises(openai.InternalServerError, match="need the brain"):
        client.audio.transcriptions.create(model="omni", file=("a.wav", wav(tone(1.0), 16000)))


def raw(port, body):
    peer = socket.create_connection(("127.0.0.1", port))
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    head = f"POST /v1/audio/speech HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    peer.sendall(head.encode() + b"\r\n\r\n" + body)
    return peer


@pytest.mark.parametrize("form", ["pcm", "wav"])
def test_clients_that_vanish_free_their_slots(server, client, form):
    port, batcher = server
    body = json.dumps(wish(response_format=form, input=TEXT * 5)).encode()
    for _ in range(6):
        peer = raw(port, body)
        if form == "pcm":
            peer.recv(100)
        peer.close()
    assert idle(batcher)
    assert client.audio.speech.create(**wish()).read()


def test_a_body_that_does_not_come_is_not_waited_for(server):
    peer = socket.create_connection(("127.0.0.1", server[0]))
    peer.sendall(
        b"POST /v1/audio/speech HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{"
    )
    peer.settimeout(10)
    assert b" 408 " in peer.recv(200)


def test_more_requests_than_may_wait_get_a_429(speech):
    port, stop = start(build_app(speech, Limits(slots=1, waiting=1)))

    def ask(_):
        return httpx.post(f"http://127.0.0.1:{port}/v1/audio/speech", json=wish(), timeout=60)

    try:
        with ThreadPoolExecutor(8) as many:
            found = list(many.map(ask, range(8)))
        codes = [answer.status_code for answer in found]
        assert set(codes) == {200, 429} and codes.count(200) >= 2
        assert all(a.headers["retry-after"] == "1" for a in found if a.status_code == 429)
        assert ask(0).status_code == 200
    finally:
        stop()


def test_a_token_is_asked_for_except_by_health(speech):
    port, stop = start(build_app(speech, token="s3cret"))
    url = f"http://127.0.0.1:{port}"
    try:
        assert httpx.post(url + "/v1/audio/speech", json=wish()).status_code == 401
        assert httpx.get(url + "/metrics").status_code == 401
        assert httpx.get(url + "/health").json()["status"] == "ok"
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=url + "/v1", api_key="guess").audio.speech.create(**wish())
        assert openai.OpenAI(base_url=url + "/v1", api_key="s3cret").audio.speech.create(**wish()).read()
    finally:
        stop()


def test_outside_this_machine_a_token_is_needed(capsys, monkeypatch):
    monkeypatch.delenv("OMNI_TOKEN", raising=False)
    assert main(["--host", "0.0.0.0"]) == 2
    assert "OMNI_TOKEN" in capsys.readouterr().err


def test_metrics_count_answers_and_seconds(post, server):
    post(json=wish())
    text = httpx.get(f"http://127.0.0.1:{server[0]}/metrics").text
    assert 'omni_answers_total{status="200"}' in text and "omni_audio_seconds_total" in text
    assert "omni_first_sound_seconds_bucket" in text and "omni_requests_active" in text
