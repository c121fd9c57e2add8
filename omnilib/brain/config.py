"""The brain's config: Qwen2.5-VL's text fields, its three towers, and how sound is fused (paper section 3.1).

Field names are those of the published `config.json`. Three fields are new, `vision_tower_config`,
`speech_tower_config` and `speech_tower_aux_config`: published folders name other folders for the towers, ours
carry the towers' configs themselves. A tower whose config is None does not exist: the model then takes
features that were computed before.
"""

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, WhisperConfig
from transformers.configuration_utils import SubConfigSpec
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import (
    Qwen2_5_VLTextConfig,
    Qwen2_5_VLVisionConfig,
)
from transformers.models.qwen2_audio.configuration_qwen2_audio import Qwen2AudioEncoderConfig

from omnilib.errors import ConfigError

MAIN_WIDTH, AUX_WIDTH = 1280, 1280  # Qwen2-Audio's encoder, Whisper-large-v3's encoder
MEL_FRAMES_PER_MAIN = 4  # 100 mel frames a second, 25 main frames a second
AUX_PER_MAIN = 2
LONG_POSITIONS = "none", "linear", "ntk", "yarn"
MEL_HOP = 160  # samples of a mel frame at 16 kHz


@strict
class BrainConfig(Qwen2_5_VLTextConfig):
    """Sizes and settings of a brain (paper section 3.1).

    Raises:
        ConfigError: fields that contradict each other.
    """

    model_type = "MGMOmni"
    base_config_key = ""
    sub_configs_defaults = {
        "vision_tower_config": SubConfigSpec(config_class=Qwen2_5_VLVisionConfig, optional=True),
        "speech_tower_config": SubConfigSpec(config_class=Qwen2AudioEncoderConfig, optional=True),
        "speech_tower_aux_config": SubConfigSpec(config_class=WhisperConfig, optional=True),
    }

    vision_tower_config: dict | Qwen2_5_VLVisionConfig | None = None
    speech_tower_config: dict | Qwen2AudioEncoderConfig | None = None  # main encoder, 25 Hz
    speech_tower_aux_config: dict | WhisperConfig | None = None  # auxiliary encoder, 50 Hz
    tie_word_embeddings: bool = False

    mm_speech_projector_type: str = "dual_mlp"  # how the two encoders are fused: see `fusion.KINDS`
    speech_encoder_ds_rate: int = 5  # main frames (40 ms) that become one position of the language model
    speech_encoder_hidden_size: int | None = None  # main + auxiliary width, as published; derived if absent
    speech_projector_width: int | None = None  # between the projector's layers; published: see `fusion`
    speech_norm: bool = False  # speech features have length 1
    unfreeze_mm_vision_tower: bool = False  # the tower learns
    unfreeze_mm_speech_tower: bool = False

    speech_batch: int = 8  # windows of sound that are encoded at a time: bounds memory, changes no result
    video_fps: float = 2.0  # frames taken from a video file a second ...
    video_max_frames: int = 16  # ... and at most
    long_positions: str = "none"  # how positions beyond the trained length are told apart: see `positions`
    longest: int | None = None  # positions that a request may have then; None: the trained length
    reference_quirks: bool = False  # padding heard and not trimmed: see README.md

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if self.speech_encoder_ds_rate < 1 or self.speech_batch < 1:
            raise ConfigError(
                "speech_encoder_ds_rate and speech_batch must be at least 1: correct config.json",
            )
        if self.video_max_frames < 1 or not self.video_fps > 0:
            raise ConfigError(
                "video_max_frames must be at least 1 and video_fps above 0: correct config.json",
            )
        if self.long_positions not in LONG_POSITIONS:
            raise ConfigError(
                f"long_positions '{self.long_positions}' is unknown: use {', '.join(LONG_POSITIONS)}",
            )
        main, aux, vision = self.speech_tower_config, self.speech_tower_aux_config, self.vision_tower_config
        hears = [(tower.num_mel_bins, tower.max_source_positions) for tower in (main, aux) if tower]
        if len(set(hears)) > 1:
            raise ConfigError(
                "the audio encoders differ in mel bins or window length: both must hear the same windows",
            )
        if vision and vision.out_hidden_size != self.hidden_size:
            raise ConfigError(
                f"the vision tower gives {vision.out_hidden_size} numbers, not {self.hidden_size}",
            )

    @property
    def context(self) -> int:
        """Positions that a request, prompt and answer, may have."""
        scaled = self.long_positions != "none" and self.longest
        return max(self.max_position_embeddings, self.longest) if scaled else self.max_position_embeddings

    @property
    def main_width(self) -> int:
        """Width of the main audio encoder."""
        return self.speech_tower_config.d_model if self.speech_tower_config else MAIN_WIDTH

    @property
    def aux_width(self) -> int:
        """Width of the auxiliary audio encoder."""
        if self.speech_tower_aux_config:
            return self.speech_tower_aux_config.d_model
        dual = self.speech_encoder_hidden_size or 0
        return dual - self.main_width if dual > self.main_width else AUX_WIDTH

    @property
    def mel_bins(self) -> int:
        """Bands of the log-mel spectrum that the audio encoders take."""
        tower = self.speech_tower_config or self.speech_tower_aux_config
        return tower.num_mel_bins if tower else 128

    @property
    def window_samples(self) -> int:
        """Samples (16 kHz) of one window: 30 s in the published models."""
        tower = self.speech_tower_config or self.speech_tower_aux_config
        return 2 * MEL_HOP * (tower.max_source_positions if tower else 1500)

    @property
    def merge(self) -> int:
        """Patches that become one position of the language model, along one side."""
        return self.vision_tower_config.spatial_merge_size if self.vision_tower_config else 2


def smoke_config(vocab_size: int, window_seconds: float = 2.0, **fields) -> BrainConfig:
    """A brain of some 30 thousand numbers with every part, for tests and dry runs; windows are short.

    Args:
        vocab_size: of the tokenizer.
        window_seconds: of one window of sound.
        fields: replace any other.
    """
    audio = dict(
        num_mel_bins=16,
        max_source_positions=int(window_seconds * 50),
        encoder_layers=1,
        encoder_attention_heads=2,
    )
    settings = dict(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 3, 3]},
        max_position_embeddings=2048,
        bos_token_id=None,
        eos_token_id=None,
        vision_tower_config=Qwen2_5_VLVisionConfig(
            depth=2,
            hidden_size=16,
            num_heads=2,
            intermediate_size=24,
            fullatt_block_indexes=[1],
            out_hidden_size=32,
        ),
        speech_tower_config=Qwen2AudioEncoderConfig(d_model=16, encoder_ffn_dim=24, **audio),
        speech_tower_aux_config=WhisperConfig(d_model=12, encoder_ffn_dim=20, **audio),
        speech_projector_width=24,
    )
    return BrainConfig(**(settings | fields))


AutoConfig.register(BrainConfig.model_type, BrainConfig)
