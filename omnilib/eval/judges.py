"""The judges: who hears what was said (Whisper) and who said it (Resemblyzer). PAPER section 5, DESIGN section 6.

A judge is never trained on, tuned on or used to filter what it scores. Both run offline from PyPI packages:
  - `Whisper`: faster-whisper over a CTranslate2 folder. Default is Whisper `base`, whose model.bin ships in two parts in
    two packages; they are joined once, atomically, and checked by sha256. A folder or a hub id may be given instead.
  - `SpeakerJudge`: the Resemblyzer network rebuilt here, its weights read with `weights_only=True`. Importing the
    package itself would unpickle a checkpoint without that guard, so only its data file is used.

Long audio is cut into 28 s pieces and the transcripts are joined, as in Long-TTS-Eval. Every piece is padded to 30 s, as published: in a
shorter window the model stops before the end of a sentence now and then. Decoding is beam search at temperature 0, never sampling, so
one wave always gets the same transcript.

Shape legend: T samples, F mel frames, N partial utterances, E embedding width (256).
"""

import os
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import soxr
import torch
from torch import nn

from omnilib.errors import AudioError, MissingTool
from omnilib.eval.normalize import check_language
from omnilib.packages import INSTALL, file_sha256, joined_base_folder, package_folder

RATE = 16_000  # both judges listen at 16 kHz
PIECE_SECONDS = 28.0  # PAPER section 5
FRAMES = 3000  # 30 s: the window Whisper was trained on
LOOPING = 2.4  # compression ratio of a transcript above which Whisper takes it for a loop
NO_SPEECH, UNSURE = 0.6, -1.0  # faster-whisper's own rule for saying nothing
QUIET = (
    1e-3  # root mean square (-60 dB of full scale) of the loudest 30 ms under which a piece holds no speech
)


def as_mono_16k(wave: np.ndarray | torch.Tensor, rate: int) -> np.ndarray:
    """Float32 mono samples at 16 kHz: (T,).

    Raises:
        AudioError: no samples, or NaN.
    """
    samples = np.asarray(wave, dtype=np.float32)
    samples = samples.mean(axis=0) if samples.ndim == 2 else samples
    if samples.size == 0:
        raise AudioError("nothing to judge: the wave holds no samples")
    if not np.isfinite(samples).all():
        raise AudioError("cannot judge a wave that holds NaN or infinity")
    return samples if rate == RATE else soxr.resample(samples, rate, RATE).astype(np.float32)


