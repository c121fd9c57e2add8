"""Steps on sound: decoding what can be read, levels, speech regions, segments, opinion scores."""

import av
import numpy as np
import pytest
import soundfile
import soxr
from frozen_audio import RATE, Shelf, reasons, run, spoken, wave_of

from data_prep.steps.decode import Decode, pieces
from data_prep.steps.levels import Loudness, crest, lowest_snr, snr
from data_prep.steps.quality import RATE as MOS_RATE
from data_prep.steps.quality import WINDOW, Quality, windows_of
from data_prep.steps.segment import Segment
from data_prep.steps.vad import Vad


@pytest.fixture
def shelf(tmp_path):
    return Shelf(tmp_path)


@pytest.fixture(scope="module")
def voice():
    """The English reference with the lowest peaks: it can be made louder without clipping."""
    waves = map(wave_of, spoken(role="reference", language="en"))
    return min(waves, key=lambda wave: np.abs(wave).max() / np.sqrt(np.mean(wave**2)))


def noisy(wave: np.ndarray, decibel: float) -> np.ndarray:
    noise = np.random.default_rng(0).standard_normal(len(wave)).astype(np.float32)
    return wave + noise * np.sqrt(np.mean(wave**2)) * np.float32(10 ** (-decibel / 20))


def write_m4a(path, wave):
    with av.open(str(path), "w") as file:
        stream = file.add_stream("aac", rate=RATE, layout="mono")
        frame = av.AudioFrame.from_ndarray(wave[None].astype(np.float32), format="fltp", layout="mono")
        frame.sample_rate = RATE
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            file.mux(packet)


