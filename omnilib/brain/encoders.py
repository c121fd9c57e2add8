"""The two audio encoders: windows of log-mel in, frames out (paper section 3.1).

    wave --30 s windows--> log-mel --main: Qwen2-Audio's encoder------> 25 frames a second
                                   --auxiliary: Whisper's encoder-----> 50 frames a second

Both are transformers' modules. What stands here is their common path written once, with two things that
transformers' own `forward` lacks: a window may be shorter than 30 s, and the silence that fills a shorter
window of a batch is masked. So a clip of one second costs one second, alone or beside longer ones.

Shapes: W windows, F mel frames (100 a second), N main frames (F / 4), D1, D2 widths.
"""

import itertools
import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, pad
from transformers import WhisperConfig
from transformers.masking_utils import create_bidirectional_mask
from transformers.models.qwen2_audio.configuration_qwen2_audio import Qwen2AudioEncoderConfig
from transformers.models.qwen2_audio.modeling_qwen2_audio import Qwen2AudioEncoder
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from omnilib.audio import log_mel
from omnilib.brain.config import AUX_PER_MAIN, MEL_FRAMES_PER_MAIN, MEL_HOP
from omnilib.errors import AudioError

MEL_BATCH = 8  # windows whose spectra are in memory at a time
SILENT = -1.5  # of Whisper's log-mel; where something is loud, 8 decades (2.0) below that instead
EDGE = 2 * MEL_FRAMES_PER_MAIN  # mel frames beyond the last one that the convolutions look at, and some


def window_positions(samples: int, window: int, rate: int, quirks: bool = False) -> list[int]:
    """Positions of the language model that each window of a clip takes.

    Args:
        samples: of the clip, 16 kHz.
        window: samples of a whole window.
        rate: main frames to a position.
        quirks: as published: a whole window costs its full length whatever it holds, and there is one window
            more where the clip ends with its last window.
    """
    whole = window // (MEL_HOP * MEL_FRAMES_PER_MAIN) // rate  # the remainder is dropped, as published
    if quirks:
        return [whole] * (samples // window + 1)
    full, rest = divmod(samples, window)
    last = min(whole, math.ceil(rest / (MEL_HOP * MEL_FRAMES_PER_MAIN * rate)))
    return [whole] * full + [last] * (last > 0)


def mel_windows(wave: Tensor, window: int, bins: int, quirks: bool = False) -> Tensor:
    """Log-mel of each window, the last filled with silence: (T,) at 16 kHz -> (W, bins, window / 160).

    Raises:
        AudioError: no samples.

    Source: Whisper, arXiv 2212.04356, section 2.2.
    """
    if wave.numel() == 0 and not quirks:
        raise AudioError("audio of 0 samples: give a recording with sound")
    count = len(wave) // window + 1 if quirks else math.ceil(len(wave) / window)
    rest = len(wave) - (count - 1) * window  # of the last window
    windows = pad(wave, (0, count * window - len(wave))).view(count, window)
    # levels are relative to each window's own maximum; a few at a time, as complex spectra are large
    whole = [log_mel(some, bins) for some in windows[:-1].split(MEL_BATCH)] if count > 1 else []
    heard = min(window, (rest // MEL_HOP + 4) * MEL_HOP)  # the frames behind are silent, all alike
    last = log_mel(windows[-1:, :heard], bins)
    silence = max(SILENT, float(last.max()) - 2.0)
    return torch.cat([*whole, pad(last, (0, (window - heard) // MEL_HOP), value=silence)])


def front(tower: nn.Module, mel: Tensor, frames: int, valid: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """What a Whisper-like encoder does before its layers.

    Args:
        tower: Qwen2AudioEncoder or WhisperEncoder.
        mel: (W, bins, F), F >= 2 frames.
        frames: to compute, 50 a second.
        valid: (W,) frames that are heard, None: all.

    Returns:
        (W, frames, D), and the mask of its layers.
    """
    x = gelu(tower.conv1(mel.to(tower.conv1.weight)))  # (W, D, F)
    x = gelu(tower.conv2(x)).mT[:, :frames]  # (W, frames, D)
    x = x + tower.embed_positions.weight[:frames]
    x = nn.functional.dropout(x, p=tower.dropout, training=tower.training)
    mask = None
    if valid is not None:
        mask = torch.arange(frames, device=x.device) < valid[:, None]  # (W, frames)
        mask = create_bidirectional_mask(config=tower.config, inputs_embeds=x, attention_mask=mask)
    return x, mask


def through(layers: Iterable[nn.Module], x: Tensor, mask: Tensor | None) -> Tensor:
    """Some layers, one after the other: (W, frames, D) -> the same."""
    for layer in layers:
        x = layer(x, mask)
    return x


def common_layers(main: nn.Module | None, aux: nn.Module | None) -> int:
    """How many layers both encoders begin with, weight for weight; 0 if they differ before the first."""
    if main is None or aux is None:
        return 0
    same = lambda a, b: a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)  # noqa: E731
    for part in ("conv1", "conv2", "embed_positions"):
        if not same(getattr(main, part).state_dict(), getattr(aux, part).state_dict()):
            return 0
    pairs = zip(main.layers, aux.layers)
    return sum(1 for _ in itertools.takewhile(lambda p: same(p[0].state_dict(), p[1].state_dict()), pairs))


class SpeechTower(nn.Module):
    """Main and auxiliary encoder, either of which may be absent. Names of parameters as published.

    Source: paper section 3.1.
    """

    def __init__(self, main: Qwen2AudioEncoderConfig | None, aux: WhisperConfig | None):
        super().__init__()
        self.speech_tower = Qwen2AudioEncoder(main) if main else None
        self.speech_tower_aux = WhisperEncoder(aux) if aux else None
        self.shared = 0  # first layers that are computed once for both, see `share`

    def share(self) -> int:
        """Compute the layers that both frozen encoders begin with only once; how many they are.

        The nano brain's auxiliary encoder is Whisper base with two layers trained further: four of six are shared.
        Call it again after weights have changed.
        """
        self.shared = common_layers(self.speech_tower, self.speech_tower_aux)
        return self.shared

    def forward(self, mel: Tensor, frames: Tensor | None = None) -> tuple[Tensor | None, Tensor | None]:
        """Encode some windows together.

        Args:
            mel: (W, bins, F) windows.
            frames: (W,) main frames that are heard of each; the longest of them decides what is computed.
                None: all.

        Returns:
            Main (W, N, D1) and auxiliary (W, 2 N, D2).
        """
        whole = mel.shape[-1] // MEL_FRAMES_PER_MAIN
        count = whole if frames is None else int(frames.max())
        mel = mel[..., : count * MEL_FRAMES_PER_MAIN + EDGE]
        valid = None if frames is None or bool((frames == count).all()) else frames * AUX_PER_MAIN
        start, mask, first = None, None, self.shared
        if first:  # both begin alike: once is enough
            start, mask = front(self.speech_tower, mel, count * AUX_PER_MAIN, valid)
            start = through(self.speech_tower.layers[:first], start, mask)
        outputs = []
        for tower in (self.speech_tower, self.speech_tower_aux):
            if tower is None:
                outputs.append(None)
                continue
            x, own = (start, mask) if first else front(tower, mel, count * AUX_PER_MAIN, valid)
            outputs.append(through(tower.layers[first:], x, own))  # (W, 2 N, D)
        main, aux = outputs
        if main is not None:
            main = self.speech_tower.layer_norm(self.speech_tower.avg_pooler(main.mT).mT)  # (W, N, D1)
        if aux is not None:
            aux = self.speech_tower_aux.layer_norm(aux)
        return main, aux
