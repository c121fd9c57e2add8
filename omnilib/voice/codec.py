"""Sound -> speech tokens -> sound (paper section 3.2): the four voice modules joined, offline and streaming.

    wave (16 kHz) --tokenizer--> tokens (25 Hz) --flow, in a reference voice--> mel (50 Hz) --HiFT--> wave (24 kHz)

Notable choices
- Speech of any length is spoken in blocks. The reference starts each block of 6,000 tokens from the voice prompt alone,
  and when streaming runs the whole prefix again at every hop, which is quadratic. Here a block is short and continues the
  one before it: the last tokens and mel of that block extend the voice prompt. Time is linear, memory bounded.
- Streaming computes each 25-token chunk once (`flow.FlowStream`) and carries the vocoder's phase (`hift.HiFTStream`).

Where the waves of `stream` and `decode` differ
- `decode(..., streaming=True)` and `stream` give the same samples up to float rounding, whatever the hops.
- `decode(..., streaming=False)`, the default, lets the flow see a whole block instead of the chunks to the left, so its
  mel, and with it the wave, is another (slightly better) rendering of the same tokens; block boundaries differ too.
- The reference's vocoder stream restarts the phase at each piece and sums Hamming halves that add up to 1.08. It is not
  used here; `tests/voice/test_codec.py` holds it and compares our HiFT in it with the reference's sound.

Shapes: N tokens, P prompt tokens, F = 2N mel frames, M = 80 mel bins, T samples.
"""

import copy
import math
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from omnilib import config as configs
from omnilib.audio import TOKENIZER_RATE, VOICE_RATE, fbank_80, load_wave, log_mel_128, mel_80, resample
from omnilib.captured import STATIC, to_device
from omnilib.errors import AudioError, CheckpointError, UserError
from omnilib.voice.calibration import Correction, fit
from omnilib.voice.company import Company
from omnilib.voice.flow import RATIO, Flow
from omnilib.voice.flow_batch import chunks
from omnilib.voice.hift import HiFT, sounds
from omnilib.voice.pitch import level_of, measure_pitch
from omnilib.voice.speaker import SpeakerEncoder
from omnilib.voice.tokenizer import SpeechTokenizer

TOKEN_SAMPLES = TOKENIZER_RATE // 25
TOKENIZE_SECONDS = 30  # the tokenizer hears blocks of 30 s, as in the reference
FIRST_FRAMES = 4  # mel frames of the first piece of a stream (80 ms)
SHORTEST, SILENT = 0.5, 1e-3  # seconds of a reference; peak below which it is silence


@dataclass
class CodecSettings:
    """How tokens are spoken. Nothing here changes the weights."""

    prompt_seconds: float = 6.0  # of the reference that the flow sees; more costs time in every block
    block: int = 500  # tokens spoken in one go (20 s)
    context: int = 25  # tokens of the previous block shown to the next
    steps: int = 10  # Euler steps of the flow
    precision: str = "fp32"  # of the flow's U-Net: auto, fp32, bf16, or on a GPU tf32
    static: str = "auto"  # Euler steps of fixed shape (captured_flow.py): auto (on CUDA), on, off, compiled
    calibrate: float = (
        0.0  # strength of `calibration.py`, which makes up for what the flow gets wrong of a voice; 0: off
    )
    vocoder_context: int | None = (
        None  # frames held back when streaming; None: the whole receptive field, seamless
    )

    @classmethod
    def of(cls, folder: Path) -> "CodecSettings":
        """Those of a checkpoint folder's codec.yaml, or the defaults."""
        path = Path(folder) / "codec.yaml"
        return configs.load(cls, path) if path.exists() else cls()


@dataclass
class Voice:
    """A reference recording as the model sees it."""

    tokens: Tensor  # (P,) long
    mel: Tensor  # (2 P, M)
    speaker: Tensor  # (192,)
    level: float = 0.0  # median pitch in Hz; 0: unknown
    correction: Correction | None = None  # of mels that the flow makes in this voice

    def trimmed(self, count: int) -> "Voice":
        """The same voice with at most `count` prompt tokens."""
        return replace(self, tokens=self.tokens[:count], mel=self.mel[: count * RATIO])

    def corrected(self, mel: Tensor) -> Tensor:
        """A mel of the flow (1, M, F) with this voice's correction."""
        return mel if self.correction is None else self.correction(mel)

    @property
    def levels(self) -> Tensor:
        """`level` as the flow takes it: (1,)."""
        return torch.tensor([self.level], device=self.mel.device)


