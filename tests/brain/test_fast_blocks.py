"""The quick layers give what the model's own layers give: outputs, gradients, with LoRA and pictures."""

import pytest
import torch

from omnilib.brain.fast_blocks import FastLanguage
from omnilib.brain.trained import Lora, add_lora

PLACES = "attention_mask", "position_ids"


def both(model, batch, dtype=torch.float32):
    """Loss and gradients of the own layers and of the quick ones."""
    found = []
    for fast in (None, FastLanguage(model.model, dtype)):
        model.zero_grad()
        embeds = model.embed_inputs(batch["input_ids"], batch["pixel_values"], batch["image_grid_thw"])
        embeds = embeds + 0 * embeds  # no leaf
        embeds.retain_grad()
        places = {k: batch[k] for k in PLACES}
        hidden = (
            fast(embeds, batch["position_ids"]) if fast else model.model(inputs_embeds=embeds, **places)[0]
        )
        loss = model.loss(hidden, batch["labels"])
        loss.backward()
        live = batch["attention_mask"].bool()
        grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        found.append((loss.item(), hidden.detach()[live], grads | {"input": embeds.grad[live]}))
    return found


@pytest.fixture
def batch(ready):
    def make(model, processor):
        talks = []
        for words, answer in (("Who is it", "no"), ("hello", "a long answer with more words")):
            asked = [{"type": "image", "image": torch.zeros(56, 84, 3, dtype=torch.uint8).numpy()}] * (
                words[0] == "W"
            )
            talks.append(
                [{"role": "user", "content": [*asked, words]}, {"role": "assistant", "content": answer}]
            )
        return processor.chat(talks, answer=False, labels=True)

    return make


@pytest.mark.parametrize("kind", ["frozen", "lora", "whole"])
def test_outputs_and_gradients_are_those_of_the_own_layers(ready, batch, kind):
    model, processor = ready()
    with torch.no_grad():  # biases count too
        for name, weight in model.named_parameters():
            if name.endswith("_proj.bias"):
                weight.normal_()
    model.requires_grad_(kind == "whole")
    if kind == "lora":
        add_lora(
            model, Lora(rank=2, targets=["q_proj", "v_proj", "gate_proj", "up_proj", "down_proj", "o_proj"])
        )
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if "lora_B" in name:
                    weight.normal_(std=0.3)
    model.model.embed_tokens.requires_grad_(True)
    (loss, hidden, grads), (quick, again, others) = both(model, batch(model, processor))
    assert quick == pytest.approx(loss, rel=1e-5)
    torch.testing.assert_close(again, hidden, rtol=1e-3, atol=1e-4)
    assert grads.keys() == others.keys() and (kind != "lora" or any("lora_A" in n for n in grads))
    for name, value in grads.items():
        torch.testing.assert_close(others[name], value, rtol=2e-3, atol=2e-5, msg=name)


def test_half_precision_stays_near(ready, batch):
    model, processor = ready()
    model.requires_grad_(False)
    model.model.embed_tokens.requires_grad_(True)
    (loss, _, _), (quick, _, _) = both(model, batch(model, processor), torch.bfloat16)
    assert quick == pytest.approx(loss, rel=0.1)
