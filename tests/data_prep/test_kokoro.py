"""The Kokoro engine on a tiny graph: phonemes with times, wide speakers, English and Mandarin readings."""

import numpy as np
import pytest

from data_prep import engines, kokoro
from data_prep.engines import Unspoken
from omnilib.errors import DataError, MissingTool
from tests.data_prep import kokoro_fakes


@pytest.fixture
def folder(monkeypatch, tmp_path):
    caches = (kokoro.session, kokoro.vocabulary, kokoro.voices, kokoro.mean_timbre, kokoro.table_of)
    for cached in caches:
        cached.cache_clear()
    yield kokoro_fakes.install(monkeypatch, tmp_path)
    for cached in caches:
        cached.cache_clear()


@pytest.mark.parametrize(
    ("voice", "text"),
    [("af_one", "The light, of the apple."), ("af_one:0.4+am_two:0.6>zf_three", "你好，老师。")],
)
def test_phoneme_times_add_up_to_the_wave(folder, voice, text):
    spoken = kokoro.Kokoro(voice, folder).say(text)
    assert len(spoken.phonemes) == len(spoken.ends) and spoken.ends == sorted(spoken.ends)
    assert spoken.ends[-1] == pytest.approx(len(spoken.wave) / kokoro.RATE, abs=kokoro.FRAME)
    assert spoken.phonemes[0] == spoken.phonemes[-1] == "pau"


def test_the_same_sentence_gives_the_same_samples(folder):
    first, second = (kokoro.Kokoro("af_one", folder).say("The light.").wave for _ in range(2))
    assert np.array_equal(first, second)
    assert not np.array_equal(first, kokoro.Kokoro("am_two", folder).say("The light.").wave), (
        "the voice does not matter"
    )


def test_an_utterance_is_rendered_to_whole_rows_with_its_phonemes(folder):
    wave, phonemes, ends = engines.render(
        kokoro.Kokoro("af_one", folder).say("The light of the morning."), 1.1
    )
    assert (
        len(wave) % engines.STEP == 0 and len(phonemes) == len(ends) and ends[-1] == len(wave) / engines.RATE
    )


def test_a_wide_speaker_is_pushed_from_the_mean_and_keeps_the_prosody_of_one_voice(folder):
    tables = kokoro.voices(folder)
    wide = kokoro.style_table("af_one:0.40+am_two:0.60>zf_three", folder)
    mixed = 0.4 * tables["af_one"][:, :128] + 0.6 * tables["am_two"][:, :128]
    mean = np.mean([t[:, :128] for name, t in tables.items() if name not in kokoro.HELD_OUT], axis=0)
    assert np.allclose(wide[:, :128] - mean, 1.25 * (mixed - mean), atol=1e-6)
    assert np.array_equal(wide[:, 128:], tables["zf_three"][:, 128:])


def test_a_held_out_voice_changes_no_training_speaker(folder, monkeypatch):
    before = kokoro.style_table("af_one:0.40+am_two:0.60>am_two", folder)
    changed = {name: table + (name in kokoro.HELD_OUT) for name, table in kokoro.voices(folder).items()}
    kokoro.mean_timbre.cache_clear()
    monkeypatch.setattr(kokoro, "voices", lambda folder: changed)
    assert np.array_equal(kokoro.style_table("af_one:0.40+am_two:0.60>am_two", folder), before)


def test_an_unknown_voice_is_named(folder):
    with pytest.raises(DataError, match="no voice 'af_nobody': choose among af_kore"):
        kokoro.Kokoro("af_nobody", folder).say("Hello.")


def test_missing_weights_say_how_to_fetch_them(tmp_path):
    with pytest.raises(MissingTool, match="run `python -m data_prep.fetch`"):
        kokoro.Kokoro("af_heart", tmp_path / "empty").say("Hello.")


def test_too_long_a_sentence_is_unspoken_not_cut(folder):
    with pytest.raises(Unspoken, match="Kokoro reads 1 to 509"):
        kokoro.Kokoro("af_one", folder).say("the light of the morning " * 30)


def test_every_phoneme_of_english_has_a_name_that_flite_uses():
    said = "".join(
        kokoro.english(t, b)
        for t in ("The judge's church, measure this oil vision!", "How now; she thought, boys?")
        for b in (False, True)
    )
    unnamed = {c for c in said if c not in kokoro.ENGLISH and c not in " ,.?!;:ˈˌː"}
    assert not unnamed
    assert set(kokoro.ENGLISH.values()) <= set(engines.ESPEAK.values())


def test_small_words_are_read_as_their_neighbours_want():
    assert kokoro.english("The apple.").startswith("ði ") and kokoro.english("The pear.").startswith("ðə ")
    assert kokoro.english("to eat").startswith("tʊ ") and kokoro.english("to go").startswith("tə ")
    assert kokoro.english("a pear") == f"ɐ {kokoro.english('pear')}"


@pytest.mark.parametrize("british", [False, True])
def test_words_that_no_lexicon_has_are_still_read(british):
    for word in ("quaestorial", "zymurgically", "Bryantton", "gloaming's", "FBI", "NASA", "café"):
        assert kokoro.english(word, british).strip(), word
    assert kokoro.inflected("hospitals", british) == kokoro.english("hospital", british) + "z"
    assert kokoro.english("FBI", british).count("ˈ") == 1, "letters of an acronym are one word"


def test_mandarin_is_read_as_misaki_reads_it():
    from misaki.zh import ZHG2P

    for text in (
        "老师，您好！",
        "儿子去哪儿了？绿色的女孩。",
        "我们四月十四日在医院见面，好不好？",
        "他吃了一碗热乎乎的鸡肉面。",
    ):
        symbols, names = kokoro.mandarin(text)
        assert "".join(symbols) == ZHG2P.legacy_call(ZHG2P.map_punctuation(text)) and len(symbols) == len(
            names
        )
    assert [n for n in kokoro.mandarin("中文。")[1] if n] == ["ㄓ", "ㄨㄥ", "ㄨㄣˊ", "pau"]


def test_mandarin_with_latin_letters_is_unspoken():
    with pytest.raises(Unspoken, match="not Chinese"):
        kokoro.mandarin("我用Linux。")
