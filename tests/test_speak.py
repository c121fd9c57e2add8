"""`Speaker`: the whole chain on tiny random weights, and every mistake a caller can make."""

import shutil

import numpy as np
import pytest
import soundfile
import torch

from omnilib.errors import AudioError, CheckpointError, UserError
from omnilib.speak import Speaker
from tests.tiny import tone, write_checkpoints

TEXT = "The light of the morning was on the water. The morning was the light."


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_checkpoints(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def speaker(folder):
    return Speaker.load(folder)


@pytest.fixture
def recording(tmp_path):
    soundfile.write(tmp_path / "ref.wav", tone(2.0), 16000)
    return tmp_path / "ref.wav"


def test_text_becomes_a_wave_of_960_samples_a_token(speaker):
    result = speaker.speak(TEXT, seed=1)
    assert len(result.tokens) > 0
    assert result.wave.shape == (960 * len(result.tokens),)
    assert torch.isfinite(result.wave).all()
    assert set(result.timings) == {"voice", "mouth", "flow", "hift"} and result.rtf > 0


def test_same_seed_same_wave_and_another_seed_another(speaker):
    first, again, other = (speaker.speak(TEXT, seed=s, temperature=1.0) for s in (3, 3, 4))
    assert torch.equal(first.wave, again.wave)
    assert first.tokens.tolist() != other.tokens.tolist()


def test_speak_is_what_the_codec_decodes(speaker):
    result = speaker.speak(TEXT, seed=1)
    reference = speaker.reference(None, None, "en")
    assert torch.allclose(result.wave, speaker.codec.decode(result.tokens, reference.voice), atol=1e-6)


def test_streamed_speech_has_the_same_tokens_and_length(speaker):
    whole = speaker.speak(TEXT, seed=2)
    pieces = list(speaker.stream(TEXT, seed=2))
    streamed = torch.cat(pieces)
    assert len(pieces) > 1
    assert len(streamed) == len(whole.wave)
    expected = speaker.codec.decode(whole.tokens, speaker.reference(None, None, "en").voice, streaming=True)
    assert torch.allclose(streamed, expected, atol=1e-4)


def test_default_voice_speaks_the_language_of_the_text(speaker):
    english, chinese = speaker.reference(None, None, "en"), speaker.reference(None, None, "zh")
    assert english.text == "the light of the morning" and chinese.text == "早上好"
    assert speaker.reference("bo", None, "en").text == "早上好"


@pytest.mark.parametrize("text", ["", "   \n\t ", "😀🎉", "... !?", "#*"])
def test_text_without_words_is_refused(speaker, text):
    with pytest.raises(UserError, match="nothing to s"):
        speaker.speak(text)


def test_endless_text_is_refused_before_any_work(speaker):
    with pytest.raises(UserError, match="would take about .* hours to speak: split it"):
        speaker.speak("a word " * 14285 + "a wor")


def test_unknown_language_is_refused(speaker):
    with pytest.raises(UserError, match="unknown language 'fr': choose one of en, zh"):
        speaker.speak("bonjour", language="fr")


@pytest.mark.parametrize(("rate", "channels"), [(8000, 1), (16000, 2), (48000, 1), (44100, 2)])
def test_recordings_of_any_rate_and_channels_are_used(speaker, tmp_path, rate, channels):
    wave = tone(1.5, rate)
    soundfile.write(tmp_path / "r.wav", np.stack([wave] * channels, axis=1), rate)
    result = speaker.speak("the water", voice=tmp_path / "r.wav", voice_text="the light")
    assert len(result.wave) > 0


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda p: None, "no recording"),
        (lambda p: p.write_bytes(b""), "not readable as audio|holds no sound"),
        (lambda p: p.write_text("this is a letter"), "not readable as audio"),
        (lambda p: soundfile.write(p, np.zeros(0, np.float32), 16000), "holds no sound"),
        (lambda p: soundfile.write(p, np.full(32000, np.nan, np.float32), 16000, subtype="FLOAT"), "NaN"),
        (lambda p: soundfile.write(p, tone(0.2), 16000), "lasts 0.20 s"),
        (lambda p: soundfile.write(p, np.zeros(32000, np.float32), 16000), "silent"),
        (lambda p: soundfile.write(p, tone(600, 8000), 8000), "lasts 600 s: cut out"),
    ],
    ids=["missing", "empty file", "text", "no samples", "nan", "0.2 s", "silence", "10 minutes"],
)
def test_unusable_recording_is_one_clear_line(speaker, tmp_path, make, told):
    path = tmp_path / "ref.wav"
    make(path)
    with pytest.raises(AudioError, match=told) as error:
        speaker.speak("the water", voice=path, voice_text="the light")
    assert "\n" not in str(error.value)


def test_recording_needs_its_transcript(speaker, recording):
    with pytest.raises(UserError, match="--voice-text"):
        speaker.speak("the water", voice=recording)


def test_transcript_longer_than_the_recording_is_refused(speaker, recording):
    with pytest.raises(UserError, match="transcript is too long"):
        speaker.speak("the water", voice=recording, voice_text="the light of the morning was on the water " * 12)


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


@pytest.mark.parametrize("module", ["tokenizer", "speaker", "flow", "hift", "speechlm"])
def test_truncated_weights_are_one_clear_line(copy, module):
    path = copy / module / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="restore"):
        Speaker.load(copy)


@pytest.mark.parametrize("module", ["tokenizer", "speaker", "flow", "hift", "speechlm"])
def test_missing_module_is_one_clear_line(copy, module):
    shutil.rmtree(copy / module)
    with pytest.raises(UserError) as error:
        Speaker.load(copy)
    assert module in str(error.value) and "\n" not in str(error.value)


def test_weights_that_lack_a_tensor_are_refused(copy):
    from safetensors.torch import load_file, save_file

    path = copy / "speechlm" / "model.safetensors"
    weights = load_file(path)
    weights.pop(next(k for k in weights if "tts_adapter" in k))
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="tts_adapter"):
        Speaker.load(copy)


def test_unknown_scale_lists_what_there_is():
    with pytest.raises(CheckpointError, match="no checkpoints 'gigantic'"):
        Speaker.load("gigantic")


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"a": {"file": "../../secret.wav", "text": "t", "language": "en"}}',
        '{"a": {"file": "gone.wav", "text": "t", "language": "en"}}',
    ],
)
def test_damaged_voice_list_is_refused(copy, content):
    (copy / "voices" / "voices.json").write_text(content)
    with pytest.raises(CheckpointError, match="git checkout"):
        Speaker.load(copy)


def test_settings_beside_the_checkpoints_are_used_and_checked(copy):
    (copy / "decode.yaml").write_text("temperature: 0.7\nchunk_max_tokens: 60\n")
    assert Speaker.load(copy).settings.temperature == 0.7
    (copy / "decode.yaml").write_text("temprature: 0.7\n")
    with pytest.raises(UserError, match="temprature"):
        Speaker.load(copy)
