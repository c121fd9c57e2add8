"""Codec: parity of the streaming vocoder, streaming = offline, blocks, reference audio checks."""

import warnings
from dataclasses import replace

import pytest
import torch

from omnilib.audio import TOKENIZER_RATE, VOICE_RATE, fbank_80, mel_80, resample, save_wave
from omnilib.bench.plain_codec import CrossFadeStream
from omnilib.data import load_segment
from omnilib.errors import AudioError, CheckpointError, ConfigError, UserError
from omnilib.train.common import export_model
from omnilib.train.encode import FlowMels
from omnilib.voice.codec import Codec, CodecSettings, Voice
from omnilib.voice.flow import EncoderConfig, EstimatorConfig, Flow, FlowConfig
from omnilib.voice.hift import HiFT, HiFTConfig
from omnilib.voice.speaker import SpeakerConfig, SpeakerEncoder
from omnilib.voice.tokenizer import SpeechTokenizer, SpeechTokenizerConfig
from tests.voice.test_hift import TINY, load_reference, voiced_model

SPEAKER = SpeakerConfig(width=16, dilations=[1])
TOKENIZER = SpeechTokenizerConfig(width=32, heads=1, layers=1, fsq_dims=4)
FLOW = FlowConfig(
    vocab=81,
    encoder=EncoderConfig(width=16, heads=2, linear_units=32, blocks=1, up_blocks=1),
    estimator=EstimatorConfig(channels=[16], heads=2, head_dim=8, blocks=1, mid_blocks=1),
)


def tiny_codec(**settings) -> Codec:
    """Four random networks; the flow's output layer is not zero, so that tokens matter."""
    torch.manual_seed(0)
    flow = Flow(FLOW)
    torch.nn.init.normal_(flow.decoder.estimator.final_proj.weight, std=0.5)
    codec_settings = CodecSettings(
        **{"steps": 2, "prompt_seconds": 2.0, "block": 50, "context": 25} | settings
    )
    return Codec(SpeechTokenizer(TOKENIZER), SpeakerEncoder(SPEAKER), flow, voiced_model(), codec_settings)


def speechlike(seconds: float, rate: int, seed: int = 0) -> torch.Tensor:
    """Noise with a slow loudness: (T,)."""
    noise = torch.randn(int(seconds * rate), generator=torch.Generator().manual_seed(seed))
    return 0.1 * noise * (1.2 + torch.sin(torch.arange(len(noise)) / rate * 12))


@pytest.fixture(scope="module")
def codec() -> Codec:
    return tiny_codec()


@pytest.fixture(scope="module")
def voice(codec) -> Voice:
    return codec.voice(speechlike(2.0, 16_000), 16_000)


def random_tokens(count: int) -> torch.Tensor:
    return torch.randint(FLOW.vocab, (count,), generator=torch.Generator().manual_seed(1))


# ------------------------------------------------------------------------------------------------------- parity


def test_hift_in_the_cross_faded_stream_of_the_reference_gives_its_pieces(golden):
    model, _, _ = load_reference(golden)
    info, tensors = golden("token2wav_stream")
    sizes = info["config"]
    stream = CrossFadeStream(model, frames=sizes["mel_cache_frames"])
    assert stream.samples == sizes["source_cache_samples"]
    ratio, ahead, cached = sizes["token_mel_ratio"], sizes["pre_lookahead"], 0
    for i, (offset, upto, final) in enumerate(tensors["in.schedule"].tolist()):
        mel = tensors["in.mel"][..., offset * ratio : (upto if final else upto - ahead) * ratio]
        noise = torch.zeros(1, (cached + mel.shape[-1]) * model.config.hop, model.config.nb_harmonics + 1)
        piece = stream.push(mel, bool(final), noise)
        cached = stream.frames
        if tensors.has(f"out.piece.{i}"):
            want, near = tensors[f"out.piece.{i}"], info["tolerance"]["abs"]
            torch.testing.assert_close(piece, want, atol=near, rtol=0, check_dtype=False)


# -------------------------------------------------------------------------------------------------- equivalence


