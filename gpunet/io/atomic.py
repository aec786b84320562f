"""Replacing a file so that a crash at any moment leaves either the old file or the new one, whole."""

from __future__ import annotations

import contextlib
import glob
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows, where an open file cannot be deleted: the lock is not needed there
    fcntl = None  # type: ignore[assignment]


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Yield a new binary file to write to; when the block ends well, it takes the place of `path`.

    The new file is in the same folder. Its data is on disk (fsync) before the name changes, and the name change is on
    disk before this returns. If the block raises, the new file is removed and `path` is as it was. Files that killed
    writers of the same `path` left behind are removed first. A symbolic link stays one: the file it points to is
    replaced.

    Raises:
        OSError: the folder does not exist or cannot be written, the disk is full, or `path` is no ordinary file.
    """
    target = destination(path)
    _remove_leftovers(target)
    temporary, file = _create_locked(target)
    try:
        yield file
        file.flush()
        os.fsync(file.fileno())
        if fcntl is None:
            file.close()  # Windows does not rename an open file
        os.replace(temporary, target)
    except BaseException:
        file.close()
        temporary.unlink(missing_ok=True)
        raise
    finally:
        file.close()
    _flush_folder(target.parent)


def destination(path: str | os.PathLike[str]) -> Path:
    """The file that `replacing(path)` will write: `path` with its symbolic links followed. Nothing is touched.

    Worth a call before hours of work whose result is to be saved.

    Raises:
        OSError: it cannot be written there; why is said.
    """
    target = Path(os.path.realpath(path))
    where = f"cannot write {os.fspath(path)!r}"
    if target.is_dir():
        raise IsADirectoryError(f"{where}: it is a folder, a file name is expected")
    if target.exists() and not target.is_file():  # a device, such as /dev/null, or a pipe
        raise OSError(f"{where}: it is not an ordinary file, and would be replaced by one")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{where}: there is no folder {str(target.parent)!r}")
    if not os.access(target.parent, os.W_OK):
        raise PermissionError(f"{where}: no permission to write in the folder {str(target.parent)!r}")
    return target


def _create_locked(target: Path) -> tuple[Path, IO[bytes]]:
    """A new temporary file for `target`, open and locked; the lock goes with the handle, or with this process."""
    while True:
        temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")
        file = open(temporary, "xb")  # noqa: SIM115 - the caller closes it
        if fcntl is None:
            return temporary, file
        fcntl.flock(file, fcntl.LOCK_EX)
        if temporary.exists():
            return temporary, file
        file.close()  # another process took it for a leftover in the instant before the lock


def _remove_leftovers(target: Path) -> None:
    """Delete temporary files of `target` whose writer is dead. The kernel drops a lock when its holder dies."""
    for leftover in target.parent.glob(f".{glob.escape(target.name)}.{'[0-9a-f]' * 16}.tmp"):
        # OSError: locked, so its writer is alive; or gone meanwhile.
        with contextlib.suppress(OSError), open(leftover, "rb") as handle:
            if fcntl is not None:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            leftover.unlink()


def _flush_folder(folder: Path) -> None:
    """Make a rename durable; systems that cannot open a folder (Windows) do without."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
