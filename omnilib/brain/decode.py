"""The brain answers step by step: one id a row and step, so that the mouth (or a screen) may follow at once.

    batch --prefill in pieces--> key/value cache --[choose id -> one step]--> ids until every row has ended

`Brain.generate` is transformers' own loop with everything it offers; this one yields. Greedily both give the
same ids.

Shapes: B batch, L positions, V vocabulary.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import (
    DynamicCache,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from omnilib.brain.mllm import MEDIA, Brain
from omnilib.brain.positions import scaled
from omnilib.errors import ConfigError


@dataclass(frozen=True)
class AnswerSettings:
    """How to answer; every report records it."""

    max_new_tokens: int = 512
    temperature: float = 0.0  # 0 is greedy
    top_k: int = 0  # 0: off; the released code decodes with the library's default of 50
    top_p: float = 1.0
    seed: int = 0
    eos: tuple[int, ...] | None = None  # ids that end an answer; None: the model's
    prefill: int = 2048  # positions of the prompt computed at a time: bounds memory

    def __post_init__(self):
        counts = min(self.max_new_tokens, self.prefill)
        if self.temperature < 0 or not 0 < self.top_p <= 1 or self.top_k < 0 or counts < 1:
            raise ConfigError(
                "answer settings: need temperature, top_k >= 0, 0 < top_p <= 1, max_new_tokens, prefill >= 1",
            )

    def warpers(self) -> LogitsProcessorList:
        """Temperature, then top-k, then top-p, as transformers orders them."""
        made = [TemperatureLogitsWarper(self.temperature)] if self.temperature not in (0, 1) else []
        made += [TopKLogitsWarper(self.top_k)] if self.top_k else []
        made += [TopPLogitsWarper(self.top_p)] if self.top_p < 1 else []
        return LogitsProcessorList(made)


GREEDY = AnswerSettings()


def ends(model: Brain, settings: AnswerSettings) -> list[int]:
    """Ids that end an answer."""
    if settings.eos is not None:
        return list(settings.eos)
    eos = model.generation_config.eos_token_id
    eos = model.config.eos_token_id if eos is None else eos
    return eos if isinstance(eos, list) else [] if eos is None else [eos]


def chosen_id(
    logits: Tensor, settings: AnswerSettings, warpers: LogitsProcessorList, generator: torch.Generator
) -> Tensor:
    """The likeliest id, or one drawn: (B, V) -> (B,)."""
    if settings.temperature == 0:
        return logits.argmax(-1)
    return torch.multinomial(warpers(None, logits.float()).softmax(-1), 1, generator=generator)[:, 0]


@torch.no_grad()
def prefill(
    model: Brain,
    embeds: Tensor,
    mask: Tensor,
    positions: Tensor,
    cache: DynamicCache,
    size: int,
) -> Tensor:
    """Fill the cache with a prompt, `size` positions at a time; logits of its last position: (B, V)."""
    for start in range(0, embeds.shape[1], size):
        end = min(start + size, embeds.shape[1])
        hidden = model.model(
            inputs_embeds=embeds[:, start:end],
            attention_mask=mask[:, :end],
            position_ids=positions[..., start:end],
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
    return model.lm_head(hidden[:, -1]).float()


@torch.no_grad()
def stream(model: Brain, batch: dict, settings: AnswerSettings = GREEDY) -> Iterator[Tensor]:
    """Ids of one step after the other: each (B,); a row that has ended goes on with pad until all have.

    Args:
        batch: of `BrainProcessor`, padded on the left.

    Raises:
        LimitError: longer than the model's context, or more memory than there is.
        MediaError: the batch is padded on the right, or features do not fit their places.
    """
    media = {k: v for k, v in batch.items() if k in MEDIA}
    embeds, mask, positions, deltas = model.prepare(
        batch["input_ids"],
        batch.get("attention_mask"),
        batch.get("position_ids"),
        settings.max_new_tokens,
        **media,
    )
    cache = DynamicCache(config=model.config)
    rotary = model.frequencies_for(positions, settings.max_new_tokens)
    with scaled(model, rotary):
        logits = prefill(model, embeds, mask, positions, cache, settings.prefill)
    place = mask.sum(1) + deltas  # (B,) of the id to come
    stops = torch.tensor(ends(model, settings), device=logits.device)
    pad = model.config.pad_token_id
    pad = stops[:1].sum() if pad is None else pad  # the first stop, or 0
    warpers, generator = settings.warpers(), torch.Generator(device=logits.device).manual_seed(settings.seed)
    ended = torch.zeros(len(logits), dtype=torch.bool, device=logits.device)
    for step in range(settings.max_new_tokens):
        ids = chosen_id(logits, settings, warpers, generator)
        ids = ids.masked_fill(ended, pad)
        ended = ended | torch.isin(ids, stops)
        yield ids
        if bool(ended.all()) or step + 1 == settings.max_new_tokens:
            return
        mask = torch.cat((mask, mask.new_ones(len(mask), 1)), 1)
        with scaled(model, rotary):
            hidden = model.model(
                inputs_embeds=model.model.embed_tokens(ids[:, None]),
                attention_mask=mask,
                position_ids=place[None, :, None].expand(3, -1, -1),
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state
        logits, place = model.lm_head(hidden[:, -1]).float(), place + 1


def stream_text(model: Brain, processor, batch: dict, settings: AnswerSettings = GREEDY) -> Iterator[str]:
    """Words of the answer to a single prompt as they come; a character comes when it is whole."""
    ids, told = [], ""
    for step in stream(model, batch, settings):
        ids.append(int(step[0]))
        text = processor.decode(ids)
        if not text.endswith("\ufffd") and len(text) > len(told):
            yield text[len(told) :]
            told = text
    rest = processor.decode(ids)[len(told) :]
    if rest:
        yield rest