@pytest.mark.parametrize("sizes", [[140], [1] * 140, [4, 4, 4, 28, 100], [139, 1]])
@pytest.mark.parametrize("hop", [1, 60])
def test_streamed_wave_equals_the_offline_wave_of_the_same_masks(codec, voice, sizes, hop):
    tokens = random_tokens(140)  # three blocks
    pieces = list(codec.stream(tokens.split(sizes), voice, hop=hop))
    whole = codec.decode(tokens, voice, streaming=True)
    assert whole.shape == (140 * 960,)
    torch.testing.assert_close(torch.cat(pieces), whole, atol=1e-3, rtol=0)


def test_a_stream_of_one_block_gives_the_mel_of_the_flow_in_one_pass(codec, voice):
    tokens, long = random_tokens(60), tiny_codec(block=100)
    mels = long.warm(voice, first_hop=10)
    got = torch.cat([mels.push(tokens[:20]), mels.push(tokens[20:], last=True)], dim=-1)
    v = mels.voice
    want = long.flow.inference(tokens[None], v.tokens[None], v.mel[None], v.speaker[None], True, True, 2)
    torch.testing.assert_close(got, want, atol=1e-4, rtol=0)


def test_the_first_piece_comes_after_the_first_hop(codec, voice):
    heard = []

    def speaking():
        for token in random_tokens(60):
            heard.append(int(token))
            yield [int(token)]

    first = next(codec.stream(speaking(), voice, first_hop=20))
    assert len(first) == (20 * 2 - codec.hift.config.reach) * 480
    assert len(heard) == 20 + FLOW.encoder.look_ahead


def test_a_warm_voice_gives_the_same_stream_twice(codec, voice):
    warm, tokens = codec.warm(voice, first_hop=5), random_tokens(90).split(30)
    one, two, cold = (torch.cat(list(codec.stream(tokens, v, first_hop=5))) for v in (warm, warm, voice))
    assert torch.equal(one, two)
    torch.testing.assert_close(one, cold, atol=1e-4, rtol=0)


@pytest.mark.parametrize("count", [1, 3, 24, 25, 50, 51, 53, 101, 137])
def test_every_token_becomes_960_samples(codec, voice, count):
    tokens = random_tokens(count)
    assert codec.decode(tokens, voice).shape == (960 * count,)
    assert sum(map(len, codec.stream([tokens], voice))) == 960 * count


def test_one_block_is_plain_flow_and_vocoder(codec, voice):
    tokens, settings = random_tokens(40), codec.settings
    v = voice.trimmed(round(settings.prompt_seconds * 25))
    mel = codec.flow.inference(
        tokens[None], v.tokens[None], v.mel[None], v.speaker[None], False, True, settings.steps
    )
    wave = codec.hift.stream().push(mel, last=True)[0]
    torch.testing.assert_close(codec.decode(tokens, voice), wave, atol=1e-5, rtol=0)


def test_a_later_block_hears_the_end_of_the_one_before(codec, voice):
    tokens = random_tokens(100)
    changed = tokens.clone()
    changed[45] = (changed[45] + 1) % FLOW.vocab
    one, two = codec.decode(tokens, voice), codec.decode(changed, voice)
    assert (one - two)[60 * 960 :].abs().max() > 1e-4


def test_a_stream_of_nothing_is_silent_and_decoding_nothing_is_an_error(codec, voice):
    assert list(codec.stream([], voice)) == []
    with pytest.raises(AudioError, match="no speech tokens"):
        codec.decode(random_tokens(0), voice)


# ---------------------------------------------------------------------------------------------- reference audio


@pytest.mark.parametrize(
    ("rate", "seconds"), [(8_000, 1.0), (16_000, 0.97), (24_000, 2.0), (44_100, 1.0), (48_000, 0.5)]
)
def test_tokens_and_mel_of_a_voice_cover_the_same_time(codec, rate, seconds):
    voice = codec.voice(speechlike(seconds, rate), rate)
    assert voice.mel.shape == (2 * len(voice.tokens), 80)
    assert abs(len(voice.tokens) - 25 * seconds) <= 1
    assert voice.speaker.shape == (192,)


