"""The build cache stays whole whatever happens to the processes that use it."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import pytest

from tilewright_sim import cache
from tilewright_sim.cache import BuildCache, CacheError, cache_directory, get_or_build


def write(text: str, log: Path | None = None):
    """A build that writes one file, and a line to a log outside the cache."""

    def build(folder: Path) -> None:
        (folder / "sub").mkdir()
        (folder / "sub" / "result").write_text(text)
        if log is not None:
            with log.open("a") as file:
                file.write(f"{text}\n")

    return build


def forbidden(folder: Path) -> None:
    pytest.fail("built again")


def left_in_tmp(root: Path) -> list[Path]:
    return list((root / "builds" / "tmp").iterdir())


SLOW_USER = """
import sys, time
from pathlib import Path
from tilewright_sim.cache import BuildCache

root, log, seconds = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])

def build(folder):
    print("building", flush=True)
    time.sleep(seconds)
    (folder / "sub").mkdir()
    (folder / "sub" / "result").write_text("slow")
    with log.open("a") as file:
        file.write("slow\\n")

BuildCache(root).get_or_build(["key"], build)
"""


def start_slow_user(root: Path, log: Path, seconds: float) -> subprocess.Popen[str]:
    """Another process that uses the cache, returned when it is in the middle of its build."""
    command = [sys.executable, "-c", SLOW_USER, str(root), str(log), str(seconds)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "building\n"
    return process


def kill(process: subprocess.Popen[str]) -> None:
    """As kill -9 does."""
    with process:
        process.kill()


def test_an_entry_is_built_once(tmp_path: Path) -> None:
    first = BuildCache(tmp_path).get_or_build(["a", "b"], write("x"), label="demo")
    assert (first / "sub" / "result").read_text() == "x"
    assert first.name.startswith("demo-")
    assert BuildCache(tmp_path).get_or_build(["a", "b"], forbidden, label="demo") == first
    assert left_in_tmp(tmp_path) == []


def test_other_parts_are_another_entry(tmp_path: Path) -> None:
    keys = {BuildCache(tmp_path).key(parts) for parts in (["ab"], ["a", "b"], ["b", "a"], [])}
    assert len(keys) == 4


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        BuildCache(tmp_path).get_or_build(["key"], fail)
    assert left_in_tmp(tmp_path) == []
    assert BuildCache(tmp_path).get_or_build(["key"], write("x")).is_dir()


def test_ctrl_c_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(folder: Path) -> None:
        (folder / "half").write_text("half")
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)

    with pytest.raises(KeyboardInterrupt):
        BuildCache(tmp_path).get_or_build(["key"], interrupt)
    assert left_in_tmp(tmp_path) == []
    assert BuildCache(tmp_path).get_or_build(["key"], write("x")).is_dir()


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "manifest", "no manifest"])
def test_a_corrupt_entry_is_built_again(tmp_path: Path, damage: str) -> None:
    entry = BuildCache(tmp_path).get_or_build(["key"], write("abc"))
    result, manifest = entry / "sub" / "result", entry / ".manifest.json"
    match damage:
        case "flip":
            result.write_text("abd")
        case "truncate":
            result.write_text("ab")
        case "remove":
            result.unlink()
        case "manifest":
            manifest.write_text(json.dumps({"sub/result": 3}))
        case "no manifest":
            manifest.unlink()
    again = BuildCache(tmp_path).get_or_build(["key"], write("abc"))
    assert again == entry
    assert result.read_text() == "abc"
    assert BuildCache(tmp_path).get_or_build(["key"], forbidden) == entry
    assert left_in_tmp(tmp_path) == []


def test_two_processes_at_once_build_once(tmp_path: Path) -> None:
    root, log = tmp_path / "cache", tmp_path / "log"
    other = start_slow_user(root, log, seconds=1.0)
    entry = BuildCache(root).get_or_build(["key"], write("mine", log))  # waits for the other
    with other:
        assert other.wait(60) == 0
    assert (entry / "sub" / "result").read_text() == "slow"
    assert log.read_text() == "slow\n"


def test_another_key_does_not_wait(tmp_path: Path) -> None:
    root, log = tmp_path / "cache", tmp_path / "log"
    other = start_slow_user(root, log, seconds=60)
    try:
        BuildCache(root).get_or_build(["other key"], write("mine", log))
        assert log.read_text() == "mine\n"
        assert len(left_in_tmp(root)) == 1  # the living process's folder is not taken away
    finally:
        kill(other)


def test_kill_9_in_a_build_leaves_the_cache_whole(tmp_path: Path) -> None:
    root, log = tmp_path / "cache", tmp_path / "log"
    other = start_slow_user(root, log, seconds=60)
    kill(other)
    assert len(left_in_tmp(root)) == 1
    entry = BuildCache(root).get_or_build(["key"], write("mine", log))
    assert (entry / "sub" / "result").read_text() == "mine"
    assert left_in_tmp(root) == []


def test_leftovers_of_other_keys_are_removed(tmp_path: Path) -> None:
    root = tmp_path / "cache"
    other = start_slow_user(root, tmp_path / "log", seconds=60)
    kill(other)
    BuildCache(root).get_or_build(["other key"], write("x"))
    assert left_in_tmp(root) == []


@pytest.mark.parametrize("kind", ["file", "below a file", "no such file system"])
def test_an_unwritable_folder_is_one_clear_error(tmp_path: Path, kind: str) -> None:
    # Not a read-only folder: root, whom containers like, may write to that.
    file = tmp_path / "file"
    file.write_text("not a folder")
    paths = {"file": file, "below a file": file / "cache", "no such file system": "/dev/fd/cache"}
    root = Path(paths[kind])
    expected = rf"the cache folder {root} cannot be written \(.+\): set TILEWRIGHT_CACHE"
    with pytest.raises(CacheError, match=expected):
        BuildCache(root).get_or_build(["key"], forbidden)
    with pytest.raises(CacheError, match=expected):
        BuildCache(root).check_writable()


def test_a_full_disk_is_one_clear_error(tmp_path: Path) -> None:
    def fill(folder: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(CacheError, match=rf"the disk of the cache folder {tmp_path} is full"):
        BuildCache(tmp_path).get_or_build(["key"], fill)


def test_a_tool_that_fails_on_a_full_disk_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def compiler(folder: Path) -> None:
        raise RuntimeError("cannot write x.o")

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 10, 0))
    with pytest.raises(CacheError, match="is full"):
        BuildCache(tmp_path).get_or_build(["key"], compiler)


def test_a_build_that_fails_with_its_own_oserror_keeps_it(tmp_path: Path) -> None:
    def lost(folder: Path) -> None:
        (folder / "absent").read_text()

    with pytest.raises(FileNotFoundError):
        BuildCache(tmp_path).get_or_build(["key"], lost)


def test_an_entry_is_read_without_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = BuildCache(tmp_path).get_or_build(["key"], write("x"))
    monkeypatch.setattr(cache.fcntl, "flock", forbidden)
    assert BuildCache(tmp_path).get_or_build(["key"], forbidden) == entry


def test_the_folder_comes_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILEWRIGHT_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_directory() == tmp_path / "own"
    assert get_or_build(["key"], write("x")).is_relative_to(tmp_path / "own")
    assert BuildCache(tmp_path / "own").size() > 0
    monkeypatch.delenv("TILEWRIGHT_CACHE")
    assert cache_directory() == tmp_path / "xdg" / "tilewright"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_directory() == tmp_path / "home" / ".cache" / "tilewright"
