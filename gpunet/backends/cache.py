"""The disk cache of compiled kernels: what was compiled once is not compiled again, by any process of the user.

Entries are files of their own in one folder. Each ends with a checksum, so that a damaged one is noticed and made
again; each is written under a temporary name and renamed, so that processes may share the folder without locks. When
they grow past a size, the least recently used go. A folder that cannot be written is no error: one warning says so, and
the process works with what it made itself.

Environment:
    GPUNET_CACHE_DIR: the folder, instead of gpunet/kernels in the user's cache folder.
    GPUNET_CACHE_SIZE: how large it may grow: bytes, or such as 500M or 2G. Default 1G.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import hashlib
import os
import re
import secrets
import shutil
import stat
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

_DIGEST = hashlib.sha256().digest_size
_ABANDONED = 3600.0  # seconds after which a temporary file is one whose writer died


def folder() -> Path:
    """The folder of compiled kernels: $GPUNET_CACHE_DIR, or gpunet/kernels in the user's cache folder."""
    if chosen := os.environ.get("GPUNET_CACHE_DIR"):
        return Path(chosen).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gpunet" / "kernels"


def size_limit() -> int:
    """How many bytes the folder may hold.

    Raises:
        ValueError: $GPUNET_CACHE_SIZE is no size.
    """
    text = os.environ.get("GPUNET_CACHE_SIZE") or "1G"
    match = re.fullmatch(r"(\d+)\s*([KMG]?)(i?B)?", text.strip(), re.IGNORECASE)
    if match is None:
        raise ValueError(f"GPUNET_CACHE_SIZE is {text!r}: expected a number of bytes, or such as 500M or 2G")
    return int(match[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[match[2].upper()]


class Cache:
    """Compiled kernels of one kind, which is also how their files' names end ("cubin", "so").

    A key is a text that holds everything on which the result depends; only its hash is kept.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def load(self, key: str) -> bytes | None:
        """What is stored under `key`; None where there is nothing, or it is damaged."""
        try:
            file = folder() / self._name(key)
            return self._content(file)
        except (OSError, RuntimeError):  # RuntimeError: the user has no home folder
            return None

    def store(self, key: str, content: bytes) -> None:
        """Store `content` under `key`, if that can be done."""
        with _hindrance_is_a_warning():
            self._write(key, lambda temporary: temporary.write_bytes(content))

    def load_or_make(self, key: str, make: Callable[[], bytes]) -> bytes:
        """What is stored under `key`, or else what `make()` returns, which is then stored."""
        content = self.load(key)
        if content is None:
            content = make()
            self.store(key, content)
        return content

    def path_or_make(self, key: str, make: Callable[[Path], object]) -> Path:
        """A file stored under `key`, or else one that `make(path)` writes. For what must be a file, as a library is.

        The checksum follows the content in the same file; loaders of ELF files do not mind. Where the cache cannot be
        written, the file is in a temporary folder, which goes when the process ends.
        """
        with contextlib.suppress(OSError, RuntimeError):
            file = folder() / self._name(key)
            if self._content(file) is not None:
                return file
        with tempfile.TemporaryDirectory(prefix="gpunet-") as workshop:
            made = Path(workshop) / self._name(key)
            make(made)
            with _hindrance_is_a_warning():
                return self._write(key, lambda temporary: shutil.copyfile(made, temporary))
            return Path(shutil.copy(made, _temporary_folder()))

    def _name(self, key: str) -> str:
        return f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.{self.kind}"

    def _content(self, file: Path) -> bytes | None:
        """The content of a whole entry, which then counts as used now; None where it is damaged.

        Raises:
            OSError: there is none.
        """
        data = file.read_bytes()
        content, checksum = data[:-_DIGEST], data[-_DIGEST:]
        if _checksum(file.name, content) != checksum:
            return None
        with contextlib.suppress(OSError):  # in a folder that may only be read, times stay
            os.utime(file)
        return content

    def _write(self, key: str, write: Callable[[Path], object]) -> Path:
        """Make an entry of what `write` writes; the file that holds it."""
        limit = size_limit()
        where = folder()
        where.mkdir(mode=stat.S_IRWXU, parents=True, exist_ok=True)  # for the user alone: code is loaded from here
        target = where / self._name(key)
        temporary = where / f"{secrets.token_hex(8)}.tmp"
        try:
            write(temporary)
            with temporary.open("r+b") as file:
                content = file.read()
                file.write(_checksum(target.name, content))
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
        _make_room(where, limit, keep=target)
        return target


def _checksum(name: str, content: bytes) -> bytes:
    return hashlib.sha256(name.encode() + b"\0" + content).digest()


def _make_room(where: Path, limit: int, keep: Path) -> None:
    """Remove the least recently used entries until all take at most `limit` bytes, and what dead writers left."""
    entries = []
    now = time.time()
    for entry in os.scandir(where):
        with contextlib.suppress(OSError):  # another process may be removing it, too
            about = entry.stat()
            if entry.name.endswith(".tmp"):
                if now - about.st_mtime > _ABANDONED:
                    os.unlink(entry.path)
            elif re.fullmatch(r"[0-9a-f]{32}\.\w+", entry.name):  # a folder may hold files that are not ours
                entries.append((about.st_mtime_ns, about.st_size, entry.path))
    total = sum(size for _, size, _ in entries)
    for _, size, path in sorted(entries):
        if total <= limit:
            break
        if path != str(keep):
            with contextlib.suppress(OSError):
                os.unlink(path)
            total -= size


@contextlib.contextmanager
def _hindrance_is_a_warning() -> Iterator[None]:
    """Turn an error of the file system into a warning, the first time in a process."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        if not _warned:
            _warned.append(str(error))
            warnings.warn(
                f"compiled kernels cannot be kept on disk, so each process compiles its own ({error}); "
                "GPUNET_CACHE_DIR chooses another folder",
                stacklevel=4,
            )


_warned: list[str] = []  # the hindrance that the user was told of


@functools.cache
def _temporary_folder() -> Path:
    """A folder that goes when the process ends."""
    folder = tempfile.mkdtemp(prefix="gpunet-kernels-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)
