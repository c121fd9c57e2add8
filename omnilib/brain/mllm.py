"""The brain: Qwen2.5-VL's language model with its vision tower and two audio encoders (paper section 3.1).

    pictures, videos --vision tower (Qwen2.5-VL)---------------------+
    sound --windows--> main + auxiliary encoder --projector----------+--> embeddings --language model--> text
    text ids --embedding---------------------------------------------+

Notable choices
- Backbones are transformers' modules; ours are the fusion of sound (`fusion.py`), the layout (`layout.py`)
  and their meeting here.
- A batch comes with its placeholders grown (`inputs.BrainProcessor`, `layout.grow`), so its length is known
  before anything is encoded. Features of all pictures and all recordings of a batch are put into the places
  marked -200 and -500, in order.
- Sound is encoded and fused `config.speech_batch` windows at a time: the memory of the encoders does not grow
  with length.
- Each row of a batch has its own rope delta, rows of text only included, so padded batches decode like single
  samples.
- A frozen tower stays in eval mode; one that learns (`unfreeze_mm_*_tower`) gets its gradient, which the
  released code prevents.
- Logits are computed only where they are wanted: at labels in training, at the last position in decoding.
- Names of parameters, `model_type` and architecture are those of the published checkpoints.

Shapes: B batch, L positions, D width, V vocabulary, W windows of sound, P patches of all pictures.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationMixin
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VisionTransformerPretrainedModel,
    Qwen2_5_VLPreTrainedModel,
    Qwen2_5_VLTextModel,
)
from transformers.utils import is_flash_attn_2_available

from omnilib import storage
from omnilib.brain.config import BrainConfig
from omnilib.brain.encoders import SpeechTower
from omnilib.brain.fusion import needs, positions_rate, projector_of
from omnilib.brain.layout import IGNORE, IMAGE, SPEECH
from omnilib.brain.limits import check_context, check_memory
from omnilib.brain.positions import frequencies, rope_factor, scaled
from omnilib.errors import CheckpointError, ConfigError, MediaError

ARCHITECTURE = "MGMOmniForCausalLM"  # the name in the published config.json
MEDIA = (  # of a batch
    "pixel_values",
    "image_grid_thw",
    "input_features",
    "feature_positions",
    "picture_features",
    "speech_features",
)


def attention_for(device: str, dtype: torch.dtype) -> str:
    """flash-attention if installed and able (half precision, GPU), else PyTorch's fused attention."""
    half = dtype in (torch.float16, torch.bfloat16)
    able = half and str(device).startswith("cuda") and is_flash_attn_2_available()
    return "flash_attention_2" if able else "sdpa"


class PatchProduct(nn.Conv3d):
    """A convolution over patches that do not overlap, as the matrix product it is: on a CPU fifty times as fast in training."""

    def forward(self, patches: Tensor) -> Tensor:
        """Patches (P, 3, frames, height, width) of the kernel's size -> (P, D)."""
        return F.linear(patches.flatten(1), self.weight.flatten(1))


