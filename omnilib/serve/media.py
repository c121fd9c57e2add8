"""Recordings and pictures inside requests: measured before they are decoded, then made ready for the brain.

    bytes --header: rate, length--> wave (T,) at 16 kHz          bytes --header: kind, size--> RGB picture

Nothing named in a request is opened or fetched. A `Budget` counts what one request holds in all.
"""

import base64
import binascii
import io
import re
import tempfile
from pathlib import Path

from torch import Tensor

from omnilib import recording
from omnilib.brain import media
from omnilib.errors import MissingTool, UserError
from omnilib.serve.http import Limits, Refusal

PICTURES = ("PNG", "JPEG", "WEBP", "GIF")
HIGHEST_RATE = 96_000  # Hz: at which the longest recording may come
DATA_URL = re.compile(r"data:(?P<kind>[\w.+/-]*)(;[\w.+=-]+)*;base64,")


def decoded(text: str, name: str) -> bytes:
    """Bytes of base64.

    Raises:
        Refusal: it is none.
    """
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Refusal(400, f"{name} is not base64") from None


class Budget:
    """Seconds of sound, pixels and characters that are left to a request."""

    def __init__(self, limits: Limits):
        self.limits = limits
        self.seconds, self.pixels, self.words = limits.seconds, limits.pixels, limits.words

    def text(self, words: str) -> str:
        """The words, counted.

        Raises:
            Refusal: too many.
        """
        self.words -= len(words)
        if self.words < 0:
            raise Refusal(413, f"the messages have more than {self.limits.words} characters: send fewer")
        return words

    def audio(self, data: bytes, name: str) -> Tensor:
        """A recording as the brain hears it: (T,) at 16 kHz.

        Raises:
            Refusal: too long, or nothing that can be heard.
        """
        with tempfile.TemporaryDirectory(prefix="omni-serve-") as folder:
            path = Path(folder) / "recording"
            path.write_bytes(data)
            try:
                with recording.opened(path) as file:
                    frames, rate, channels = file.frames, file.samplerate, file.channels
                if frames < recording.UNKNOWN_FRAMES:
                    self.spend(frames / rate, frames * channels, name)
                return media.load_audio(path)
            except recording.BadRecording as error:
                status = 415 if error.reason == "unreadable" else 422
                raise Refusal(status, str(error).replace(str(path), name)) from None
            except UserError as error:
                raise Refusal(422, str(error).replace(str(path), name)) from None

    def spend(self, seconds: float, samples: int, name: str) -> None:
        """Take a recording's length off what is left, before it is decoded.

        Raises:
            Refusal: too long, or too many samples for its length.
        """
        self.seconds -= seconds
        if self.seconds < 0 or samples > self.limits.seconds * HIGHEST_RATE:
            raise Refusal(
                413,
                f"{name} lasts {seconds:.0f} s ({samples:,} samples): at most {self.limits.seconds:g} s in all, "
                "mono at 16000 Hz is enough",
            )

    def picture(self, url: str, name: str):
        """A picture of a data: URL, in RGB.

        Raises:
            Refusal: another kind of address or file, too large, or damaged.
        """
        head = DATA_URL.match(url[:200])
        if head is None:
            raise Refusal(
                400, f"{name} must be data:image/png;base64,... (or jpeg, webp, gif): nothing is fetched"
            )
        if not head["kind"].startswith("image/"):
            raise Refusal(415, f"{name} says it is {head['kind'][:40] or 'text'}: send a picture")
        data = decoded(url[head.end() :], name)
        image_module, _ = media.pillow()
        try:
            image = image_module.open(io.BytesIO(data), formats=PICTURES)
        except image_module.DecompressionBombError:
            raise Refusal(413, self.too_large(name)) from None
        except image_module.UnidentifiedImageError:
            raise Refusal(415, f"{name} is not a picture that is read: send png, jpeg, webp or gif") from None
        except Exception as error:  # Pillow's readers each raise their own
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise Refusal(422, f"{name} is damaged ({reason}): send it again") from None
        self.pixels -= image.width * image.height
        if self.pixels < 0:
            raise Refusal(413, self.too_large(name))
        try:
            return media.load_picture(image)
        except MissingTool:
            raise
        except UserError as error:
            raise Refusal(422, str(error).replace("the picture", name)) from None

    def too_large(self, name: str) -> str:
        return (
            f"{name} is too large: all pictures together may have {self.limits.pixels / 1e6:g} million pixels"
        )
