"""The disk cache of compiled kernels: damage, crowds, size, folders that cannot be written."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest

from gpunet.backends import cache
from gpunet.backends.cache import Cache


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    where = tmp_path / "deep" / "kernels"
    monkeypatch.setenv("GPUNET_CACHE_DIR", str(where))
    monkeypatch.setattr(cache, "_warned", [])
    return where


def refuse() -> bytes:
    raise AssertionError("made again")


def age(file: Path, seconds: float) -> None:
    os.utime(file, (time.time() - seconds,) * 2)


def test_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUNET_CACHE_DIR", str(tmp_path / "here"))
    assert cache.folder() == tmp_path / "here"
    monkeypatch.delenv("GPUNET_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.folder() == tmp_path / "gpunet" / "kernels"


@pytest.mark.parametrize(
    "text, size", [("", 1 << 30), ("1000", 1000), ("3k", 3072), ("500M", 500 << 20), ("2 GiB", 2 << 30), ("0", 0)]
)
def test_sizes(text: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUNET_CACHE_SIZE", text)
    assert cache.size_limit() == size


def test_no_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUNET_CACHE_SIZE", "much")
    with pytest.raises(ValueError, match="GPUNET_CACHE_SIZE is 'much': expected a number of bytes, or such as 500M"):
        cache.size_limit()


def test_made_once(folder: Path) -> None:
    cubins = Cache("cubin")
    assert cubins.load("key") is None
    assert cubins.load_or_make("key", lambda: b"machine code") == b"machine code"
    assert cubins.load_or_make("key", refuse) == b"machine code"
    assert cubins.load("other key") is None and Cache("so").load("key") is None
    (entry,) = folder.iterdir()
    assert entry.suffix == ".cubin" and folder.stat().st_mode & 0o077 == 0


def test_a_file_is_made_once(folder: Path) -> None:
    libraries = Cache("so")
    path = libraries.path_or_make("key", lambda file: file.write_bytes(b"library"))
    assert path.parent == folder and path.suffix == ".so" and path.read_bytes().startswith(b"library")
    assert libraries.path_or_make("key", lambda file: refuse()) == path
    assert libraries.load("key") == b"library"


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b"M" + b[1:], lambda b: b"", lambda b: b + b"\0"])
def test_a_damaged_entry_is_made_again(folder: Path, damage) -> None:  # type: ignore[no-untyped-def]
    cubins = Cache("cubin")
    cubins.store("key", b"machine code")
    (entry,) = folder.iterdir()
    entry.write_bytes(damage(entry.read_bytes()))
    assert cubins.load("key") is None
    assert cubins.load_or_make("key", lambda: b"new") == b"new" and cubins.load("key") == b"new"
    path = cubins.path_or_make("key", lambda file: refuse())
    path.write_bytes(damage(path.read_bytes()))
    assert cubins.path_or_make("key", lambda file: file.write_bytes(b"newest")) == path
    assert cubins.load("key") == b"newest"


def test_an_entry_under_another_name_is_not_taken(folder: Path) -> None:
    cubins = Cache("cubin")
    cubins.store("a", b"of a")
    (a,) = folder.iterdir()
    cubins.store("b", b"of b")
    (b,) = set(folder.iterdir()) - {a}
    b.write_bytes(a.read_bytes())
    assert cubins.load("b") is None


def test_the_least_recently_used_go_first(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cubins = Cache("cubin")
    for i, key in enumerate("abcd"):
        cubins.store(key, bytes(1000))
        (new,) = (file for file in folder.iterdir() if time.time() - file.stat().st_mtime < 50)
        age(new, 400 - 100 * i)
    assert cubins.load("a") is not None  # which was the oldest, and is now the last used
    monkeypatch.setenv("GPUNET_CACHE_SIZE", "4K")
    cubins.store("e", bytes(1000))  # each entry takes 1032 bytes: three fit
    assert [key for key in "abcde" if cubins.load(key) is not None] == ["a", "d", "e"]


def test_other_files_are_left_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir(parents=True)
    for name in ("notes.txt", "old.tmp", "young.tmp"):
        (folder / name).write_bytes(bytes(5000))
    age(folder / "old.tmp", 7200)
    monkeypatch.setenv("GPUNET_CACHE_SIZE", "100")
    path = Cache("so").path_or_make("key", lambda file: file.write_bytes(bytes(1000)))
    assert {file.name for file in folder.iterdir()} == {"notes.txt", "young.tmp", path.name}


@pytest.mark.parametrize("hindrance", ["a file is there", "disk full", "no home"])
def test_without_a_folder(hindrance: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if hindrance == "a file is there":
        folder.parent.mkdir()
        folder.write_text("in the way")
    elif hindrance == "disk full":

        def full(source: Path, target: Path) -> None:
            raise OSError(28, "No space left on device", str(target))

        monkeypatch.setattr(cache.os, "replace", full)
    else:

        def no_home() -> Path:
            raise RuntimeError("Could not determine home directory.")

        monkeypatch.setattr(cache, "folder", no_home)
    cubins = Cache("cubin")
    with pytest.warns(UserWarning, match="cannot be kept on disk.*GPUNET_CACHE_DIR chooses another folder"):
        assert cubins.load_or_make("key", lambda: b"code") == b"code"
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # one warning is enough
        path = cubins.path_or_make("key", lambda file: file.write_bytes(b"library"))
        assert path.read_bytes() == b"library" and folder not in path.parents
        assert cubins.load_or_make("key", lambda: b"again") == b"again"
    if folder.is_dir():
        assert list(folder.iterdir()) == []


def test_the_temporary_file_goes_with_the_process(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    code = (
        "from gpunet.backends.cache import Cache\n"
        "path = Cache('so').path_or_make('key', lambda file: file.write_bytes(b'x'))\n"
        "print(path, path.exists())"
    )
    env = {**os.environ, "GPUNET_CACHE_DIR": str(tmp_path / "taken"), "PYTHONWARNINGS": "ignore::UserWarning"}
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-c", code], env=env, capture_output=True, text=True, check=True
    )
    path, existed = done.stdout.split()
    assert existed == "True" and not Path(path).exists()


def test_processes_share_it(folder: Path) -> None:
    code = (
        "import random\n"
        "from gpunet.backends.cache import Cache\n"
        "cubins = Cache('cubin')\n"
        "for i in range(200):\n"
        "    key = str(random.randrange(8))\n"
        "    assert cubins.load_or_make(key, lambda: key.encode() * 3000) == key.encode() * 3000\n"
    )
    env = {**os.environ, "GPUNET_CACHE_DIR": str(folder), "GPUNET_CACHE_SIZE": "12K", "PYTHONWARNINGS": "error"}
    running = [subprocess.Popen([sys.executable, "-c", code], env=env) for _ in range(3)]
    assert [process.wait() for process in running] == [0, 0, 0]
    assert 0 < sum(file.stat().st_size for file in folder.iterdir()) <= 12 << 10