def test_a_stereo_file_at_48_khz_is_a_voice(codec, tmp_path):
    import soundfile

    mono = speechlike(1.0, 48_000)
    soundfile.write(tmp_path / "stereo.wav", torch.stack([mono, mono], 1).numpy(), 48_000)
    save_wave(tmp_path / "mono.wav", mono, 48_000)
    stereo, one = codec.voice_of(tmp_path / "stereo.wav"), codec.voice_of(tmp_path / "mono.wav")
    torch.testing.assert_close(stereo.mel, one.mel, atol=0.05, rtol=0)


def test_ten_minutes_of_reference_are_trimmed_with_a_warning(codec):
    with pytest.warns(UserWarning, match="lasts 600 s: only the first 30 s"):
        voice = codec.voice(speechlike(600.0, 8_000), 8_000)
    assert len(voice.tokens) == 750


def test_thirty_seconds_raise_no_warning(codec):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        codec.voice(speechlike(30.0, 8_000), 8_000)


@pytest.mark.parametrize(
    ("wave", "message"),
    [
        (speechlike(0.2, 16_000), "lasts 0.20 s: record at least 0.5 s"),
        (torch.zeros(0), "lasts 0.00 s"),
        (torch.zeros(32_000), "is silent"),
        (torch.full((16_000,), float("nan")), "NaN"),
        (torch.zeros(2, 2, 16_000), "shape"),
    ],
)
def test_an_unusable_reference_is_refused_with_the_reason(codec, wave, message):
    with pytest.raises(AudioError, match=message):
        codec.voice(wave, 16_000)


def test_long_audio_is_tokenised_in_blocks_of_thirty_seconds(codec):
    wave = speechlike(61.0, 16_000)
    parts = [codec.tokenize(part) for part in wave.split(30 * 16_000)]
    assert torch.equal(codec.tokenize(wave), torch.cat(parts))
    assert len(codec.tokenize(wave[: 30 * 16_000 + 100])) == len(parts[0])


# -------------------------------------------------------------------------------------------------- checkpoints


def test_a_codec_comes_back_from_its_folders(codec, tmp_path):
    save_codec(codec, tmp_path)
    loaded = Codec.load(tmp_path, codec.settings)
    wave = speechlike(1.5, VOICE_RATE)
    tokens = random_tokens(30)
    one, two = (c.decode(tokens, c.voice(wave, VOICE_RATE)) for c in (codec, loaded))
    torch.testing.assert_close(one, two, atol=1e-4, rtol=0)


def test_a_missing_part_is_named(codec, tmp_path):
    save_codec(codec, tmp_path)
    (tmp_path / "flow" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="flow"):
        Codec.load(tmp_path)


def save_codec(codec: Codec, folder) -> None:
    parts = {"tokenizer": (codec.tokenizer, TOKENIZER), "speaker": (codec.speaker, SPEAKER)}
    parts |= {"flow": (codec.flow, FLOW), "hift": (codec.hift, TINY)}
    for name, (module, config) in parts.items():
        export_model(folder / name, module, config, {})


def test_the_hift_of_a_loaded_codec_is_folded(codec, tmp_path):
    save_codec(codec, tmp_path)
    keys = Codec.load(tmp_path).hift.state_dict().keys()
    assert "conv_pre.weight" in keys
    assert "conv_pre.parametrizations.weight.original0" in HiFT(TINY).state_dict()


def test_a_vocoder_of_another_mel_window_is_refused(codec):
    other = HiFT(replace(TINY, mel_window=1024))
    with pytest.raises(CheckpointError, match="1920 samples.* reads 1024"):
        Codec(codec.tokenizer, codec.speaker, codec.flow, other)


def test_a_voice_is_seen_through_the_window_of_the_flow():
    wave = speechlike(2.0, TOKENIZER_RATE)
    torch.manual_seed(0)
    flow, hift = Flow(replace(FLOW, mel_window=1024)), HiFT(replace(TINY, mel_window=1024))
    narrow = Codec(SpeechTokenizer(TOKENIZER), SpeakerEncoder(SPEAKER), flow, hift)
    voice = narrow.voice(wave, TOKENIZER_RATE)
    torch.testing.assert_close(
        voice.mel, mel_80(resample(wave, TOKENIZER_RATE, VOICE_RATE), window=1024).T[: len(voice.mel)]
    )


