"""SpeechLM: parity with the reference, losses, padding, saving, stages."""

import pytest
import torch

from omnilib.errors import CheckpointError, ConfigError
from omnilib.mouth.speechlm import ARCHITECTURE, SpeechLM, SpeechLMConfig


def build(config: dict, tensors: dict) -> SpeechLM:
    """The reference model of a fixture, loaded strictly."""
    model = SpeechLM(SpeechLMConfig(**config))
    model.load_state_dict({k[2:]: v for k, v in tensors.items() if k.startswith("w.")}, strict=True)
    return model


def test_training_forward_matches_the_reference(golden):
    meta, t = golden("tts_lm_forward")
    model = build(meta["config"], t).train()
    ids, labels, mask = t["in.input_ids"], t["in.labels"], t["in.attention_mask"]
    before = ids.clone()
    out = model(ids, mask, labels, return_logits=True)
    assert torch.equal(ids, before), "the caller's ids must not change"
    live = mask.bool()
    near = dict(atol=meta["tolerance"]["speech_logits/text_logits/hidden abs"], rtol=0)
    torch.testing.assert_close(model.embed(ids.masked_fill(~live[..., None], 0))[live], t["out.inputs_embeds"][live], atol=1e-6, rtol=0)
    torch.testing.assert_close(out.lm_hidden[live], t["out.lm_hidden"][live], **near)
    torch.testing.assert_close(out.adapter_hidden[live], t["out.adapter_hidden"][live], **near)
    torch.testing.assert_close(out.text_logits[live], t["out.text_logits"][live], **near)
    torch.testing.assert_close(out.speech_logits[live], t["out.speech_logits"][live], **near)
    near = dict(atol=meta["tolerance"]["loss abs"], rtol=0)
    torch.testing.assert_close(out.text_loss, t["out.loss_text"], **near)
    torch.testing.assert_close(out.speech_loss, t["out.loss_speech"], **near)
    torch.testing.assert_close(out.loss, t["out.loss"], **near)
    out.loss.backward()
    names = dict(model.named_parameters())
    norms = {k.removeprefix("out.gradnorm."): v for k, v in t.items() if k.startswith("out.gradnorm.")}
    assert set(norms) == set(names)
    for name, norm in norms.items():
        torch.testing.assert_close(names[name].grad.double().norm(), norm.double(), rtol=meta["tolerance"]["gradnorm rel"], atol=1e-7, msg=name)