# ---- decode ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["wav", "flac", "mp3", "opus", "m4a", "stereo"])
def test_every_format_decodes_to_the_same_sound_at_24_khz(shelf, voice, kind):
    path = shelf.folder / f"x.{'wav' if kind == 'stereo' else kind}"
    if kind == "m4a":
        write_m4a(path, voice)
    elif kind == "stereo":
        soundfile.write(path, np.stack([voice, voice], axis=1)[::2], RATE // 2)
    else:
        form = {"opus": {"format": "OGG", "subtype": "OPUS"}, "mp3": {"format": "MP3"}}.get(kind, {})
        soundfile.write(path, voice, RATE, **form)
    (record,) = run(Decode(), [shelf.record(path.name)], shelf)
    wave = shelf.audio.wave(record)
    assert record["rate"] == RATE and record["id"] == path.name and record["duration"] == len(wave) / RATE
    assert abs(len(wave) - len(voice)) < 0.15 * RATE  # encoders pad
    size = min(len(wave), len(voice))
    spectrum = np.fft.rfft(wave[:size]).conj() * np.fft.rfft(voice[:size])
    likeness = np.fft.irfft(spectrum).max() / np.linalg.norm(wave[:size]) / np.linalg.norm(voice[:size])
    assert likeness > 0.9


def damaged(folder, voice) -> dict[str, str]:
    """Broken files and the reason each must get."""
    rng = np.random.default_rng(0)
    (folder / "empty.wav").touch()
    (folder / "text.wav").write_text("this is not audio")
    (folder / "random.flac").write_bytes(rng.bytes(5000))
    (folder / "random.m4a").write_bytes(rng.bytes(5000))
    soundfile.write(folder / "nan.wav", np.where(np.arange(RATE) == 99, np.nan, 0.1), RATE, subtype="FLOAT")
    soundfile.write(folder / "zero.wav", np.zeros(RATE), RATE)
    soundfile.write(folder / "none.wav", np.zeros(0), RATE)
    soundfile.write(folder / "cut.flac", voice, RATE)
    whole = (folder / "cut.flac").read_bytes()
    (folder / "cut.flac").write_bytes(whole[: len(whole) // 2])
    for name, form in (("cut.wav", {}), ("cut.mp3", {}), ("cut.ogg", {"subtype": "VORBIS"})):
        soundfile.write(folder / name, np.tile(voice, 3), RATE, **form)
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[: len(whole) // 2])
    soundfile.write(folder / "slow.wav", voice, 1)
    return {
        "absent.wav": "missing_file",
        "empty.wav": "empty_file",
        "text.wav": "unreadable",
        "random.flac": "unreadable",
        "random.m4a": "unreadable",
        "nan.wav": "not_finite",
        "zero.wav": "silent",
        "none.wav": "unreadable",
        "cut.flac": "damaged",
        "cut.wav": "truncated",
        "cut.mp3": "truncated",
        "cut.ogg": "truncated",
        "slow.wav": "wrong_rate",
    }


def test_broken_files_are_dropped_with_their_reason(shelf, voice):
    expected = damaged(shelf.folder, voice)
    results = run(Decode(), [shelf.record(name) for name in expected], shelf)
    assert {r["id"]: r["dropped"]["reason"] for r in results} == expected


def test_inverted_channels_and_integer_units_decode_to_the_same_sound(shelf, voice):
    soundfile.write(shelf.folder / "pair.wav", np.stack([voice, -voice], 1), RATE)
    soundfile.write(shelf.folder / "units.wav", voice * 32768.0, RATE, subtype="FLOAT")
    for record in run(Decode(), [shelf.record("pair.wav"), shelf.record("units.wav")], shelf):
        np.testing.assert_allclose(shelf.audio.wave(record), voice, atol=1e-4)


@pytest.mark.parametrize("kind", ["wav", "mp3", "opus", "m4a"])
def test_a_file_shorter_than_its_record_says_is_truncated(shelf, voice, kind):
    path = shelf.folder / f"x.{kind}"
    if kind == "m4a":
        write_m4a(path, voice)
    else:
        soundfile.write(path, voice, RATE, **({"format": "OGG", "subtype": "OPUS"} if kind == "opus" else {}))
    wanted = shelf.record(path.name, duration=len(voice) / RATE + 1.0)
    assert reasons(run(Decode(), [wanted], shelf)) == ["truncated"]


def test_a_piece_of_a_file_is_read_by_start_and_duration(shelf, voice):
    record = shelf.add(voice) | {"start": 0.5, "duration": 1.0}
    (decoded,) = run(Decode(), [record], shelf)
    np.testing.assert_allclose(shelf.audio.wave(decoded), voice[RATE // 2 : RATE // 2 + RATE], atol=1e-4)
    assert decoded["start"] == 0.0 and decoded["duration"] == 1.0


def test_a_long_file_is_cut_where_it_is_quiet_and_loses_nothing(shelf, voice):
    wave = np.concatenate([voice, np.zeros(RATE, np.float32)] * 4)
    seconds = len(wave) / RATE / 2.2
    found = run(Decode(piece_seconds=seconds), [shelf.add(wave, id="long")], shelf)
    np.testing.assert_allclose(np.concatenate([shelf.audio.wave(r) for r in found]), wave, atol=1e-4)
    assert len(found) >= 3 and [r["parent"] for r in found] == ["long"] * len(found)
    assert found[1]["offset"] == pytest.approx(found[0]["duration"], abs=1e-3)
    for record in found[:-1]:
        assert np.abs(shelf.audio.wave(record)[-RATE // 20 :]).max() < 1e-3
    assert reasons(run(Decode(piece_seconds=seconds), [shelf.add(wave, text="hello")], shelf)) == ["too_long"]


def test_pieces_of_a_stream_need_the_memory_of_one_piece():
    blocks = (np.ones(1000, np.float32) for _ in range(200))
    sizes = [len(p) for p in pieces(blocks, 100, 100.0)]
    assert sum(sizes) == 200_000 and max(sizes) <= 10_000


# ---- levels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decibel", [0, 10, 20])
def test_the_noise_estimate_finds_the_known_level(voice, decibel):
    speech = voice[np.abs(voice) > 0][: 3 * RATE]
    assert snr(noisy(speech, decibel), RATE) == pytest.approx(
        decibel + 3, abs=2.0
    )  # speech parts are louder than the mean


def test_clean_speech_has_less_noise_and_clipping_than_spoilt_speech(voice):
    assert snr(voice, RATE) > 25 > snr(noisy(voice, 15), RATE)
    clipped = np.clip(voice, -0.2 * voice.max(), 0.2 * voice.max())
    resampled = soxr.resample(soxr.resample(clipped, RATE, 16_000), 16_000, RATE)
    assert crest(voice, RATE) > 3.1 > max(crest(clipped, RATE), crest(resampled, RATE))


def test_noise_in_one_part_of_a_long_piece_is_not_hidden_by_the_rest(voice):
    voice = np.concatenate([voice] * (1 + 10 * RATE // len(voice)))
    clean = np.concatenate([voice, voice, voice])
    spoilt = np.concatenate([voice, noisy(voice, 10), voice])
    assert snr(spoilt, RATE) > 25, "the quiet parts hide it"
    assert lowest_snr(clean, RATE) > 22 > 18 > lowest_snr(spoilt, RATE)
    short = voice[: 3 * RATE]
    assert lowest_snr(short, RATE) == snr(short, RATE)


def test_loudness_reaches_its_target_and_never_clips(shelf, voice):
    quiet, spiky = (
        shelf.add(0.05 * voice),  # at a hundredth its pauses would count as silence
        shelf.add(np.where(np.arange(len(voice)) == RATE, 0.9, 0.01 * voice)),
    )
    level, limited = run(Loudness(), [quiet, spiky], shelf)
    (again,) = run(Loudness(), [level], shelf)
    assert again["loudness"] == pytest.approx(-23.0, abs=0.2)
    assert np.abs(shelf.audio.wave(limited)).max() == pytest.approx(0.97, abs=0.01)
    assert reasons(run(Loudness(), [shelf.add(np.zeros(RATE)), shelf.add(voice[:1000])], shelf)) == [
        "silent",
        "too_short",
    ]


# ---- speech regions and segments -------------------------------------------------------------------------------------


def test_loudness_removes_a_constant_offset(shelf, voice):
    (plain,) = run(Loudness(), [shelf.add(voice)], shelf)
    (offset,) = run(Loudness(), [shelf.add(voice - np.float32(0.035))], shelf)
    assert abs(shelf.audio.wave(offset).mean()) < 1e-4 and abs(offset["loudness"] - plain["loudness"]) < 0.05


def test_speech_regions_lie_within_a_quarter_of_a_second_of_the_truth(shelf):
    waves, truth, at = [], [], 0.0
    for record in spoken(role="eval", language="en")[:6]:
        wave, ends = wave_of(record), record["phoneme_ends"]
        waves += [np.zeros(3 * RATE, np.float32), wave]
        begin, end = ends[0], ends[-2]  # the first and last phonemes are pauses
        truth.append((at + 3 + begin, at + 3 + end))
        at += 3 + len(wave) / RATE
    record = shelf.add(
        np.concatenate([*waves, np.zeros(3 * RATE, np.float32)]) * 0.02
    )  # quiet: the step levels it
    (heard,) = run(Vad(), [record], shelf)
    segments = run(Segment(least=1.0, pad=0.0), [heard], shelf)
    assert len(segments) == len(truth) and reasons(segments) == [None] * len(truth)
    for segment, (begin, end) in zip(segments, truth, strict=True):
        assert segment["start"] == pytest.approx(begin, abs=0.25)
        assert segment["start"] + segment["duration"] == pytest.approx(end, abs=0.25)


def test_noise_and_silence_hold_no_speech(shelf):
    noise = 0.1 * np.random.default_rng(0).standard_normal(5 * RATE)
    records = [shelf.add(noise), shelf.add(np.zeros(5 * RATE))]
    assert reasons(run(Vad(), records, shelf)) == ["no_speech"] * 2


def recording(speech: list, **fields) -> dict:
    return {"id": "a", "start": 10.0, "duration": 100.0, "text": None, "speech": speech} | fields


def test_segments_join_short_gaps_and_split_long_ones():
    segments = Segment().run([recording([[1, 3], [4.5, 6], [8.5, 12], [20, 21]])], None)
    assert [(s["start"], s["duration"]) for s in segments] == [(10.9, 5.2), (18.4, 3.7), (29.9, 1.2)]
    assert reasons(segments) == [None, None, "too_short"]
    assert [s["id"] for s in segments] == ["a-000", "a-001", "a-002"] and {s["parent"] for s in segments} == {
        "a"
    }
    assert segments[0]["speech"] == [[0.1, 2.1], [3.6, 5.1]]


def test_segments_stay_under_their_longest_and_never_overlap():
    speech = [[4.0 * i, 4.0 * i + 3.95] for i in range(20)]
    segments = Segment().run([recording(speech)], None)
    assert max(s["duration"] for s in segments) <= 30.0 and sum(len(s["speech"]) for s in segments) == 20
    for one, other in zip(segments, segments[1:], strict=False):
        assert one["start"] + one["duration"] <= other["start"] + 1e-6


def test_a_change_of_voice_ends_a_segment_and_names_its_speaker():
    segments = Segment().run([recording([[0, 4], [4.5, 8], [8.2, 12]], turns=[0, 0, 1])], None)
    assert [s["speaker"] for s in segments] == ["a-s0", "a-s1"]


def test_a_transcribed_recording_stays_whole():
    (segment,) = Segment().run([recording([[1, 2], [9, 10]], text="hello", duration=12.0)], None)
    assert (segment["start"], segment["duration"], segment.get("dropped")) == (10.9, 9.2, None)
    assert reasons(Segment().run([recording([[1, 50]], text="hello")], None)) == ["too_long"]


# ---- quality ---------------------------------------------------------------------------------------------------------


def test_the_scores_equal_those_of_the_package(shelf, voice):
    from speechmos import dnsmos

    wave = np.resize(voice[::3], WINDOW) * 0.5  # one window
    expected = dnsmos.run(wave, MOS_RATE)
    (record,) = run(Quality(overall=True, windows=1), [shelf.add(wave, MOS_RATE)], shelf)
    assert record["dnsmos"] == pytest.approx(expected["p808_mos"], abs=0.01)
    assert record["dnsmos_ovrl"] == pytest.approx(expected["ovrl_mos"], abs=0.01)


def test_a_batch_scores_as_one_by_one_and_noise_scores_lower(shelf, voice):
    records = [shelf.add(voice), shelf.add(noisy(voice, 5)), shelf.add(np.tile(voice, 5))]
    together = run(Quality(), records, shelf)
    assert together == [r for record in records for r in run(Quality(), [record], shelf)]
    assert together[0]["dnsmos"] > together[1]["dnsmos"] + 0.3


@pytest.mark.parametrize(
    ("length", "most", "count"), [(100, 2, 1), (WINDOW, 2, 1), (3 * WINDOW, 2, 2), (3 * WINDOW, 9, 3)]
)
def test_windows_spread_over_the_wave(length, most, count):
    windows = windows_of(np.arange(length, dtype=np.float32), most)
    assert windows.shape == (count, WINDOW) and (count == 1 or windows[-1, -1] == length - 1)