class Whisper:
    """Speech to text with the language forced.

    Args:
        source: None for the environment variable OMNILIB_WHISPER, else Whisper base from its packages; a folder; or a hub id.
        workers: transcriptions that run side by side, one thread each; None takes every core.
    """

    def __init__(
        self,
        source: str | Path | None = None,
        workers: int | None = None,
        beam: int = 5,
        compute: str = "int8",
    ):
        try:
            from faster_whisper import WhisperModel
        except ImportError:
            raise MissingTool(f"faster-whisper is not installed: {INSTALL}") from None
        source = str(source or os.environ.get("OMNILIB_WHISPER") or joined_base_folder())
        self.beam, workers = beam, workers or os.cpu_count() or 1
        try:
            self.model = WhisperModel(
                source, device="cpu", compute_type=compute, cpu_threads=1, num_workers=workers
            )
        except Exception as error:  # the hub client and CTranslate2 raise many kinds for a folder that is not there or not a model
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise MissingTool(
                f"cannot load the Whisper judge '{source}': {reason}; give a faster-whisper folder or a hub id"
            ) from None
        self.pool = ThreadPoolExecutor(workers, thread_name_prefix="judge")
        weights = Path(source) / "model.bin"
        mark = file_sha256(weights)[:12] if weights.is_file() else "hub"
        self.id = (
            f"faster-whisper {Path(source).name}@{mark} {compute} beam {beam} temperature 0 pieces {PIECE_SECONDS:g} s window 30 s "
            f"loop guard {LOOPING:g}"
        )

    def submit(self, wave: np.ndarray | torch.Tensor, rate: int, language: str) -> Callable[[], str]:
        """Start listening in the background; call the result for the transcript. A wave may have any length."""
        check_language(language)
        waiting = [self.pool.submit(self.hear, piece, language) for piece in pieces(as_mono_16k(wave, rate))]
        gap = "" if language == "zh" else " "  # Chinese is written without spaces
        return lambda: gap.join(text for text in (piece.result() for piece in waiting) if text)

    def transcribe(self, wave: np.ndarray | torch.Tensor, rate: int, language: str) -> str:
        """Transcript of one wave."""
        return self.submit(wave, rate, language)()

    def hear(self, samples: np.ndarray, language: str) -> str:
        """Transcript of at most 30 s at 16 kHz: one window, one beam search, no timestamps; of silence, nothing.

        The model is asked only where there is sound: in 15 s of zeros it hears "you". The rule leaves every transcript of a
        recording with speech as it is (our quietest is 40 dB louder), so it is no part of the judge's id.

        A text that compresses by more than LOOPING is a decoder caught in a loop ("5, 5, 5, ..."), Whisper's own rule (arXiv
        2212.04356, section 4.5). Whisper then samples at rising temperatures; here the search is run again, once, without
        repeating three tokens, so that a figure is the same whenever it is measured.
        """
        if silent(samples):
            return ""
        from faster_whisper.audio import pad_or_trim
        from faster_whisper.tokenizer import Tokenizer
        from faster_whisper.transcribe import get_suppressed_tokens

        mel = pad_or_trim(self.model.feature_extractor(samples), FRAMES)  # (80, FRAMES)
        tokenizer = Tokenizer(self.model.hf_tokenizer, True, task="transcribe", language=language)
        encoded, prompt = (
            self.model.encode(mel),
            self.model.get_prompt(tokenizer, [], without_timestamps=True),
        )
        search = partial(
            self.model.model.generate,
            encoded,
            [prompt],
            beam_size=self.beam,
            max_length=self.model.max_length,
            suppress_blank=True,
            suppress_tokens=list(get_suppressed_tokens(tokenizer, [-1])),
            return_scores=True,
            return_no_speech_prob=True,
        )
        result = search()[0]
        if loops(tokenizer.decode(result.sequences_ids[0])):
            result = search(no_repeat_ngram_size=3)[0]
        ids = result.sequences_ids[0]
        confidence = (
            result.scores[0] * len(ids) / (len(ids) + 1)
        )  # mean log probability, as faster-whisper counts it
        unheard = result.no_speech_prob > NO_SPEECH and confidence < UNSURE
        return "" if unheard else tokenizer.decode(ids).strip()


def silent(samples: np.ndarray) -> bool:
    """Whether no 30 ms of a 16 kHz wave (T,) are loud enough to be speech; a constant offset is no sound."""
    size = 3 * RATE // 100
    frames = np.pad(samples - samples.mean(dtype=np.float64), (0, -len(samples) % size)).reshape(
        -1, size
    )  # (N, size)
    return bool(np.square(frames, dtype=np.float64).mean(axis=1).max() < QUIET**2)


def loops(text: str) -> bool:
    """Whether a transcript says the same again and again."""
    data = text.strip().encode()
    return bool(data) and len(data) / len(zlib.compress(data)) > LOOPING


def pieces(samples: np.ndarray, seconds: float = PIECE_SECONDS) -> list[np.ndarray]:
    """Consecutive cuts of at most `seconds`; a rest shorter than 0.1 s is dropped unless it is all there is."""
    size = round(seconds * RATE)
    cuts = [samples[i : i + size] for i in range(0, len(samples), size)]
    return cuts[:-1] if len(cuts) > 1 and len(cuts[-1]) < RATE // 10 else cuts


LEVEL_DB = -25.0
PARTIAL = 160  # frames of one partial utterance (1.6 s)
STEP = 77  # frames between two partials (1.3 a second)
BATCH = 16  # partials that go through the network together


