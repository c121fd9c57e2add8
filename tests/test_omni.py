"""Both tracks: the released joint loop step by step, and what ours must do where that one fails."""

import json
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from omnilib.brain.ask import Brain
from omnilib.brain.config import smoke_config
from omnilib.brain.decode import AnswerSettings
from omnilib.brain.inputs import BrainProcessor
from omnilib.brain.mllm import Brain as BrainModel
from omnilib.errors import MediaError, UserError
from omnilib.mouth.decode import DecodeSettings, Request, generate
from omnilib.mouth.rows import prompt_rows
from omnilib.mouth.speechlm import SpeechLM, SpeechLMConfig
from omnilib.omni import Omni
from omnilib.speak import Reference, TextToSpeech
from omnilib.voice.codec import Voice
from tests.brain import reference
from tests.conftest import GOLDEN, load_golden
from tests.tiny import write_checkpoints

FIXTURE = GOLDEN / "omni_joint_greedy.json"
CASES = json.loads(FIXTURE.read_text(encoding="utf-8"))["cases"] if FIXTURE.exists() else {}


# ---- parity with the released loop -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def joint():
    """`joint(case) -> (omni, voice, json of the case, tensors, question)` of the fixture."""
    meta, t = load_golden("omni_joint_greedy")
    base, b = load_golden("brain_generate_greedy")
    towers = {k: v for k, v in b.items() if k.startswith(("w.model.vision_tower", "w.model.speech_tower"))}
    towers |= {k: v for k, v in b.items() if k.startswith("w.model.mm_speech_projector")}
    own = {"w." + k.removeprefix("w.brain."): v for k, v in t.items() if k.startswith("w.brain.")}
    model = reference.load(BrainModel(reference.brain_config(base)), own | towers)
    tokens, limits = meta["tokenizer"], base["image_processor"]
    model.config.eos_token_id = model.generation_config.eos_token_id = tokens["eos_token_id"]
    model.config.pad_token_id = model.generation_config.pad_token_id = tokens["pad_token_id"]
    processor = BrainProcessor(
        reference.tokenizer(base), model.config, limits["min_pixels"], limits["max_pixels"]
    )
    c, names = meta["config"]["mouth"], ("audio_start", "audio_end", "audio_sep")
    table = base["tokenizer"]["id_to_string"] + [f"<|{name}|>" for name in names]
    words = reference.longest_match(table, "<|im_end|>", "<|endoftext|>")
    assert all(words.convert_tokens_to_ids(f"<|{name}|>") == tokens[name] for name in names)
    fields = {k: v for k, v in c.items() if k not in ("S", "pre_pad", "adapter", "attention")}
    config = SpeechLMConfig(
        **fields,
        tts_adapter_config=c["adapter"],
        speech_token_pre_pad=c["pre_pad"],
        attn_implementation=c["attention"],
    )
    mouth = SpeechLM(config).eval()
    mouth.load_state_dict({k.removeprefix("w.mouth."): v for k, v in t.items() if k.startswith("w.mouth.")})

    def build(name: str, released: bool = True):
        case = meta["cases"][name]
        settings = DecodeSettings(
            temperature=0.0,
            max_rows=case["max_new_tokens"],
            blank_rows=10,
            blank_codes=case["blank_speech_tokens"],
        )
        answers = AnswerSettings(max_new_tokens=case["max_new_tokens"])
        speech = TextToSpeech(mouth, words, None, settings, None, {})
        omni = Omni(Brain(model, processor, answers, weights=""), speech, released=released)
        spoken = t["in.ref_tokens"][0]
        rows = prompt_rows(words, speech.front.layout, meta["reference_text"], spoken)
        if t.has("out.prompt_ids"):
            assert torch.equal(rows, t["out.prompt_ids"][0])
        voice = Reference(Voice(spoken, None, None), meta["reference_text"], "en", "fixture", None, rows)
        pictures, waves = reference.media_of(base, b, case)
        question = {"images": pictures, "audio": waves}
        return omni, voice, case, t, question | {"text": "" if pictures or waves else case["user"]}

    return build


def stepped(omni, voice, question):
    """All steps of one answer: the answer, ids the brain wrote, length of the buffer at each row."""
    answer, lengths = omni.conversation(voice).stream(**question), []
    while not answer.done:
        answer.brain_step()
        lengths.append(len(answer.mouth.machine.buffer))
        answer.mouth.step()
    return answer, lengths


def grid(answer) -> torch.Tensor:
    return torch.tensor([(row.text, *row.speech) for row in answer.mouth.rows])


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if "official_raises" not in case])
def test_both_tracks_write_the_released_ids_and_rows(joint, name):
    omni, voice, case, t, question = joint(name)
    answer, lengths = stepped(omni, voice, question)
    ids = t[f"out.{name}.brain_ids"][0].tolist()
    ended = ids[-1] in answer.stops
    assert answer.ids == (ids[:-1] if ended else ids)
    assert torch.equal(grid(answer), t[f"out.{name}.grid"][0])
    if t.has(f"out.{name}.buffer_length"):
        assert lengths == t[f"out.{name}.buffer_length"].tolist()
    flags = [chunk.error in ("blank", "long") for chunk in answer.mouth.chunks if chunk.finished]
    assert flags == case["guards_fired_per_chunk"]
