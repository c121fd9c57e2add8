"""Drop what the recipe's rules name (`data_prep/filters.py`): the first reason found stands."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from data_prep.filters import check_rules, reason
from data_prep.pipeline import Audio, Step, dropped, register
from omnilib.errors import ConfigError


@register
@dataclass
class FilterStep(Step):
    """Apply filters in the order listed."""

    name: ClassVar[str] = "filter"
    modules: ClassVar[tuple[str, ...]] = ("data_prep.filters",)
    rules: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.rules:
            raise ConfigError("the step 'filter' needs `rules:`, e.g. {quality: {least: 3.0}}")
        check_rules(self.rules)

    def run(self, records: list[dict], audio: Audio) -> list[dict]:
        return [dropped(r, self.name, why) if (why := reason(r, self.rules)) else r for r in records]
