"""What a step of the pipeline is, and the table of those that recipes can name."""

import importlib
import inspect
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from pathlib import Path
from typing import ClassVar

from data_prep.pipeline.audio import Audio
from data_prep.pipeline.files import digest, file_digest


@dataclass
class Step(ABC):
    """A step of the pipeline. A subclass is a dataclass under `@register`: its fields are its parameters in
    the recipe.

    `run` is pure: the same records give the same result, in any company ("map") or given all of them
    ("all"). It returns every record it got: itself, changed copies, new records (`parent`, or `parts` with
    the ids they are made of) or with `dropped(record, step.name, reason)`. The runner stops a step that
    loses a record.
    """

    name: ClassVar[str]
    scope: ClassVar[str] = "map"  # "map": a part at a time; "all": every record at once
    modules: ClassVar[
        tuple[str, ...]
    ] = ()  # further modules whose code decides the result, e.g. ("data_prep.filters",)
    gpus: float = 0.0  # what a Ray actor of it asks for; does not change the result
    cpus: float = 1.0

    def open(self) -> None:  # noqa: B027  a step without models needs none
        """Load models; called once a worker."""

    @abstractmethod
    def run(self, records: list[dict], audio: Audio) -> list[dict]:
        """The step itself."""

    def parameters(self) -> dict:
        return {
            f.name: getattr(self, f.name) for f in fields(self) if f.init and f.name not in ("gpus", "cpus")
        }

    def code(self) -> str:
        """Hash of the source files that decide the result."""
        files = [inspect.getsourcefile(type(self))] + [
            importlib.import_module(m).__file__ for m in self.modules
        ]
        return digest("".join(file_digest(Path(f)) for f in files).encode())


STEPS: dict[str, type[Step]] = {}


def register(cls: type[Step]) -> type[Step]:
    """Make a step known to recipes under its `name`."""
    cls = cls if "__dataclass_fields__" in cls.__dict__ else dataclass(cls)
    STEPS[cls.name] = cls
    return cls


def dropped(record: dict, step: str, reason: str) -> dict:
    """The record, marked as dropped."""
    return record | {"dropped": {"step": step, "reason": reason}}
