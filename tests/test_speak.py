"""`TextToSpeech`: the whole chain on tiny random weights, and every mistake a caller can make."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch

from omnilib import speak as speaking
from omnilib import spoken
from omnilib.errors import AudioError, CheckpointError, ConfigError, UserError
from omnilib.mouth import decode
from omnilib.mouth.speechlm import SpeechLMConfig
from omnilib.speak import TextToSpeech
from tests.tiny import tone, write_checkpoints

TEXT = "The light of the morning was on the water. The morning was the light."


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_checkpoints(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def speaker(folder):
    """A random model runs up to the guard on length, so that one is close here."""
    speaker = TextToSpeech.load(folder)
    speaker.settings = replace(speaker.settings, rows_per_token=2.0)
    return speaker


@pytest.fixture
def with_settings(speaker):
    """`with_settings(**fields)`: the speaker, for one test with other settings."""
    kept = speaker.settings
    yield lambda **fields: setattr(speaker, "settings", replace(kept, **fields)) or speaker
    speaker.settings = kept


@pytest.fixture(scope="module")
def nano():
    """The committed model: what it cannot read is a fact about its training."""
    return TextToSpeech.load("nano")


@pytest.fixture
def recording(tmp_path):
    soundfile.write(tmp_path / "ref.wav", tone(2.0), 16000)
    return tmp_path / "ref.wav"


def test_the_progress_bar_lives_through_speech_longer_than_expected(speaker, capsys):
    with speaker.job(TEXT, None, None, None, 0, None).bar(show=True) as bar:
        bar.delay = 0
        for seconds in (bar.total, 10.0, 10.0):
            bar.update(seconds)
            bar.refresh()
    assert "s of speech" in capsys.readouterr().err


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


def test_streamed_speech_has_the_same_tokens_and_length(with_settings):
    speaker = with_settings(speak_retries=0)
    whole = speaker.speak(TEXT, seed=2)
    pieces = list(speaker.stream(TEXT, seed=2))
    streamed = torch.cat(pieces)
    assert len(pieces) > 1
    assert len(streamed) == len(whole.wave)
    expected = speaker.codec.decode(whole.tokens, speaker.reference(None, None, "en").voice, streaming=True)
    assert torch.allclose(streamed, expected, atol=1e-4)


@pytest.mark.parametrize("way", ["speak", "stream"])
def test_a_text_is_normalised_once_and_a_transcript_once_a_voice(with_settings, monkeypatch, way):
    """Counted inside the normaliser, so that a call from anywhere is seen; several passes and trials are made."""
    speaker, seen = with_settings(max_rows=60, speak_retries=1), []
    original = spoken.strip_markdown
    monkeypatch.setattr(spoken, "strip_markdown", lambda text: seen.append(text) or original(text))
    for text in (LONG, "It is 5 pm, isn't it?"):
        seen.clear()
        speaker.heard.clear()
        spoke = getattr(speaker, way)(text, seed=1)
        list(spoke) if way == "stream" else None
        assert len(spoke.chunks) > (2 if text is LONG else 0)
        assert sorted(seen) == sorted([text.strip(), "the light of the morning"])
        getattr(speaker, way)(text, seed=2)
        assert seen.count(text.strip()) == 2 and len(seen) == 3, "the voice was known"


def test_layout_and_piece_table_are_built_once_a_model(folder, monkeypatch):
    built, original = [], SpeechLMConfig.layout
    monkeypatch.setattr(
        SpeechLMConfig, "layout", lambda self, **ids: built.append(1) or original(self, **ids)
    )
    speaker = TextToSpeech.load(folder)
    speaker.settings = replace(speaker.settings, rows_per_token=2.0)
    for text in (TEXT, "the water."):
        speaker.speak(text)
        list(speaker.stream(text))
    assert built == [1]
    job = speaker.job(TEXT, None, None, None, 0, None)
    machines = [speaker.front.machine(job.request.ids, job.rules) for _ in range(2)]
    assert all(m.piece is speaker.front.piece and m.layout is speaker.front.layout for m in machines)


def test_the_prompt_of_a_voice_is_built_once_and_is_that_of_the_decoder(speaker, monkeypatch):
    reference, request, settings = speaker.prepare(TEXT, None, None, None, 1, None)
    assert speaker.prepare("the water.", None, None, None, 2, None)[0].prompt is reference.prompt
    tokens = [t for row in decode.stream(speaker.model, speaker.tokenizer, request, settings) for t in row]
    job = speaker.job(TEXT, None, None, None, 1, None)
    assert tokens == [t for row in speaker.decode(job, job.request.ids) for t in row]


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


LONG = "The light of the morning was on the water. The fox jumps over a lazy dog, I say. " * 3
UNMARKED = "the quick brown fox jumps over the lazy dog " * 8


@pytest.mark.parametrize("text", [LONG, UNMARKED], ids=["sentences", "no marks"])
@pytest.mark.parametrize("rows", [40, 90])
def test_a_text_beyond_the_row_limit_is_spoken_to_its_last_word(with_settings, text, rows):
    speaker = with_settings(max_rows=rows, speak_retries=0)
    result = speaker.speak(text, seed=1)
    said = " ".join(chunk.text for chunk in result.chunks).replace(" .", ".").split()
    assert (
        said == text.lower().split() + ([] if text is LONG else ["."])
        or said[:-1] == text.lower().split()[:-1]
    )
    assert sum(chunk.rows for chunk in result.chunks) > rows, "one pass was enough: the test shows nothing"
    assert not any(chunk.error == "truncated" for chunk in result.chunks)
    assert sum(chunk.tokens for chunk in result.chunks) == len(result.tokens) == len(result.wave) / 960


@pytest.mark.parametrize("rows", [60, 8192])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_streaming_reports_the_same_chunks_and_messages_as_a_whole_file(with_settings, rows, temperature):
    speaker = with_settings(max_rows=rows, speak_retries=0)
    request = dict(text=LONG + " ♥ Привет!", voice="bo", seed=3, temperature=temperature)
    whole, stream = speaker.speak(**request), speaker.stream(**request)
    wave = torch.cat(list(stream))

    def facts(chunks):
        return [
            (c.text, c.rows, c.tokens, c.text_tokens, c.error in ("long", "blank", "truncated"))
            for c in chunks
        ]

    assert facts(stream.chunks) == facts(whole.chunks)
    assert len(wave) == len(whole.wave) and stream.complete == whole.complete is False
    about_text = [m for m in whole.messages if "part" not in m and "silen" not in m]
    assert len(about_text) >= 3 and set(about_text) <= set(stream.messages)


def test_passes_share_one_voice_and_each_sounds_as_if_spoken_alone(with_settings):
    speaker = with_settings(max_rows=60, speak_retries=0)
    result = speaker.speak(LONG, seed=1)
    job = speaker.job(LONG, None, None, None, 1, None)
    ids, waves = job.request.ids, []
    while ids:
        tokens, steps = [], speaker.decode(job, ids)
        try:
            while True:
                tokens += next(steps)
        except StopIteration as stop:
            _, ids = stop.value
        waves.append(speaker.codec.decode(torch.tensor(tokens), job.reference.voice))
    assert len(waves) > 2 and torch.allclose(result.wave, torch.cat(waves), atol=1e-6)


def test_a_row_limit_that_holds_no_word_is_one_line(with_settings):
    with pytest.raises(ConfigError, match="leaves no room to speak a word"):
        with_settings(max_rows=6).speak(TEXT)


def test_a_text_cut_by_the_row_limit_is_told_and_not_complete(with_settings, monkeypatch):
    """Chunks always fit by the guard on their length; here the guard is wider than the room that is kept for them."""
    speaker = with_settings(max_rows=40, rows_per_token=500.0, temperature=0.0, speak_retries=0)
    monkeypatch.setattr(speaking, "fit", lambda settings, *_: replace(settings, passes=True))
    result = speaker.speak(LONG)
    assert not result.complete and any(
        m.startswith("the row limit was reached") and "not spoken" in m for m in result.messages
    )
    assert "guard" not in " ".join(result.messages)


def test_a_flagged_text_is_decoded_again_and_the_best_trial_is_kept(with_settings, monkeypatch):
    speaker = with_settings(temperature=0.0, retry_step=0.5, rows_per_token=8.0)
    trials, flags = [], iter([["end"], [None], [None]])
    original = TextToSpeech.decode
    monkeypatch.setattr(
        TextToSpeech,
        "decode",
        lambda self, job, ids, trial=0: trials.append(trial) or original(self, job, ids, trial),
    )

    def flag(chunks, levels):
        for chunk, error in zip(chunks, next(flags), strict=False):
            chunk.error = error

    monkeypatch.setattr(speaking, "flag_loud_ends", flag)
    result = speaker.speak("the light.")
    assert trials == [0, 1] and result.complete and result.messages == [] and result.flagged == []


def test_loud_ends_are_flagged_where_a_sentence_ends_and_nowhere_else():
    t = torch.arange(24_000) / 24_000
    loud, quiet = (
        0.3 * torch.sin(1400 * t),
        torch.cat([0.3 * torch.sin(1400 * t[:19_200]), torch.zeros(4800)]),
    )
    swell = torch.linspace(0, 1, 24_000)
    levels = speaking.Levels()
    for wave in (loud * swell, quiet, loud * swell, loud * swell):
        levels.push(wave)
    texts = ["it is cut.", "it is whole.", "in the middle of", "it was stopped."]
    chunks = [
        speaking.Chunk(text=text, tokens=25, error="long" if "stopped" in text else None) for text in texts
    ]
    speaking.flag_loud_ends(chunks, levels)
    assert [chunk.error for chunk in chunks] == ["end", None, None, "long"]


@pytest.mark.parametrize(
    "change",
    [dict(seed=10**20), dict(seed=-(10**20)), dict(temperature=float("nan")), dict(temperature=float("inf"))],
)
@pytest.mark.parametrize("way", ["speak", "stream"])
def test_values_nobody_can_decode_with_are_refused_at_once(speaker, way, change):
    with pytest.raises(ConfigError):
        getattr(speaker, way)(TEXT, **change)


@pytest.mark.parametrize("way", ["speak", "stream"])
@pytest.mark.parametrize(
    "text",
    [
        "مرحبا بالعالم",
        "Привет мир",
        "こんにちは",
        "안녕하세요",
        "Γειά σου",
        "שלום עולם",
        "สวัสดีชาวโลก",
        "नमस्ते दुनिया",
        "東京に行きます",
    ],
)
def test_a_text_in_a_script_never_seen_is_refused(nano, way, text):
    with pytest.raises(
        UserError, match="this model cannot read this text: .* speaks English and Chinese"
    ) as error:
        getattr(nano, way)(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text", ["Zürich, café and naïve.", "Is it you?", "Stop!", "你好吗？", "a well-known name; here: it is"]
)
def test_what_the_model_can_read_or_has_an_equal_for_needs_no_message(nano, text):
    job = nano.job(text, None, None, None, 0, None)
    assert job.messages == [] and job.whole
    assert set(job.request.ids).isdisjoint(nano.reader.bytes), "an id that was never trained is babble"


def test_a_few_foreign_letters_are_left_out_and_named(nano):
    job = nano.job("The word Привет means hello.", None, None, None, 0, None)
    assert (
        job.messages == ["not spoken, because this model has never seen them: the Cyrillic letters Привет"]
        and not job.whole
    )
    assert job.request.text == "The word means hello."


@pytest.mark.parametrize(
    ("text", "language"), [("今天天气很好，我们去公园。", "en"), ("the light of the morning", "zh")]
)
def test_a_voice_of_the_other_language_is_a_warning(nano, text, language):
    voice = next(name for name, entry in nano.voices.items() if entry["language"] == language)
    [told] = nano.job(text, voice, None, None, 0, None).messages
    assert voice in told and "--voice " in told


def test_the_language_of_a_recording_is_that_of_its_transcript(speaker, recording):
    assert speaker.job(TEXT, recording, "the light", None, 0, None).messages == []
    assert "speaks Chinese" in speaker.job(TEXT, recording, "早上好", None, 0, None).messages[0]


def test_a_model_whose_voices_speak_both_languages_gives_no_such_warning(speaker, monkeypatch):
    assert speaker.job("早上好，天气", "ann", None, None, 0, None).messages
    monkeypatch.setattr(speaker, "bilingual", True)
    assert speaker.job("早上好，天气", "ann", None, None, 0, None).messages == []


def test_a_transcript_in_a_script_never_seen_is_refused(speaker, recording):
    with pytest.raises(UserError, match="cannot read the transcript of the voice"):
        speaker.speak(TEXT, voice=recording, voice_text="Привет мир")


def test_thousands_of_words_without_a_mark_are_accepted_and_foretold(nano):
    job = nano.job("and the word was with the light of the morning " * 400, None, None, None, 0, None)
    assert job.messages == [] and len(job.request.ids) >= 4000
    assert 900 < job.seconds < 1800, "4,000 words take about half an hour"
    assert job.settings.max_rows == 1200, "passes of the length that the model was trained on"


def test_the_default_voice_is_that_of_most_of_the_text(nano):
    assert nano.job("The word 好 means good.", None, None, None, 0, None).reference.language == "en"
    assert nano.job("我喜欢 Python 和书。", None, None, None, 0, None).reference.language == "zh"


def test_a_word_without_end_is_refused_before_it_is_spoken(nano):
    with pytest.raises(UserError, match="5,000 characters without a space and takes about .* minutes"):
        nano.job("a" * 5000, None, None, None, 0, None)


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
        speaker.speak(
            "the water", voice=recording, voice_text="the light of the morning was on the water " * 12
        )


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


@pytest.mark.parametrize("module", ["tokenizer", "speaker", "flow", "hift", "speechlm"])
def test_truncated_weights_are_one_clear_line(copy, module):
    path = copy / module / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="restore"):
        TextToSpeech.load(copy)


@pytest.mark.parametrize("module", ["tokenizer", "speaker", "flow", "hift", "speechlm"])
def test_missing_module_is_one_clear_line(copy, module):
    shutil.rmtree(copy / module)
    with pytest.raises(UserError) as error:
        TextToSpeech.load(copy)
    assert module in str(error.value) and "\n" not in str(error.value)


def test_weights_that_lack_a_tensor_are_refused(copy):
    from safetensors.torch import load_file, save_file

    path = copy / "speechlm" / "model.safetensors"
    weights = load_file(path)
    weights.pop(next(k for k in weights if "tts_adapter" in k))
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="tts_adapter"):
        TextToSpeech.load(copy)


def test_unknown_scale_lists_what_there_is():
    with pytest.raises(CheckpointError, match="no checkpoints 'gigantic'"):
        TextToSpeech.load("gigantic")


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
        TextToSpeech.load(copy)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_every_precision_speaks(folder, precision):
    try:
        speaker = TextToSpeech.load(folder, precision=precision)
    except UserError as error:  # of a processor that does not multiply bfloat16
        assert precision == "bf16" and "--precision fp32" in str(error)
        return
    assert speaker.codec.flow.decoder.half == (precision == "bf16")
    speaker.settings = replace(speaker.settings, rows_per_token=2.0)
    result = speaker.speak(TEXT, seed=1)
    assert len(result.tokens) > 0 and torch.isfinite(result.wave).all()


def test_an_unknown_precision_is_one_line_before_anything_is_read(copy):
    shutil.rmtree(copy / "flow")
    with pytest.raises(UserError, match="no precision 'fp8': choose one of auto, fp32, bf16, int8"):
        TextToSpeech.load(copy, precision="fp8")


def test_settings_beside_the_checkpoints_are_used_and_checked(copy):
    (copy / "decode.yaml").write_text("temperature: 0.7\nchunk_max_tokens: 60\n")
    assert TextToSpeech.load(copy).settings.temperature == 0.7
    (copy / "decode.yaml").write_text("temprature: 0.7\n")
    with pytest.raises(UserError, match="temprature"):
        TextToSpeech.load(copy)
