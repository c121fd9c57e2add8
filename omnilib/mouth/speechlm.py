"""SpeechLM, the mouth: a Qwen3 language model that reads text and writes k speech streams (paper section 3.2).

    rows (text id, k speech ids) --mean of k+1 embeddings--> Qwen3 --h--> TTS-Adapter --a--> k speech ids
                                                              |                         (same head, sliced)
                                                              +--> next text id (training only)

Notable choices
- Qwen3 comes from transformers; what the paper adds stands here: the averaged embedding (eq. 3), the adapter of
  Qwen3 blocks on the *normalised* last hidden state without a norm of its own, and one shared head of which only
  the slice in question is ever multiplied (eq. 4): text rows for text, speech rows for speech, never the whole
  vocabulary, and in training only where a label asks for it.
- Right padding needs no attention mask under a causal model: a live row never looks at a padded one. So the fused
  causal kernel runs whenever padding is on the right, which is how `train/speechlm.py` batches.
- Ids in a row are per stream, *without* vocabulary offset; the model adds offsets on a copy (the reference adds
  them in place on the caller's tensor, which corrupts labels that alias it).
- Names of parameters, `model_type` and architecture are those of the published checkpoints.

Shapes: B batch, L rows, k streams, D width, T text ids, S ids a stream (codes + eos + pad), V = T + k S.
"""

import copy
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM, Qwen3Model
from transformers.masking_utils import create_causal_mask
from transformers.models.qwen3.modeling_qwen3 import (
    Qwen3DecoderLayer,
    Qwen3PreTrainedModel,
    Qwen3RotaryEmbedding,
)
from transformers.utils import ModelOutput, is_flash_attn_2_available

from omnilib import storage
from omnilib.errors import CheckpointError, ConfigError
from omnilib.mouth.chunking import Layout
from omnilib.mouth.fast_blocks import Normed, block

IGNORE = -100
CONTROL_ROWS = 3  # text ids that a text backbone does not know: the audio control tokens
ARCHITECTURE = "MGMTTSForCausalLM"  # the name in the published config.json
PUBLISHED_SPEECH_SIZE = 6563  # CosyVoice2's 3^8 codes, eos, pad
PUBLISHED_BLANK = 6486
# fmt: off
PUBLISHED_BLANK_CODES = (  # what CosyVoice2's tokenizer says about silence, from the authors' released constants
    1707, 1788, 1950, 1951, 1959, 2031, 2040, 2112, 3894, 3903, 3975, 4056, 4137, 4138, 4143, 4146, 4164, 4173, 4218,
    4219, 4227, 4299, 4300, 5520, 5523, 5547, 5760, 5763, 5766, 5790, 6009, 6081, 6082, 6087, 6090, 6091, 6092, 6117,
    6162, 6163, 6165, 6168, 6171, 6172, 6198, 6243, 6244, 6249, 6252, 6253, 6261, 6276, 6279, 6296, 6299, 6321, 6324,
    6325, 6330, 6331, 6333, 6334, 6335, 6339, 6342, 6351, 6357, 6360, 6361, 6378, 6387, 6399, 6402, 6405, 6406, 6408,
    6411, 6412, 6413, 6414, 6415, 6416, 6432, 6433, 6435, 6436, 6438, 6439, 6441, 6459, 6460, 6461, 6466, 6468, 6469,
    6480, 6483, 6486, 6487, 6489, 6492, 6493, 6495, 6496, 6511, 6513, 6514, 6519, 6522, 6523, 6540, 6541, 6549,
)
# fmt: on


