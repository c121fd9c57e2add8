"""The plain loop that `speed` measures the mouth against: modules of transformers, one dynamic cache each.

Same weights and same logits as `mouth.step` (a test compares them), the way the released code computes them:
an embedding looked up for every stream, `DynamicCache` that is copied whenever a row is added, a mask and a
rotation made anew for every row, and a head over the whole vocabulary of which one slice is used.

Shapes: B batch, L rows, k streams, S ids a stream, D width, V vocabulary.
"""

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.masking_utils import create_causal_mask

from omnilib.mouth.speechlm import SpeechLM


class PlainMouth:
    """Sequences of equal length, row by row.

    Args:
        prompts: (B, L, 1 + k).
    """

    def __init__(self, model: SpeechLM, prompts: Tensor):
        self.model, self.length = model, 0
        self.past = DynamicCache(config=model.config)
        self.adapter_past = DynamicCache(config=model.tts_adapter.config)
        self.logits = self.advance(prompts)

    @torch.inference_mode()
    def advance(self, rows: Tensor) -> Tensor:
        """Feed rows (B, L, 1 + k); logits after the last of them: (B, k, S)."""
        model, config = self.model, self.model.config
        ids = rows.clone()
        for stream in range(config.speech_token_count):
            ids[..., 1 + stream] += config.tokenizer_text_size + stream * config.tokenizer_speech_size
        embeds = torch.stack([model.model.embed_tokens(ids[..., i]) for i in range(ids.shape[-1])]).mean(0)
        size = rows.shape[1]
        positions = torch.arange(self.length, self.length + size)[None]
        hidden = model.model(
            inputs_embeds=embeds, position_ids=positions, past_key_values=self.past, use_cache=True
        ).last_hidden_state
        hidden = self.adapt(hidden, positions)
        self.length += size
        logits = model.lm_head(hidden[:, -1:])[:, -1].float()  # (B, V)
        speech = logits[:, config.tokenizer_text_size :]
        self.logits = speech.unflatten(-1, (config.speech_token_count, -1))
        return self.logits

    def adapt(self, hidden: Tensor, positions: Tensor) -> Tensor:
        """The adapter's blocks with a cache of their own: (B, L, D) -> (B, L, D)."""
        adapter = self.model.tts_adapter
        mask = create_causal_mask(
            config=adapter.config,
            inputs_embeds=hidden,
            attention_mask=None,
            past_key_values=self.adapter_past,
            position_ids=positions,
        )
        rotary = adapter.rotary_emb(hidden, positions)
        for layer in adapter.layers:
            hidden = layer(
                hidden,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=self.adapter_past,
                use_cache=True,
                position_embeddings=rotary,
            )
        return hidden
