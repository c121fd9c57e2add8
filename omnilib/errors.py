"""Errors a user can act on: the message is one line that says what is wrong and what to do."""

import contextlib
from collections.abc import Iterator


class UserError(ValueError):
    """Bad input or set-up. The command line prints the message and exits 2."""


class AudioError(UserError):
    """A recording is missing, unreadable, empty, too short, or holds NaN."""


class CheckpointError(UserError):
    """A checkpoint folder is missing, truncated, corrupt, or does not fit the model."""


class ConfigError(UserError):
    """A configuration key or value is wrong."""


class DataError(UserError):
    """A manifest or corpus is missing, inconsistent or unsafe."""


class MissingTool(UserError):
    """A speech engine, judge or optional package is not installed."""


class MediaError(UserError):
    """A picture or video is missing, unreadable or too large, or placeholders and media do not match."""


class LimitError(UserError):
    """A request is longer than the model's context or larger than the memory."""


@contextlib.contextmanager
def in_one_line() -> Iterator[None]:
    """Around the `main()` of a program: a `UserError` ends it with one line and a non-zero exit code."""
    try:
        yield
    except UserError as error:
        raise SystemExit(f"error: {' '.join(str(error).splitlines())}") from None
