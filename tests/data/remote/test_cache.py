"""The cache of remote ranges: bounded, shared by processes, and never torn."""

import fcntl
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from paths import ROOT

import data.remote.cache
from data.errors import DataError
from data.remote.cache import RangeCache, cache_name
from data.remote.settings import cache_folder

DIGEST = data.remote.cache.DIGEST_BYTES


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache"


def content_of(number, size=1000):
    return bytes([number % 256]) * size


def num_bytes_in(folder):
    """The bytes of all entries, and of what is being written, while nobody makes room or takes it."""
    num_bytes = {}
    with (folder / "usage").open("rb") as usage:
        fcntl.flock(usage, fcntl.LOCK_EX)
        for path in folder.glob("??/*"):
            # A file may be seen under both of its names.
            with suppress(FileNotFoundError):
                status = path.stat()
                num_bytes[status.st_ino] = status.st_size
    return sum(num_bytes.values())


def set_read(cache, number, age_s):
    """Let an entry have been read so long ago."""
    path = cache._path(cache_name(number))
    then = time.time() - age_s
    os.utime(path, (then, then))


def test_what_is_read_longest_ago_makes_room_for_what_is_new(folder):
    cache = RangeCache(folder, max_bytes=10 * (1000 + DIGEST))
    for number in range(10):
        cache.put(cache_name(number), content_of(number))
        set_read(cache, number, age_s=100 - number)
    # Read now, and so the last to go.
    assert cache.get(cache_name(0)) == content_of(0)
    cache.put(cache_name(10), content_of(10))
    assert cache.get(cache_name(0)) == content_of(0)
    assert cache.get(cache_name(1)) is None
    assert cache.get(cache_name(10)) == content_of(10)
    assert cache.get(cache_name(9)) == content_of(9)
    assert num_bytes_in(folder) <= cache.max_bytes


def test_the_bound_holds_after_every_write_for_any_sizes(folder):
    cache = RangeCache(folder, max_bytes=20_000)
    for number in range(100):
        cache.put(cache_name(number), content_of(number, size=number * 37 % 4001))
        assert num_bytes_in(folder) <= 20_000
    assert num_bytes_in(folder) > 10_000


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "a folder", "a link", "a pipe"])
def test_what_is_torn_is_not_returned_and_is_replaced(folder, tmp_path, damage):
    cache = RangeCache(folder, max_bytes=10_000)
    name = cache_name("a")
    cache.put(name, content_of(7))
    path = cache._path(name)
    content = path.read_bytes()
    if damage == "cut":
        path.write_bytes(content[:500])
    elif damage == "flipped":
        path.write_bytes(content[:-1] + b"\0")
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        path.unlink()
        if damage == "a folder":
            path.mkdir()
        elif damage == "a link":
            path.symlink_to("/dev/zero")
        else:
            os.mkfifo(path)
    assert cache.get(name) is None
    cache.put(name, content_of(8))
    if damage != "a folder":
        assert cache.get(name) == content_of(8)


WRITER = """
import itertools, random, sys
from pathlib import Path
from data.remote.cache import RangeCache, cache_name
cache = RangeCache(Path(sys.argv[1]), int(sys.argv[2]))
numbers = random.Random(int(sys.argv[3]))
print("begun", flush=True)
for _ in itertools.count():
    number = numbers.randrange(200)
    content = cache.get(cache_name(number))
    if content is None:
        cache.put(cache_name(number), bytes([number]) * (number * 61))
    elif content != bytes([number]) * (number * 61):
        sys.exit("torn")
"""


def test_several_processes_share_it_and_a_kill_at_any_moment_tears_nothing(folder):
    """Bytes in the folder <= the bound at every look, while writers come, are killed, and others come."""
    max_bytes = 300_000
    writers = []
    try:
        for seed in range(6):
            command = [sys.executable, "-c", WRITER, str(folder), str(max_bytes), str(seed)]
            writers.append(subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE))
            assert writers[-1].stdout.readline() == b"begun\n"
            if len(writers) < 3:
                continue
            deadline = time.monotonic() + 0.25
            while time.monotonic() < deadline:
                assert num_bytes_in(folder) <= max_bytes
            writers[-3].send_signal(signal.SIGKILL)
            assert writers[-3].wait() == -signal.SIGKILL
        for writer in writers[-2:]:
            assert writer.poll() is None
    finally:
        for writer in writers:
            writer.kill()
            writer.wait()
            writer.stdout.close()

    cache = RangeCache(folder, max_bytes)
    num_entries = 0
    for number in range(200):
        content = cache.get(cache_name(number))
        if content is not None:
            num_entries += 1
            assert content == bytes([number]) * (number * 61)
    assert num_entries > 10