def check_reference(wave: Tensor, rate: int, longest: float) -> Tensor:
    """A usable mono reference of at most `longest` seconds; warns when it trims.

    Raises:
        AudioError: too short, silent, NaN, or not one-dimensional.
    """
    if wave.dim() == 2:
        wave = wave.mean(0 if wave.shape[0] < wave.shape[1] else 1)  # channels first or last
    if wave.dim() != 1:
        raise AudioError(f"reference audio has shape {tuple(wave.shape)}: give one channel of samples")
    if not torch.isfinite(wave).all():
        raise AudioError("reference audio holds NaN or infinite samples: export it again as 16-bit wav")
    seconds = len(wave) / rate
    if seconds < SHORTEST:
        raise AudioError(
            f"reference audio lasts {seconds:.2f} s: record at least {SHORTEST} s, better 3 to 10 s"
        )
    if seconds > longest:
        warnings.warn(
            f"reference audio lasts {seconds:.0f} s: only the first {longest:.0f} s are used", stacklevel=3
        )
        wave = wave[: int(longest * rate)]
    if wave.abs().max() < SILENT:
        raise AudioError("reference audio is silent: record it again, closer to the microphone")
    return wave


def check_window(flow: Flow, hift: HiFT) -> None:
    """Both must mean the same mel.

    Raises:
        CheckpointError: their windows differ.
    """
    if (made := flow.config.mel_window) != (read := hift.config.mel_window):
        raise CheckpointError(
            f"the flow writes mels of windows of {made} samples, the vocoder reads {read}: take two that were trained together"
        )