@strict
class SpeechLMConfig(Qwen3Config):
    """Qwen3's config plus the speech side; field names as in the published config.json.

    `vocab_size` must be `tokenizer_text_size + speech_token_count * tokenizer_speech_size`; the text size is derived
    from it when absent. `tts_adapter_config` reads "[layers,width,heads_gqa,mlp width]": "16_2" is 16 heads sharing
    keys in groups of 2.

    Source: paper section 3.2, eq. 2.
    """

    model_type = "MGMTTS"

    tokenizer_text_size: int | None = None
    tokenizer_speech_size: int = 6563
    speech_token_count: int = 4
    speech_token_pre_pad: int = 4
    tts_adapter_type: str = "qwen3"
    tts_adapter_config: str = "[6,2048,16_2,6144]"
    speech_blank: int | None = None  # the code put where an id is out of range; published: 6486
    speech_blank_codes: list[int] | None = None  # codes that mean silence, for the decoder's guard

    def __post_init__(self, **kwargs):
        speech = self.speech_token_count * self.tokenizer_speech_size
        if self.tokenizer_text_size is None:
            self.tokenizer_text_size = self.vocab_size - speech
        if self.tokenizer_text_size + speech != self.vocab_size or self.tokenizer_text_size < 4:
            raise ConfigError(
                f"vocab_size is {self.vocab_size} but {self.tokenizer_text_size} text + {self.speech_token_count} x "
                f"{self.tokenizer_speech_size} speech ids need {self.tokenizer_text_size + speech}: correct config.json"
            )
        if self.tokenizer_speech_size == PUBLISHED_SPEECH_SIZE and self.speech_blank is None:
            self.speech_blank, self.speech_blank_codes = PUBLISHED_BLANK, list(PUBLISHED_BLANK_CODES)
        super().__post_init__(**kwargs)

    def adapter(self) -> "SpeechLMConfig":
        """The config of the adapter's blocks: the backbone's, with its own depth, heads and widths.

        Raises:
            ConfigError: unreadable string, unknown type, or a width other than the backbone's.
        """
        if self.tts_adapter_type != "qwen3":
            raise ConfigError(f"tts_adapter_type '{self.tts_adapter_type}' is unknown: use 'qwen3'")
        try:
            layers, width, heads, inner = self.tts_adapter_config.strip("[] ").split(",")
            heads, _, group = heads.partition("_")
            layers, width, heads, inner, group = (
                int(layers),
                int(width),
                int(heads),
                int(inner),
                int(group or 1),
            )
        except ValueError:
            raise ConfigError(
                f"tts_adapter_config '{self.tts_adapter_config}' is not '[layers,width,heads_gqa,mlp]'"
            ) from None
        if width != self.hidden_size:
            raise ConfigError(
                f"the adapter is {width} wide, the backbone {self.hidden_size}: they must be equal"
            )
        config = copy.deepcopy(self)
        config.num_hidden_layers, config.layer_types = layers, ["full_attention"] * layers
        config.num_attention_heads, config.num_key_value_heads = heads, heads // group
        config.intermediate_size = inner
        return config

    def layout(self, text_pad: int | None = None, text_eos: int | None = None) -> Layout:
        """The ids of rows and control tokens (see `chunking.Layout`)."""
        return Layout(
            text_size=self.tokenizer_text_size,
            speech_size=self.tokenizer_speech_size,
            streams=self.speech_token_count,
            pre_pad=self.speech_token_pre_pad,
            text_pad=self.pad_token_id if text_pad is None else text_pad,
            text_eos=self.eos_token_id if text_eos is None else text_eos,
        )


@dataclass
class SpeechLMOutput(ModelOutput):
    """What `SpeechLM.forward` returns; absent parts are None."""

    loss: Tensor | None = None  # ()  text_weight * text_loss + speech_weight * speech_loss
    text_loss: Tensor | None = None  # ()
    speech_loss: Tensor | None = None  # ()
    text_logits: Tensor | None = None  # (B, L, T)
    speech_logits: Tensor | None = None  # (B, L, k, S)
    lm_hidden: Tensor | None = None  # (B, L, D) after the final norm
    adapter_hidden: Tensor | None = None  # (B, L, D)


