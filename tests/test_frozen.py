"""The frozen subset as plain records."""

import pytest

from omnilib import frozen
from omnilib.errors import DataError
from omnilib.eval.frozen import Frozen


def test_recordings_are_chosen_by_role_and_language():
    found = frozen.recordings("eval", "zh")
    assert {(r["role"], r["language"]) for r in found} == {("eval", "zh")}
    with pytest.raises(DataError, match="no 'nobody' recording"):
        frozen.recordings("nobody")


def test_a_recording_is_read_at_the_rate_asked_for():
    record = frozen.recordings("reference")[0]
    for rate in (16_000, 24_000):
        assert abs(len(frozen.wave_of(record, rate)) / rate - record["duration"]) < 0.05


def test_plain_records_and_the_lines_of_the_evaluation_are_the_same_files():
    lines = {line.id: line.path for line in Frozen().lines}
    assert lines == {r["id"]: frozen.FOLDER / r["path"] for r in frozen.recordings()}
    assert {row["id"] for row in Frozen().long_texts} <= {row["id"] for row in frozen.long_texts()}