class BrainModel(Qwen2_5_VLTextModel):
    """Language model and towers, without the head (paper section 3.1)."""

    config_class = BrainConfig

    def __init__(self, config: BrainConfig):
        super().__init__(config)
        main, aux = config.speech_tower_config, config.speech_tower_aux_config
        vision = config.vision_tower_config
        tower = Qwen2_5_VisionTransformerPretrainedModel(vision) if vision else None
        if tower:
            tower.patch_embed.proj.__class__ = PatchProduct  # same weights under the same name
        self.vision_tower = nn.ModuleDict({"vision_tower": tower} if tower else {})
        self.speech_tower = SpeechTower(main, aux) if main or aux else None
        self.mm_speech_projector = projector_of(config)
        self.post_init()

    def frozen_towers(self) -> list[nn.Module]:
        """Towers that do not learn under this config."""
        towers = [] if self.config.unfreeze_mm_vision_tower else [self.vision_tower]
        hearing = self.speech_tower if not self.config.unfreeze_mm_speech_tower else None
        return towers if hearing is None else [*towers, hearing]

    # ---- pictures ------------------------------------------------------------------------------------------

    def see(self, pixel_values: Tensor, grid_thw: Tensor) -> Tensor:
        """Patches of all pictures and videos (P, 1176) and their grids (pictures, 3) -> (P / merge^2, D).

        Source: Qwen2.5-VL, arXiv 2502.13923.
        """
        if "vision_tower" not in self.vision_tower:
            raise ConfigError(
                "this brain has no vision tower: give a config with vision_tower_config, or picture_features",
            )
        tower = self.vision_tower["vision_tower"]
        return tower(pixel_values.to(tower.dtype), grid_thw=grid_thw).pooler_output

    # ---- sound ---------------------------------------------------------------------------------------------

    def encode_speech(self, windows: Tensor, positions: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Main and auxiliary frames of some windows, for `fuse`: (W, N, D1), (W, 2 N, D2)."""
        if self.speech_tower is None:
            raise ConfigError(
                "this brain has no audio encoder: give a config with speech_tower_config, or speech_features",
            )
        frames = None if self.config.reference_quirks else positions * positions_rate(self.config)
        return self.speech_tower(windows, frames)

    def fuse(self, main: Tensor | None, aux: Tensor | None, positions: Tensor) -> Tensor:
        """Frames of both encoders -> one feature a position of all windows: (sum of positions, D).

        Source: paper section 3.1, eq. 1.
        """
        kind = self.config.mm_speech_projector_type
        if any(wanted and frames is None for wanted, frames in zip(needs(kind), (main, aux))):
            raise ConfigError(
                f"mm_speech_projector_type '{kind}' needs an audio encoder that this brain lacks",
            )
        valid = None if self.config.reference_quirks else positions * positions_rate(self.config)
        weight = next(self.mm_speech_projector.parameters(), main)
        main, aux = (frames if frames is None else frames.to(weight) for frames in (main, aux))
        features = self.mm_speech_projector(main, aux, valid)  # (W, T, D)
        kept = torch.arange(features.shape[1], device=features.device) < positions[:, None].to(
            features.device,
        )
        features = features[kept]  # (sum, D)
        return F.normalize(features, dim=-1) if self.config.speech_norm else features

    def hear(self, windows: Tensor, positions: Tensor) -> Tensor:
        """Log-mel windows (W, bins, F) and how many positions each takes (W,) -> (sum of positions, D)."""
        size = self.config.speech_batch
        batches = zip(windows.split(size), positions.split(size), strict=True)
        return torch.cat([self.fuse(*self.encode_speech(w, n), n) for w, n in batches])

    # ---- together ------------------------------------------------------------------------------------------

    def embed(
        self,
        input_ids: Tensor,
        picture_features: Tensor | None,
        speech_features: Tensor | None,
    ) -> Tensor:
        """Text, picture and speech embeddings in their places: (B, L) -> (B, L, D).

        Raises:
            MediaError: another number of features than of places for them.
        """
        embeds = self.embed_tokens(input_ids.clamp(min=0))  # (B, L, D)
        for marker, name, features in (
            (IMAGE, "picture", picture_features),
            (SPEECH, "speech", speech_features),
        ):
            places = input_ids == marker  # (B, L)
            count, given = int(places.sum()), 0 if features is None else len(features)
            if count != given:
                raise MediaError(
                    f"{count} places for {name} features but {given} features: use BrainProcessor",
                )
            if count:
                embeds = embeds.masked_scatter(places[..., None], features.to(embeds))
        return embeds


class Brain(Qwen2_5_VLPreTrainedModel, GenerationMixin):
    """The brain with its text head. `forward` trains and scores, `decode.stream` answers step by step.

    Source: paper section 3.1.
    """

    config_class = BrainConfig
    config: BrainConfig
    input_modalities = "text", "image", "video", "audio"
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _no_split_modules = [
        "Qwen2_5_VLDecoderLayer",
        "Qwen2_5_VLVisionBlock",
        "Qwen2AudioEncoderLayer",
        "WhisperEncoderLayer",
    ]
    _keys_to_ignore_on_load_unexpected = [
        r"model\.mm_projector\..*",
    ]  # built by the released code, never applied

    def __init__(self, config: BrainConfig):
        super().__init__(config)
        self.model = BrainModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        for tower in self.model.frozen_towers():
            tower.requires_grad_(False)
        self.post_init()

    def train(self, mode: bool = True) -> "Brain":
        """As any module, but frozen towers stay in eval mode (no dropout)."""
        super().train(mode)
        for tower in self.model.frozen_towers():
            tower.eval()
        return self

    # ---- loading and saving --------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(
        cls,
        folder: Path | str,
        *args,
        config: BrainConfig | None = None,
        **kwargs,
    ) -> "Brain":
        """As transformers does; also reads weights in eight bits (see `omnilib.storage`)."""
        return storage.from_pretrained(
            super().from_pretrained,
            BrainConfig,
            folder,
            *args,
            config=config,
            **kwargs,
        )

    @classmethod
    def load(cls, folder: Path | str, dtype: torch.dtype = torch.float32, device: str = "cpu") -> "Brain":
        """Load a folder that `save_pretrained` wrote, strictly, ready to answer (flash-attention if it can).

        Raises:
            CheckpointError: missing, truncated or foreign files, or keys that do not match.
        """
        if not (Path(folder) / "config.json").is_file():
            raise CheckpointError(
                f"no config.json in {folder}: give a brain's folder, or restore the checkpoint",
            )
        attention = attention_for(device, dtype)
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
                f"cannot load the brain in {folder}: {first}; restore the files or train again",
            ) from error
        wrong = {k: sorted(map(str, v))[:3] for k, v in info.items() if v and k != "error_msgs"}
        if wrong:
            raise CheckpointError(
                f"{folder} does not fit its config.json: {wrong}; restore the files or train again",
            )
        return model.to(device).eval()

    def save_pretrained(self, folder: Path | str, **kwargs) -> None:
        """HF folder under the published architecture name, towers and their configs included."""
        super().save_pretrained(folder, **kwargs)
        self.config.architectures = [ARCHITECTURE]
        self.config.save_pretrained(folder)

    # ---- whole sequences -----------------------------------------------------------------------------------

    def embed_inputs(
        self,
        input_ids: Tensor,
        pixel_values: Tensor | None = None,
        image_grid_thw: Tensor | None = None,
        input_features: Tensor | None = None,
        feature_positions: Tensor | None = None,
        picture_features: Tensor | None = None,
        speech_features: Tensor | None = None,
    ) -> Tensor:
        """Encode what is not encoded yet and put everything in its place: (B, L, D)."""
        if picture_features is None and pixel_values is not None:
            picture_features = self.model.see(pixel_values, image_grid_thw)
        if speech_features is None and input_features is not None:
            speech_features = self.model.hear(input_features, feature_positions)
        return self.model.embed(input_ids, picture_features, speech_features)

    def loss(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """One mean over all labels of the batch: hidden (B, L, D), labels (B, L) -> ()."""
        target = labels[:, 1:]
        chosen = target != IGNORE
        if not chosen.any():
            return hidden.sum() * 0.0
        return F.cross_entropy(self.lm_head(hidden[:, :-1][chosen]).float(), target[chosen])

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        labels: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_grid_thw: Tensor | None = None,
        input_features: Tensor | None = None,
        feature_positions: Tensor | None = None,
        picture_features: Tensor | None = None,
        speech_features: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool = False,
        rope_deltas: Tensor | None = None,
        return_logits: bool | None = None,
        logits_to_keep: int = 0,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """Loss and, if wanted, logits.

        Args:
            input_ids: (B, L) text ids, -200 and -500 once for each position of a picture or recording.
            attention_mask: (B, L), true on live positions.
            position_ids: (3, B, L) as `layout.collate` gives them; None: 0, 1, 2..., right only without
                pictures.
            labels: (B, L), -100 ignored; position t is predicted from position t - 1.
            pixel_values, image_grid_thw: (P, 1176) patches and (pictures, 3) grids of all pictures and videos
                of the batch, in order.
            input_features, feature_positions: (W, bins, F) log-mel windows of all recordings, in order, and
                (W,) positions of each.
            picture_features, speech_features: (n, D) computed before, in their place (`BrainModel.see`,
                `.hear`, `.fuse`).
            rope_deltas: not used here; a batch may be passed whole.
            return_logits: also return logits (default: only when there are no labels).
            logits_to_keep: only of so many last positions; 0: of all.
        """
        if inputs_embeds is None:
            media = (
                pixel_values,
                image_grid_thw,
                input_features,
                feature_positions,
                picture_features,
                speech_features,
            )
            inputs_embeds = self.embed_inputs(input_ids, *media)
        if position_ids is None and input_ids is not None and bool((input_ids == IMAGE).any()):
            raise MediaError("a batch with pictures needs position_ids: prepare it with BrainProcessor")
        if position_ids is None and attention_mask is not None and past_key_values is None:
            position_ids = (attention_mask.long().cumsum(1) - 1).clamp(min=0).expand(3, -1, -1)
        output = self.model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
        )
        hidden = output.last_hidden_state  # (B, L, D)
        result = CausalLMOutputWithPast(past_key_values=output.past_key_values)
        if labels is not None:
            result.loss = self.loss(hidden, labels)
        if labels is None if return_logits is None else return_logits:
            result.logits = self.lm_head(hidden[:, -logits_to_keep:]).float()
        return result

    # ---- decoding through transformers ---------------------------------------------------------------------

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        rope_deltas: Tensor | None = None,
        max_new_tokens: int = 512,
        **kwargs,
    ) -> Tensor:
        """transformers' `generate` (sampling, beams, stopping rules) over a left-padded batch: (B, new).

        A batch of `BrainProcessor` may be passed whole: `model.generate(**batch, max_new_tokens=64)`.

        Raises:
            LimitError: longer than the model's context, or more memory than there is.
            MediaError: the batch is padded on the right, or features do not fit their places.
        """
        names = (
            "pixel_values",
            "image_grid_thw",
            "input_features",
            "feature_positions",
            "picture_features",
            "speech_features",
        )
        media = {name: kwargs.pop(name, None) for name in names}
        kwargs.pop("labels", None)
        embeds, mask, positions, deltas = self.prepare(
            input_ids,
            attention_mask,
            position_ids,
            max_new_tokens,
            kwargs.get("num_beams", 1),
            **media,
        )
        with scaled(self, self.frequencies_for(positions, max_new_tokens)):
            return super().generate(
                inputs_embeds=embeds,
                attention_mask=mask,
                rope_positions=positions.transpose(0, 1),  # batch first: beams repeat it
                rope_deltas=deltas,
                max_new_tokens=max_new_tokens,
                use_cache=True,
                **kwargs,
            )

    def frequencies_for(self, positions: Tensor, new: int) -> tuple[Tensor, float] | None:
        """Rotary frequencies of a request beyond the trained length; None within it."""
        factor = rope_factor(self.config, int(positions.max()) + 1 + new)
        return None if factor == 1 else frequencies(self.config, factor)

    def prepare(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        max_new_tokens: int,
        copies: int = 1,
        **media,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Checks, then embeddings (B, L, D), mask (B, L), positions (3, B, L) and rope deltas (B,)."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask.long()
        if not bool(mask[:, -1].all()):
            raise MediaError(
                "decoding needs padding on the left: call the processor with padding_side='left'",
            )
        if position_ids is None:
            if bool((input_ids == IMAGE).any()):
                raise MediaError("a batch with pictures needs position_ids: prepare it with BrainProcessor")
            position_ids = (mask.cumsum(1) - 1).clamp(min=0).expand(3, -1, -1)
        last = position_ids.masked_fill(mask[None] == 0, -1).amax((0, 2))  # (B,)
        check_context(int(last.max()) + 1, max_new_tokens, self.config.context)
        check_memory(
            self,
            len(input_ids) * copies,
            input_ids.shape[1],
            max_new_tokens,
            media.get("pixel_values"),
        )
        embeds = self.embed_inputs(input_ids, **media)
        return embeds, mask, position_ids, last + 1 - mask.sum(1)

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        rope_positions: Tensor | None = None,
        rope_deltas: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        is_first_iteration: bool = False,
        **kwargs,
    ) -> dict:
        """Positions of a step: those of the prompt first, then count of live ids + the row's own delta."""
        kwargs.pop("position_ids", None)
        inputs = super().prepare_inputs_for_generation(
            input_ids,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            is_first_iteration=is_first_iteration,
            **kwargs,
        )
        embeds = inputs.get("inputs_embeds")
        count = (inputs["input_ids"] if embeds is None else embeds).shape[1]
        if is_first_iteration:
            inputs["position_ids"] = rope_positions.transpose(0, 1)[..., -count:]
        else:
            past = kwargs["past_key_values"].get_seq_length()  # transformers drops a mask without padding
            before = past if attention_mask is None else attention_mask[:, :past].sum(1)  # live ids
            steps = torch.arange(count, device=rope_deltas.device)
            inputs["position_ids"] = ((before + rope_deltas)[:, None] + steps).expand(
                3,
                -1,
                -1,
            )  # (3, B, count)
        return inputs


AutoModelForCausalLM.register(BrainConfig, Brain)
