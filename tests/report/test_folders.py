"""Reports are replaced as a whole: an error, a stop or a kill leaves the earlier one."""

import os
import signal
import subprocess
import sys

import pytest

from omnilib.errors import UserError
from omnilib.paths import ROOT
from omnilib.provenance import write_text
from omnilib.report import folders


def good(folder):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.html").write_text("good")
    return folder


def dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_the_new_folder_takes_the_place_of_the_old_one_whole(tmp_path):
    target = good(tmp_path / "04_x")
    (target / "stale.png").write_text("of the earlier run")
    with folders.fresh_folder(target) as new:
        assert (target / "report.html").read_text() == "good", "the old one stays while the new one is made"
        (new / "report.html").write_text("new")
        folders.replace_folder(new, target)
    assert [p.name for p in tmp_path.iterdir()] == ["04_x"]
    assert [p.name for p in target.iterdir()] == ["report.html"] and (
        target / "report.html"
    ).read_text() == "new"


@pytest.mark.parametrize("problem", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_error_or_a_stop_leaves_the_old_folder_alone(tmp_path, problem):
    target = good(tmp_path / "04_x")
    with pytest.raises(problem), folders.fresh_folder(target) as new:
        (new / "report.html").write_text("half")
        raise problem
    assert [p.name for p in tmp_path.iterdir()] == ["04_x"] and (target / "report.html").read_text() == "good"


def test_an_error_between_the_two_renames_puts_the_old_one_back(tmp_path):
    target = good(tmp_path / "04_x")
    with pytest.raises(OSError):
        folders.replace_folder(tmp_path / "was never made", target)
    assert (target / "report.html").read_text() == "good"


def test_a_killed_process_leaves_the_old_folder_and_the_next_one_tidies_up(tmp_path):
    target = good(tmp_path / "04_x")
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom omnilib.report import folders\n"
        "with folders.fresh_folder(Path(sys.argv[1])) as new:\n"
        "    (new / 'report.html').write_text('half')\n    print('ready', flush=True)\n    time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(target)], stdout=subprocess.PIPE, cwd=ROOT)
    assert process.stdout.readline().strip() == b"ready"
    half = f".04_x.new-{process.pid}"
    folders.restore(tmp_path)
    assert (tmp_path / half).exists(), "it belongs to a process that lives"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert (target / "report.html").read_text() == "good"
    folders.restore(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["04_x"]


def test_a_kill_between_the_two_renames_is_put_right_by_the_next_command(tmp_path):
    good(tmp_path / f".04_x.old-{dead_process()}")
    folders.restore(tmp_path)
    assert (tmp_path / "04_x" / "report.html").read_text() == "good"


def test_other_hidden_folders_are_left_alone(tmp_path):
    for name in (".git", ".04_x.new-abc", ".ipynb_checkpoints"):
        (tmp_path / name).mkdir()
    folders.restore(tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("a file where a folder should be")
    with pytest.raises(UserError, match="OMNILIB_REPORTS"):
        folders.check_writable(tmp_path / "file" / "reports")
    with pytest.raises(UserError, match="OMNILIB_REPORTS"), folders.fresh_folder(tmp_path / "file" / "04_x"):
        pass
    folders.check_writable(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["file"], "asking leaves nothing behind"


def test_a_text_file_stays_until_the_new_one_is_whole(tmp_path, monkeypatch):
    path = tmp_path / "index.html"
    write_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "half \ud800")
    assert path.read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_failed_pages_are_kept_apart_from_good_ones(tmp_path):
    assert folders.failed_folder(ROOT / "reports") == ROOT / "runs" / "reports-failed"
    assert folders.failed_folder(tmp_path / "out") == tmp_path / "out-failed"
    new = good(tmp_path / "new")
    good(tmp_path / "out-failed" / "04_x" / "older")
    folders.move_folder(new, tmp_path / "out-failed" / "04_x")
    assert [p.name for p in (tmp_path / "out-failed" / "04_x").iterdir()] == ["report.html"]


def test_this_process_is_alive_for_others():
    assert folders.is_alive(os.getppid()) and not folders.is_alive(dead_process())