def test_settings_of_a_folder_are_read_from_codec_yaml(codec, tmp_path):
    save_codec(codec, tmp_path)
    (tmp_path / "codec.yaml").write_text("steps: 3\n")
    assert Codec.load(tmp_path).settings.steps == 3
    assert Codec.load(tmp_path, CodecSettings(steps=5)).settings.steps == 5
    (tmp_path / "codec.yaml").write_text("stepz: 3\n")
    with pytest.raises(ConfigError, match="stepz"):
        Codec.load(tmp_path)


def test_mels_for_the_vocoder_are_what_the_codec_says_in_step_with_each_recording(codec, tmp_path):
    seconds = [1.0, 1.6, 2.2]
    waves = [speechlike(n, VOICE_RATE, seed) for seed, n in enumerate(seconds)]
    save_wave(tmp_path / "shard.wav", torch.cat(waves), VOICE_RATE)
    starts = [0.0, 1.0, 2.6]
    records = [
        {"id": str(i), "path": "shard.wav", "start": s, "duration": n, "rate": VOICE_RATE, "speaker": "a"}
        for i, (s, n) in enumerate(zip(starts, seconds, strict=True))
    ]
    made = FlowMels(codec.tokenizer, codec.speaker, codec.flow, codec.settings).encode(records, tmp_path)
    assert {i: tuple(m.shape) for i, m in made.items()} == {
        str(i): (80, round(50 * n)) for i, n in enumerate(seconds)
    }
    assert all(m.dtype == torch.half and m.is_contiguous() for m in made.values())
    prompt, spoken = load_segment(records[0], tmp_path), load_segment(records[1], tmp_path)
    codes = codec.tokenize(resample(spoken, VOICE_RATE, TOKENIZER_RATE))
    shown = codec.tokenize(resample(prompt, VOICE_RATE, TOKENIZER_RATE))
    alone = codec.flow.inference(
        codes[None],
        shown[None],
        mel_80(prompt).T[None],
        codec.speaker(fbank_80(resample(spoken, VOICE_RATE, 16_000))[None]),
        n_timesteps=2,
    )[0]
    error = (made["1"].float() - alone).abs().mean() / alone.std()
    assert error < 0.05, "bfloat16 may differ a little, another prompt or a shift would a lot"


def test_by_default_the_first_hop_is_heard_whatever_the_reach_of_the_vocoder(codec, voice):
    heard = []

    def speaking():
        for token in random_tokens(60):
            heard.append(int(token))
            yield [int(token)]

    first = next(codec.stream(speaking(), voice))
    assert 4 * 480 <= len(first) <= 5 * 480
    assert len(heard) == -(-(codec.hift.config.reach + 4) // 2) + FLOW.encoder.look_ahead


def test_at_published_size_sound_starts_after_at_most_16_tokens():
    sizes, ahead = HiFTConfig(), EncoderConfig().look_ahead
    codec = Codec.__new__(Codec)
    codec.settings = CodecSettings()
    with torch.device("meta"):
        codec.flow, codec.hift = Flow(FlowConfig()), HiFT(sizes)
    assert codec.first_hop * 2 > sizes.reach and codec.first_hop + ahead <= 16


def test_bfloat16_gives_nearly_the_same_wave_offline_and_streamed(codec, voice):
    half, tokens = tiny_codec(precision="bf16"), random_tokens(60)
    assert half.flow.decoder.estimator.final_proj.weight.dtype == torch.bfloat16
    v = voice.trimmed(50)
    given = (tokens[None], v.tokens[None], v.mel[None], v.speaker[None], False, True, 2)
    one, two = codec.flow.inference(*given), half.flow.inference(*given)
    assert 0 < (one - two).abs().mean() < 0.02 * one.std()
    streamed = torch.cat(list(half.stream(tokens.split(7), voice)))
    assert streamed.shape == (60 * 960,) and streamed.isfinite().all()


def test_a_precision_the_codec_has_not_got_is_refused():
    with pytest.raises(UserError, match="no precision 'int8': choose one of auto, fp32, bf16"):
        tiny_codec(precision="int8")