def padded_on_the_right(mask: Tensor) -> bool:
    """True when every row of a (B, L) mask is ones, then zeros."""
    return bool((mask[:, 1:].int() <= mask[:, :-1].int()).all())


class TTSAdapter(nn.Module):
    """Qwen3 blocks between the backbone and the head; own attention cache, no final norm.

    Source: paper section 3.2.
    """

    def __init__(self, config: SpeechLMConfig):
        super().__init__()
        self.config = config.adapter()
        self.layers = nn.ModuleList(
            Qwen3DecoderLayer(self.config, i) for i in range(self.config.num_hidden_layers)
        )
        self.rotary_emb = Qwen3RotaryEmbedding(self.config)

    def forward(self, hidden: Tensor, attention_mask: Tensor | None, position_ids: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        # set by from_pretrained / set_attn_implementation on the backbone only after this module was built
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=hidden,
            attention_mask=attention_mask,
            past_key_values=None,
            position_ids=position_ids,
        )
        rotary = self.rotary_emb(hidden, position_ids)
        for layer in self.layers:
            hidden = layer(hidden, attention_mask=mask, position_ids=position_ids, position_embeddings=rotary)
        return hidden


class SpeechLM(Qwen3PreTrainedModel):
    """The mouth. `forward` is for training and whole sequences; `decode.py` steps row by row through a cache.

    Source: paper section 3.2, eqs. 2 to 4.
    """

    config_class = SpeechLMConfig
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    fast_path = True  # False: always the layers' own forward

    def __init__(self, config: SpeechLMConfig):
        super().__init__(config)
        self.model = Qwen3Model(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.tts_adapter = TTSAdapter(config)
        self.offsets = nn.Buffer(
            torch.empty(1 + config.speech_token_count, dtype=torch.long), persistent=False
        )  # (1 + k,)
        self.fill_offsets()
        self.post_init()

    def fill_offsets(self) -> None:
        """First id of each stream in the shared vocabulary."""
        c = self.config
        with torch.no_grad():
            self.offsets[0] = 0
            self.offsets[1:] = (
                torch.arange(c.speech_token_count, device=self.offsets.device) * c.tokenizer_speech_size
                + c.tokenizer_text_size
            )

    def _init_weights(self, module: nn.Module) -> None:
        """`from_pretrained` builds on the meta device and leaves buffers that are not in the file uninitialised."""
        super()._init_weights(module)
        if module is self:
            self.fill_offsets()

    @classmethod
    def from_backbone(cls, backbone: Qwen3ForCausalLM, config: SpeechLMConfig) -> "SpeechLM":
        """Start stage 1 from a text language model: its blocks and text rows are copied, the rest is fresh.

        Ids beyond the backbone's own vocabulary (audio control tokens, speech) keep their random rows.
        """
        model = cls(config)
        rows = min(backbone.config.vocab_size, config.tokenizer_text_size)
        weights = {k: v for k, v in backbone.model.state_dict().items() if k != "embed_tokens.weight"}
        result = model.model.load_state_dict(weights, strict=False)
        if result.unexpected_keys or result.missing_keys != ["embed_tokens.weight"]:
            raise ConfigError(
                "the text backbone has other sizes than the speech model: give both the same config"
            )
        with torch.no_grad():
            model.model.embed_tokens.weight[:rows] = backbone.model.embed_tokens.weight[:rows]
            model.lm_head.weight[:rows] = backbone.lm_head.weight[:rows]
        return model

    @classmethod
    def from_pretrained(
        cls, folder: Path | str, *args, config: SpeechLMConfig | None = None, **kwargs
    ) -> "SpeechLM":
        """As transformers does; also reads folders whose weights lie in eight bits (see `omnilib.storage`)."""
        return storage.from_pretrained(
            super().from_pretrained, SpeechLMConfig, folder, *args, config=config, **kwargs
        )

    @classmethod
    def load(cls, folder: Path | str, dtype: torch.dtype = torch.float32, device: str = "cpu") -> "SpeechLM":
        """Load a folder strictly, ready to decode; flash-attention when it is installed and `device` is a GPU.

        Raises:
            CheckpointError: missing, truncated or foreign files, or keys that do not match.
        """
        if not (Path(folder) / "config.json").is_file():
            raise CheckpointError(
                f"no config.json in {folder}: train one with `omni train speechlm` or restore the checkpoint"
            )
        attention = (
            "flash_attention_2" if device.startswith("cuda") and is_flash_attn_2_available() else "sdpa"
        )
        try:
            model, info = cls.from_pretrained(
                str(folder),
                dtype=dtype,
                attn_implementation=attention,
                output_loading_info=True,
                local_files_only=True,
            )
        except (OSError, SafetensorError, RuntimeError, ValueError) as error:
            if isinstance(error, ConfigError):
                raise
            first = str(error).strip().splitlines()[0]
            raise CheckpointError(
                f"cannot load the speech model in {folder}: {first}; restore the files or train again"
            ) from error
        wrong = {k: sorted(map(str, v))[:3] for k, v in info.items() if v and k != "error_msgs"}
        if wrong:
            raise CheckpointError(
                f"{folder} does not fit its config.json: {wrong}; restore the files or train again"
            )
        return model.to(device).eval()

    def save_pretrained(self, folder: Path | str, **kwargs) -> None:
        """HF folder under the published architecture name."""
        # views of weights laid out for decoding, once `fast_weights.prepare` was here
        whole = {name: value.contiguous() for name, value in self.state_dict().items()}
        super().save_pretrained(folder, **({"state_dict": whole} | kwargs))
        self.config.architectures = [ARCHITECTURE]
        self.config.save_pretrained(folder)

    # ---- embedding and head --------------------------------------------------------------------------------------

    def embed(self, rows: Tensor) -> Tensor:
        """Mean of the k+1 embeddings of each row (eq. 3): (..., 1 + k) -> (..., D)."""
        ids = (rows + self.offsets).view(-1, rows.shape[-1])  # (N, 1 + k)
        mean = F.embedding_bag(
            ids, self.model.embed_tokens.weight, mode="mean"
        )  # one kernel, no (N, 1 + k, D)
        return mean.view(*rows.shape[:-1], -1)

    def text_head(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., T)."""
        return F.linear(hidden, self.lm_head.weight[: self.config.tokenizer_text_size])

    def speech_head(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., k, S) (paper eq. 4)."""
        logits = F.linear(hidden, self.lm_head.weight[self.config.tokenizer_text_size :])  # (..., k S)
        return logits.unflatten(-1, (self.config.speech_token_count, self.config.tokenizer_speech_size))

    # ---- whole sequences -----------------------------------------------------------------------------------------

    def hidden(self, rows: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Hidden states of the backbone (after its norm) and of the adapter: (B, L, 1 + k) -> 2 x (B, L, D)."""
        length = rows.shape[1]
        positions = torch.arange(length, device=rows.device)[None]  # (1, L)
        if mask is not None:
            mask = mask.bool()
            rows = rows.masked_fill(~mask[..., None], 0)  # padding may hold -100
            if padded_on_the_right(mask):
                mask = None
            else:
                positions = (mask.long().cumsum(1) - 1).clamp(min=0)  # (B, L)
        embeds = self.embed(rows)  # (B, L, D)
        if mask is None and self.can_take_fast_path:
            return self.hidden_fast_path(embeds, positions)
        lm_hidden = self.model(
            inputs_embeds=embeds, attention_mask=mask, position_ids=positions, use_cache=False
        ).last_hidden_state
        return lm_hidden, self.tts_adapter(lm_hidden, mask, positions)

    @property
    def can_take_fast_path(self) -> bool:
        """Whether `blocks.block` covers this model here: float32 parameters on a CPU, a plain Qwen3, no recomputation."""
        c, weight = self.config, self.lm_head.weight
        plain = (
            not (c.attention_bias or c.attention_dropout or c.use_sliding_window) and c.hidden_act == "silu"
        )
        return (
            self.fast_path
            and plain
            and weight.dtype == torch.float32
            and not (weight.is_cuda or self.model.gradient_checkpointing)
        )

    def hidden_fast_path(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """As the rest of `hidden`, through the quick blocks: (B, L, D) -> 2 x (B, L, D)."""
        eps, device = self.config.rms_norm_eps, x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        cos, sin = (t[0, :, : t.shape[-1] // 2] for t in self.model.rotary_emb(x, positions))  # (L, H / 2)
        for layer in self.model.layers:
            x = block(layer, x, cos, sin, eps, dtype)
        lm_hidden = Normed.apply(x, self.model.norm.weight, eps, x.dtype)
        x = lm_hidden
        for layer in self.tts_adapter.layers:
            x = block(layer, x, cos, sin, eps, dtype)
        return lm_hidden, x

    def text_loss(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of the next text id over rows that have one: hidden (B, L, D), labels (B, L)."""
        target = labels[:, 1:]
        chosen = target != IGNORE
        if not chosen.any():
            return hidden.sum() * 0.0
        return F.cross_entropy(self.text_head(hidden[:, :-1][chosen]).float(), target[chosen])

    def speech_loss(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy over all labelled cells of all streams: hidden (B, L, D), labels (B, L, k).

        Source: paper section 3.2.
        """
        target = labels[:, 1:]
        chosen = (target != IGNORE).any(-1)  # (B, L - 1)
        if not chosen.any():
            return hidden.sum() * 0.0
        logits = self.speech_head(hidden[:, :-1][chosen]).float()  # (N, k, S)
        return F.cross_entropy(logits.flatten(0, 1), target[chosen].flatten(), ignore_index=IGNORE)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        text_weight: float = 1.0,
        speech_weight: float = 1.0,
        return_logits: bool | None = None,
    ) -> SpeechLMOutput:
        """Losses and, if wanted, logits of whole sequences.

        Args:
            input_ids: (B, L, 1 + k) per-stream ids without offset; not changed. Padding may hold anything.
            attention_mask: (B, L), true on live rows.
            labels: (B, L, 1 + k), same numbering, -100 ignored; row t is predicted from row t - 1.
            return_logits: also return logits of every row (default: only when there are no labels).
        """
        lm_hidden, adapter_hidden = self.hidden(input_ids, attention_mask)
        output = SpeechLMOutput(lm_hidden=lm_hidden, adapter_hidden=adapter_hidden)
        if labels is not None:
            output.text_loss = self.text_loss(lm_hidden, labels[..., 0])
            output.speech_loss = self.speech_loss(adapter_hidden, labels[..., 1:])
            output.loss = text_weight * output.text_loss + speech_weight * output.speech_loss
        if labels is None if return_logits is None else return_logits:
            output.text_logits = self.text_head(lm_hidden).float()
            output.speech_logits = self.speech_head(adapter_hidden).float()
        return output

    # ---- stages --------------------------------------------------------------------------------------------------

    def freeze_backbone(self) -> None:
        """Stage 1: the adapter and the new rows (audio control tokens, speech) of embedding and head learn, nothing else.

        The rows of old text ids get no gradient; give embedding and head no weight decay, which would still move them.

        Source: paper section 3.3.
        """
        self.model.requires_grad_(False)
        old = self.config.tokenizer_text_size - CONTROL_ROWS

        def only_new_rows(gradient: Tensor) -> Tensor:
            gradient = gradient.clone()
            gradient[:old] = 0
            return gradient

        for weight in {self.model.embed_tokens.weight, self.lm_head.weight}:
            weight.requires_grad_(True)
            weight.register_hook(only_new_rows)


AutoConfig.register(SpeechLMConfig.model_type, SpeechLMConfig)
AutoModelForCausalLM.register(SpeechLMConfig, SpeechLM)
