"""Probes measure what they say, on cases small enough to count by hand."""

import numpy as np
import pytest
import torch

from omnilib.eval import probes
from omnilib.mouth.speechlm import IGNORE, SpeechLM, SpeechLMConfig


class Reader:
    """Stands in for the phoneme head: a code is its own phoneme."""

    index = {"a": 1, "b": 2, "c": 3}

    def read(self, codes):
        return [c.tolist() for c in codes]

    def targets(self, names):
        return [self.index[n] for n in names]


def tiny_mouth() -> SpeechLM:
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 8,
        "intermediate_size": 16,
        "head_dim": 4,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }
    config = SpeechLMConfig(
        vocab_size=24,
        tokenizer_speech_size=6,
        speech_token_count=2,
        tts_adapter_config="[1,8,2_2,16]",
        tie_word_embeddings=True,
        **sizes,
    )
    return SpeechLM(config).eval()


def test_a_code_is_labelled_with_the_phoneme_in_its_middle():
    record = {"phonemes": ["pau", "a", "b"], "phoneme_ends": [0.03, 0.10, 0.16]}
    # middles at 0.02, 0.06, 0.10, 0.14 and, past the end, 0.18 s
    assert probes.phonemes_at_codes(record, 5) == ["pau", "a", "a", "b", "pau"]


def test_a_table_reads_what_each_code_meant_most_often():
    train = [(torch.tensor([5, 5, 5, 7]), ["a", "a", "b", "b"])]
    test = [(torch.tensor([5, 7, 9, 5]), ["a", "b", "a", "b"])]
    accuracy, baseline = probes.read_by_table(train, test)
    assert (
        accuracy == 0.75
    )  # 5 -> a right, 7 -> b right, the unknown 9 -> the commonest, a, right, 5 -> a wrong
    assert baseline == 0.5


def test_speaker_accuracy_is_perfect_when_vectors_are_the_speakers_own():
    own = {"x": np.array([1.0, 0.1]), "y": np.array([0.1, 1.0])}
    speakers = ["x", "y", "x", "y"]
    assert probes.speaker_accuracy([own[s] for s in speakers], speakers) == 1.0
    swapped = [own[s] for s in ("x", "y", "y", "x")]
    assert probes.speaker_accuracy(swapped, speakers) == 0.0


def test_stream_errors_agree_with_a_plain_count():
    model = tiny_mouth()
    rows = torch.randint(0, 6, (9, 3), generator=torch.Generator().manual_seed(1))
    labels = rows.clone()
    labels[:4] = IGNORE
    errors, speech, text, n = probes.stream_errors(model, [(rows, labels)])
    with torch.no_grad():
        output = model(rows[None], labels=labels[None], return_logits=True)
    guesses = output.speech_logits[0, 3:-1].argmax(
        -1
    )  # rows 4.. are labelled and predicted from the row before
    assert n == 5
    assert errors == pytest.approx((guesses != rows[4:, 1:]).double().mean(0).numpy())
    assert (speech, text) == pytest.approx((output.speech_loss.item(), output.text_loss.item()))


def test_errors_along_a_text_fall_where_they_were_made():
    wanted = [["a", "b"] * 10]
    got = torch.tensor([1, 2] * 9 + [3, 3])  # the last two are wrong
    shares, totals = probes.phoneme_errors_along(Reader(), [got], wanted, parts=10)
    assert totals.tolist() == [2.0] * 10
    assert shares.tolist() == [0.0] * 9 + [1.0]


def test_phoneme_errors_give_the_corpus_and_each_line():
    records = [{"phonemes": ["a", "b", "c", "a"]}, {"phonemes": ["a"]}]
    over_all, each = probes.phoneme_errors(Reader(), [torch.tensor([1, 2, 3, 1]), torch.tensor([2])], records)
    assert each == [0.0, 1.0]
    assert over_all == pytest.approx(1 / 5)