def partial_starts(samples: int) -> list[int]:
    """First frame of each partial utterance; the last may reach past the end by a quarter of its length."""
    frames = -(-(samples + 1) // 160)
    starts = list(range(0, max(1, frames - PARTIAL + STEP + 1), STEP))
    covered = (samples / 160 - starts[-1]) / PARTIAL
    return starts[:-1] if covered < 0.75 and len(starts) > 1 else starts


class VoiceNetwork(nn.Module):
    """Resemblyzer's encoder (GE2E, Wan et al. 2018): three LSTM layers over a 40-bin mel, last state -> ReLU -> unit norm."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(40, 256, 3, batch_first=True)
        self.linear = nn.Linear(256, 256)

    def forward(self, mels: torch.Tensor) -> torch.Tensor:
        """(N, 160, 40) -> (N, E)."""
        _, (hidden, _) = self.lstm(mels)
        return nn.functional.normalize(torch.relu(self.linear(hidden[-1])), dim=1)


class SpeakerJudge:
    """Who speaks: the cosine of two unit vectors says how alike two voices are."""

    def __init__(self) -> None:
        folder = package_folder("resemblyzer")
        try:
            import librosa
            import webrtcvad
        except ImportError as error:
            raise MissingTool(f"the speaker judge needs {error.name}: {INSTALL}") from None
        if folder is None or not (folder / "pretrained.pt").is_file():
            raise MissingTool(
                f"the speaker judge is not installed: pip install --no-deps Resemblyzer==0.1.4 (and {INSTALL})"
            )
        weights = folder / "pretrained.pt"
        state = torch.load(weights, map_location="cpu", weights_only=True)["model_state"]
        self.network = VoiceNetwork().eval()
        self.network.load_state_dict(
            {k: v for k, v in state.items() if k.split(".")[0] in ("lstm", "linear")}
        )
        self.filters = librosa.filters.mel(sr=RATE, n_fft=400, n_mels=40)
        self.vad = webrtcvad.Vad
        self.id = f"resemblyzer 0.1.4@{file_sha256(weights)[:12]} level {LEVEL_DB:g} dB"

    def mel(self, samples: np.ndarray) -> np.ndarray:
        """Power mel, not logged: (F, 40)."""
        spectrum = torch.stft(
            torch.from_numpy(samples),
            400,
            160,
            window=torch.hann_window(400),
            center=True,
            pad_mode="constant",
            return_complex=True,
        )
        return (self.filters @ spectrum.abs().square().numpy()).T.astype(np.float32)

    def speech_only(self, samples: np.ndarray) -> np.ndarray:
        """Bring to one level, then shorten silences as Resemblyzer does (30 ms decisions, smoothed over 8).

        The package itself only raises audio below -30 dBFS; then 10 dB of level moves the cosine of one and the same wave
        by 0.17, and a quieter vocoder would look like another speaker.
        """
        level = 20 * np.log10(np.sqrt(np.mean(samples**2)) + 1e-9)
        samples = samples * 10 ** ((LEVEL_DB - level) / 20)
        window = 480
        samples = samples[: len(samples) - len(samples) % window]
        pcm = (np.clip(samples, -1, 1) * 32767).round().astype("<i2").tobytes()
        vad = self.vad(3)
        voiced = np.array(
            [vad.is_speech(pcm[i : i + 2 * window], RATE) for i in range(0, len(pcm), 2 * window)],
            dtype=float,
        )
        padded = np.concatenate([np.zeros(3), voiced, np.zeros(4)])
        smooth = np.round(np.convolve(padded, np.ones(8) / 8, "valid"))
        keep = np.convolve(smooth, np.ones(7), "same") > 0
        return samples[np.repeat(keep, window)]

    def partials(self, samples: np.ndarray) -> np.ndarray | None:
        """Mels of the partial utterances of a mono wave at 16 kHz, (N, 160, 40); None where there is no speech."""
        enough = RATE // 4
        speech = self.speech_only(samples) if len(samples) >= enough else samples
        if len(speech) < enough:
            return None
        starts = partial_starts(len(speech))
        end = (starts[-1] + PARTIAL) * 160
        mel = self.mel(np.pad(speech, (0, max(0, end - len(speech)))))  # (F, 40)
        return np.stack([mel[i : i + PARTIAL] for i in starts])

    @torch.inference_mode()
    def embed_all(self, waves: Sequence[np.ndarray | torch.Tensor], rate: int) -> list[np.ndarray | None]:
        """Unit vectors (E,), each the mean over partial utterances of 1.6 s; None where no speech was found.

        Partials of several waves share a batch: half the time of one wave after the other.
        """
        mels = [self.partials(as_mono_16k(wave, rate)) for wave in waves]
        found = [m for m in mels if m is not None]
        if not found:
            return [None] * len(mels)
        rows = torch.cat(
            [self.network(part) for part in torch.from_numpy(np.concatenate(found)).split(BATCH)]
        ).numpy()
        parts = iter(np.split(rows, np.cumsum([len(m) for m in found])[:-1]))
        means = [None if m is None else next(parts).mean(0) for m in mels]
        return [None if v is None else v / np.linalg.norm(v) for v in means]

    def embed(self, wave: np.ndarray | torch.Tensor, rate: int) -> np.ndarray:
        """Unit vector (E,) of one wave.

        Raises:
            AudioError: no speech found.
        """
        (vector,) = self.embed_all([wave], rate)
        if vector is None:  # judging music or noise, or a clip too quiet for the detector
            raise AudioError("the speaker judge found less than 0.25 s of speech")
        return vector