class Codec:
    """The four modules, ready to speak.

    Example: `codec = Codec.load("checkpoints/nano"); wave = codec.decode(tokens, codec.voice_of("ref.wav"))`
    """

    def __init__(
        self,
        tokenizer: SpeechTokenizer,
        speaker: SpeakerEncoder,
        flow: Flow,
        hift: HiFT,
        settings: CodecSettings | None = None,
    ):
        self.tokenizer, self.speaker = tokenizer.eval(), speaker.eval()
        self.flow, self.hift = flow.eval(), hift.eval()
        self.settings = settings or CodecSettings()
        check_window(flow, hift)
        if self.settings.static not in STATIC:
            raise UserError(
                f"the codec's static is '{self.settings.static}': choose one of {', '.join(STATIC)}"
            )
        if not 0 <= self.settings.calibrate < math.inf:
            raise UserError(
                f"the codec's calibrate is {self.settings.calibrate}: give 0 (off) or more, such as 10"
            )
        flow.decoder.static = self.settings.static
        if self.settings.precision != "fp32":
            flow.set_precision(self.settings.precision)

    @classmethod
    def load(
        cls, folder: str | Path, settings: CodecSettings | None = None, device: str | torch.device = "cpu"
    ) -> "Codec":
        """Read checkpoints/<scale>: one folder each for tokenizer, speaker, flow and hift; settings are those of codec.yaml,
        if there is one, unless given. The precision is chosen for `device`.

        Raises:
            CheckpointError, ConfigError: a part is missing, truncated, or of another model.
            UserError: the device has not got the precision.
        """
        folder = Path(folder)
        tokenizer, speaker = (
            SpeechTokenizer.load(folder / "tokenizer"),
            SpeakerEncoder.load(folder / "speaker"),
        )
        flow, hift = Flow.load(folder / "flow"), HiFT.load(folder / "hift").fold_weight_norm()
        parts = (part.to(device) for part in (tokenizer, speaker, flow, hift))
        return cls(*parts, settings or CodecSettings.of(folder))

    def to(self, device: str | torch.device) -> "Codec":
        for module in (self.tokenizer, self.speaker, self.flow, self.hift):
            module.to(device)
        return self

    def meet(self) -> "Codec":
        """From now on streams of several threads compute what is due at the same time in one batch (`company.py`)."""
        self.flow.company, self.hift.company = Company(chunks), Company(sounds)
        return self

    @property
    def device(self) -> torch.device:
        return next(self.flow.parameters()).device

    # ------------------------------------------------------------------------------------------ sound -> tokens

    @torch.inference_mode()
    def tokenize(self, wave: Tensor) -> Tensor:
        """16 kHz wave (T,) -> tokens (N,) at 25 Hz, block by block of 30 s."""
        blocks = wave.to(self.device).split(TOKENIZE_SECONDS * TOKENIZER_RATE)
        if len(blocks) > 1 and len(blocks[-1]) < TOKEN_SAMPLES:
            blocks = blocks[:-1]  # a rest of less than one token
        tokens = []
        for block in blocks:
            codes, lengths = self.tokenizer.encode(log_mel_128(block)[None])
            tokens.append(codes[0, : int(lengths[0])])
        return torch.cat(tokens)

    def mel(self, wave: Tensor) -> Tensor:
        """The mel that this flow writes and this vocoder reads: 24 kHz wave (T,) or (B, T) -> (M, F) or (B, M, F)."""
        return mel_80(wave, window=self.flow.config.mel_window)

    @torch.inference_mode()
    def voice(self, wave: Tensor, rate: int) -> Voice:
        """A reference recording (T,) -> what the flow needs to imitate it.

        Tokens and mel are cut to the same time, as in the reference: `min(mel frames // 2, tokens)` tokens.
        A trailing fraction of a token is dropped with them.

        Raises:
            AudioError: the recording is too short, silent, or holds NaN.
        """
        wave = check_reference(wave.to(self.device, torch.float32), rate, TOKENIZE_SECONDS)
        wave = resample(
            wave, rate, TOKENIZER_RATE
        )  # (T,): the mel comes from it as well, so both end together
        tokens = self.tokenize(wave)  # (N,)
        spoken = resample(wave, TOKENIZER_RATE, VOICE_RATE)
        mel = self.mel(spoken).T  # (F, M)
        speaker = self.speaker(fbank_80(wave)[None])[0]  # (192,)
        count = min(len(mel) // RATIO, len(tokens))
        level = level_of(measure_pitch(spoken[None])).item()
        voice = Voice(tokens[:count], mel[: count * RATIO], speaker, level)
        if self.settings.calibrate:
            made = torch.cat([mel for mel, _ in self.mel_blocks(voice.tokens, voice)], -1)[0].T  # (F, M)
            voice.correction = fit(made, voice.mel, self.settings.calibrate)
        return voice

    def voice_of(self, path: str | Path) -> Voice:
        """`voice` of an audio file.

        Raises:
            AudioError: the file is missing, not audio, too short, silent, or holds NaN.
        """
        return self.voice(load_wave(path, TOKENIZER_RATE), TOKENIZER_RATE)

    # ------------------------------------------------------------------------------------------ tokens -> sound

    @torch.inference_mode()
    def decode(self, tokens: Tensor, voice: Voice, streaming: bool = False) -> Tensor:
        """Speak tokens (N,) in a voice: (960 N,) samples at 24 kHz; see the module docstring for `streaming`.

        Raises:
            AudioError: no tokens.
        """
        if len(tokens) == 0:
            raise AudioError("no speech tokens to speak: the text gave no sound")
        if streaming:
            return torch.cat(list(self.stream([tokens], voice)))
        vocoder = self.hift.stream()
        mels = self.mel_blocks(tokens.to(self.device), voice)
        pieces = [vocoder.push(mel, last) for mel, last in mels]
        return torch.cat(pieces, dim=1)[0]

    def mel_blocks(self, tokens: Tensor, voice: Voice) -> Iterator[tuple[Tensor, bool]]:
        """Mel (1, M, F) of one block after the other, all of about the same size, and whether it is the last."""
        s, voice = self.settings, voice.trimmed(round(self.settings.prompt_seconds * 25))
        ahead = self.flow.config.encoder.look_ahead
        count = -(-len(tokens) // s.block)
        edges = [round(i * len(tokens) / count) for i in range(count + 1)]
        prompt, prompt_mel = voice.tokens, voice.mel
        for start, end in zip(edges[:-1], edges[1:], strict=True):
            last = end == len(tokens)
            block = tokens[start : end + ahead]
            finalize = len(block) < end - start + ahead  # not enough tokens left to look ahead
            mel = self.flow.inference(
                block[None], prompt[None], prompt_mel[None], voice.speaker[None], False, finalize, s.steps,
                level=voice.levels,
            )  # fmt: skip
            mel = voice.corrected(mel[..., : (end - start) * RATIO])
            yield mel, last
            prompt = torch.cat([voice.tokens, tokens[max(start, end - s.context) : end]])
            prompt_mel = torch.cat([voice.mel, mel[0].T[-s.context * RATIO :]])

    @torch.inference_mode()
    def warm(self, voice: Voice, first_hop: int | None = None) -> "MelStream":
        """Compute the prompt's share of a stream ahead of time; give the result to `stream` in place of the voice."""
        return MelStream(self, voice, first_hop or self.first_hop)

    @property
    def first_hop(self) -> int:
        """Tokens whose mel outgrows what the vocoder holds back by `FIRST_FRAMES`, so that the first hop is heard."""
        context = self.hift.stream(self.settings.vocoder_context).context
        return min(-(-(context + FIRST_FRAMES) // RATIO), self.flow.config.encoder.chunk)

    @torch.inference_mode()
    def stream(
        self,
        tokens: Iterable[Tensor | list[int]],
        voice: "Voice | MelStream",
        first_hop: int | None = None,
        hop: int = 25,
    ) -> Iterator[Tensor]:
        """Speak tokens while they are born: yields wave pieces (n,) at 24 kHz, together 960 samples a token.

        Args:
            tokens: pieces of any size.
            voice: a voice, or what `warm` made of it (its `first_hop` counts then; it can be used many times).
            first_hop: tokens before the first mel (plus the flow's look-ahead of 3); by default just as many as the
                vocoder needs to speak. The next chunk needs 25 more, so a player buffers or waits in between.
            hop: tokens collected for each later piece; the flow works in whole chunks of 25.
        """
        mels = voice.fork() if isinstance(voice, MelStream) else self.warm(voice, first_hop)
        vocoder = self.hift.stream(self.settings.vocoder_context)
        waiting, spoken = [], 0
        for piece in tokens:
            piece = torch.as_tensor(piece, dtype=torch.long)
            waiting.append(to_device(piece, self.device).reshape(-1))
            ready = sum(map(len, waiting))
            if spoken and ready < hop:
                continue
            wave = vocoder.push(mels.push(torch.cat(waiting)))[0]
            waiting = []
            if len(wave):
                spoken += len(wave)
                yield wave
        wave = vocoder.push(mels.push(torch.cat([mels.queue[:0], *waiting]), last=True), last=True)[0]
        if len(wave):
            yield wave


class MelStream:
    """Tokens in, mel out, for speech of any length: a chain of `FlowStream`s of `settings.block` tokens each.

    The flow computes whole chunks, counted from the start of the prompt. The prompt is cut so that its last chunk lacks
    `first_hop` tokens: that many tokens (and the look-ahead) give the first mel.
    """

    def __init__(self, codec: Codec, voice: Voice, first_hop: int):
        s, encoder = codec.settings, codec.flow.config.encoder
        chunk, self.ahead = encoder.chunk, encoder.look_ahead
        assert 1 <= first_hop <= chunk, f"first_hop must be 1 .. {chunk}, got {first_hop}"
        self.codec, self.chunk = codec, chunk
        longest = min(len(voice.tokens), round(s.prompt_seconds * 25))
        self.voice = voice.trimmed(max(0, (longest + first_hop) // chunk * chunk - first_hop))
        self.block = -(-s.block // chunk) * chunk + first_hop
        self.context = -(-s.context // chunk) * chunk
        self.queue = voice.tokens[:0]  # tokens not yet given to the flow
        self.begin(voice.tokens[:0], voice.mel[:0])

    def begin(self, tokens: Tensor, mel: Tensor) -> None:
        """Start a block that continues `tokens` and their `mel`."""
        prompt, prompt_mel = torch.cat([self.voice.tokens, tokens]), torch.cat([self.voice.mel, mel])
        self.flow = self.codec.flow.stream(
            prompt[None], prompt_mel[None], self.voice.speaker[None], self.codec.settings.steps, self.voice.levels
        )  # fmt: skip
        self.given, self.tail = tokens[:0], mel[:0]  # tokens of this block so far; its newest mel

    def fork(self) -> "MelStream":
        """A twin that goes on from here by itself."""
        twin = copy.copy(self)
        twin.flow = self.flow.fork()
        return twin

    def push(self, tokens: Tensor, last: bool = False) -> Tensor:
        """Mel (1, M, F) that `tokens` (N,) complete; with `last` also of the rest."""
        self.queue = torch.cat([self.queue, tokens])
        limit, mels = self.block + self.ahead, []
        while True:
            take = self.queue[: limit - len(self.given)]
            self.queue = self.queue[len(take) :]
            final = last and len(self.queue) == 0
            mel = self.voice.corrected(self.flow.push(take[None], last=final))
            mels.append(mel)
            self.given = torch.cat([self.given, take])
            self.tail = torch.cat([self.tail, mel[0].T])[-self.context * RATIO :]
            if final or len(self.given) < limit:
                return torch.cat(mels, dim=-1)
            self.queue = torch.cat([self.given[self.block :], self.queue])
            self.begin(self.given[self.block - self.context : self.block], self.tail)