def test_what_killed_processes_left_half_written_is_removed_and_what_is_being_written_is_not(folder):
    cache = RangeCache(folder, max_bytes=5_000)
    cache.put(cache_name(0), content_of(0))
    name = cache_name(0)
    old = cache._path(name).with_name(f".{name}.4711-old.tmp")
    young = old.with_name(f".{name}.4711-young.tmp")
    for path in (old, young):
        path.write_bytes(bytes(1000))
    long_ago = time.time() - 2 * data.remote.cache.STALE_S
    os.utime(old, (long_ago, long_ago))
    for number in range(1, 8):
        cache.put(cache_name(number), content_of(number))
    assert young.exists()
    assert not old.exists()
    assert num_bytes_in(folder) <= 5_000


@pytest.mark.parametrize("usage", [b"", b"garbage", b"0" * 19, b"9" * 20])
def test_a_count_that_was_lost_is_counted_anew(folder, usage):
    cache = RangeCache(folder, max_bytes=5_000)
    cache.put(cache_name(0), content_of(0))
    (folder / "usage").write_bytes(usage)
    for number in range(1, 10):
        cache.put(cache_name(number), content_of(number))
        assert num_bytes_in(folder) <= 5_000
    assert cache.get(cache_name(9)) == content_of(9)


def test_a_disk_that_is_nearly_full_is_left_to_the_checkpoints(folder, monkeypatch, caplog):
    cache = RangeCache(folder, max_bytes=5_000)
    monkeypatch.setattr(RangeCache, "_spare_bytes", lambda self: 900)
    for number in range(3):
        cache.put(cache_name(number), content_of(number))
        assert cache.get(cache_name(number)) is None
    (record,) = caplog.records
    assert "are read, and not kept in" in record.getMessage()
    assert "there is no room for" in record.getMessage()


@pytest.mark.parametrize("place", ["a file", "below a file", "/proc/none"])
def test_a_folder_that_cannot_be_written_is_said_once_and_fails_no_read(tmp_path, caplog, place):
    path = Path(place)
    if not path.is_absolute():
        path = tmp_path / "file"
        path.write_bytes(b"")
        if place == "below a file":
            path /= "cache"
    cache = RangeCache(path, max_bytes=5_000)
    cache.put(cache_name(0), content_of(0))
    with cache.alone(cache_name(0)):
        assert cache.get(cache_name(0)) is None
    assert len(caplog.records) == 1


def test_a_folder_where_others_may_write_is_refused(folder):
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(DataError, match=r"others may write there.*CHORUS_CACHE"):
        RangeCache(folder, max_bytes=5_000)


def test_a_new_folder_is_the_users_alone(folder):
    RangeCache(folder, max_bytes=5_000)
    assert folder.stat().st_mode & 0o777 == 0o700


def test_the_folder_is_what_the_environment_says_and_a_user_without_a_home_is_told_to_name_one(tmp_path, monkeypatch):
    monkeypatch.setenv("CHORUS_CACHE", str(tmp_path / "a"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    monkeypatch.setenv("HOME", str(tmp_path / "c"))
    assert cache_folder() == tmp_path / "a"
    monkeypatch.delenv("CHORUS_CACHE")
    assert cache_folder() == tmp_path / "b" / "chorus"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == tmp_path / "c" / ".cache" / "chorus"
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("os.getuid", lambda: 2**31 - 7)
    with pytest.raises(DataError, match=r"this user has no home\. Name one in CHORUS_CACHE"):
        cache_folder()


def test_names_say_nothing_of_the_place(folder):
    assert "host" not in cache_name("http://host/train", 0, 10)
    assert cache_name("http://host/train", 0, 10) != cache_name("http://host/train", 0, 11)


def test_a_folder_that_holds_other_things_loses_none_of_them(tmp_path):
    """As where CHORUS_CACHE names a folder of programs, or leads to one through a link of somebody else."""
    home = tmp_path / "home"
    long_ago = time.time() - 2 * data.remote.cache.STALE_S
    others = [home / "go" / "main.go", home / "bb" / ".notes", home / "bb" / ("0" * 63), home / "ab" / ".x.tmp"]
    for path in others:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(2000))
        os.utime(path, (long_ago, long_ago))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    others.append(elsewhere / ("c" * 64))
    others[-1].write_bytes(bytes(2000))
    (home / "cc").symlink_to(elsewhere)
    (tmp_path / "link").symlink_to(home)
    cache = RangeCache(tmp_path / "link", max_bytes=3_000)
    for number in range(20):
        cache.put(cache_name(number), content_of(number))
    assert all(path.stat().st_size == 2000 for path in others)
    assert cache.get(cache_name(19)) == content_of(19)
