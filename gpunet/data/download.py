"""Files from the network: checked, resumable, and whole or not there at all."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import re
import shutil
import tarfile
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from gpunet.data.source import RemoteFile
from gpunet.errors import FileFormatError

_BLOCK = 1 << 18
_ATTEMPTS = 3  # per address, each resuming where the one before broke off
_TIMEOUT = 30.0  # seconds without a byte


def fetch(file: RemoteFile, folder: str | os.PathLike[str], progress: bool = True) -> Path:
    """Download `file` into `folder` (made where missing) and return its path; keep a good copy that is there.

    The bytes go to `<name>.part`, which a later call continues (HTTP Range), and only a file with the right SHA-256
    gets its real name. Each address is tried in turn. `progress`: show a bar on a terminal.

    Raises:
        OSError: no address could be read to the end.
        FileFormatError: what was read is not this file.
    """
    path = Path(folder) / file.name
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with _one_process_at_a_time(path.parent):
        if path.is_file() and _sha256(path) == file.sha256:
            return path
        failures: list[str] = []
        wrong_content = False
        for url in file.urls:
            try:
                _download(file, url, part, progress)
            except FileFormatError as error:
                wrong_content = True
                failures.append(str(error))
            except (OSError, http.client.HTTPException) as error:
                failures.append(f"{url}: {error or type(error).__name__}")
            else:
                os.replace(part, path)
                return path
    message = f"could not download {file.name}:\n  " + "\n  ".join(failures)
    raise FileFormatError(message) if wrong_content else OSError(message)


def check(file: RemoteFile, path: Path) -> None:
    """Raise FileFormatError unless the content of `path` is that of `file`."""
    found = _sha256(path)
    if found != file.sha256:
        raise FileFormatError(
            f"{path}: not the published {file.name} but a truncated or changed one: it has {path.stat().st_size} "
            f"bytes, SHA-256 {found}; expected {file.size} bytes, SHA-256 {file.sha256}"
        )


def _download(file: RemoteFile, url: str, part: Path, progress: bool) -> None:
    """Bring `part` to the full, checked content, from however much of it is already there."""
    continued = part.exists()
    for attempt in range(_ATTEMPTS):
        try:
            _transfer(file, url, part, progress)
            break
        except urllib.error.HTTPError as error:
            if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
                part.unlink()
            if error.code < 500 or attempt == _ATTEMPTS - 1:
                raise  # the server's answer, not a broken line: asking again gets the same
        except (OSError, http.client.HTTPException):
            if attempt == _ATTEMPTS - 1:
                raise
        time.sleep(0.2 * 2**attempt)
    found = _sha256(part)
    if found == file.sha256:
        return
    part.unlink()
    if continued:  # the half that was there may have been the wrong one
        return _download(file, url, part, progress)
    raise FileFormatError(
        f"{url}: the file's SHA-256 is {found}, and that of the published {file.name} is {file.sha256}; "
        "it was changed on the way or at the source, and is deleted here"
    )


def _transfer(file: RemoteFile, url: str, part: Path, progress: bool) -> None:
    from tqdm import tqdm

    have = part.stat().st_size if part.exists() else 0
    if have >= file.size:
        return  # the SHA-256 decides
    request = urllib.request.Request(url, headers={"User-Agent": "gpunet"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    with urllib.request.urlopen(request, timeout=_TIMEOUT) as response:
        resumed = response.status == http.client.PARTIAL_CONTENT
        if resumed and not re.match(rf"bytes {have}-", response.headers.get("Content-Range", "")):
            raise OSError("the server answered with another range than was asked for")
        have = have if resumed else 0
        announced = response.headers.get("Content-Length")
        if announced is not None and have + int(announced) != file.size:
            raise FileFormatError(
                f"{url}: offers {have + int(announced)} bytes; the published {file.name} has {file.size}"
            )
        bar = tqdm(
            desc=file.name,
            total=file.size,
            initial=have,
            unit="B",
            unit_scale=True,
            disable=None if progress else True,
        )
        with part.open("ab" if resumed else "wb") as out, bar:
            while block := response.read(_BLOCK):
                have += len(block)
                if have > file.size:
                    part.unlink()
                    raise FileFormatError(f"{url}: sends more than the {file.size} bytes of {file.name}")
                out.write(block)
                bar.update(len(block))
    if have < file.size:
        raise OSError(f"the connection ended after {have} of {file.size} bytes")


def extract(archive: Path, folder: Path, members: Mapping[str, int]) -> None:
    """Unpack from the .tar.gz `archive` exactly the files `members` (name in the archive -> most bytes allowed).

    Each lands in `folder` under the last part of its name, by way of a temporary name. Nothing else in the archive is
    touched, whatever paths or links it holds.

    Raises:
        FileFormatError: a member is missing, too big, or damaged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    missing = dict(members)
    try:
        with _one_process_at_a_time(folder), tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                if member.name not in missing:
                    continue
                source = tar.extractfile(member) if member.isreg() else None
                if source is None:
                    raise FileFormatError(f"{archive}: {member.name} is not an ordinary file")
                limit = missing.pop(member.name)
                if member.size > limit:
                    raise FileFormatError(f"{archive}: {member.name} has {member.size} bytes; expected at most {limit}")
                target = folder / Path(member.name).name
                part = target.with_name(target.name + ".part")
                with source, part.open("wb") as out:
                    shutil.copyfileobj(source, out, _BLOCK)
                os.replace(part, target)
                if not missing:
                    return
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk's trouble, not the archive's
        raise FileFormatError(f"{archive}: truncated or damaged archive: {error}") from None
    raise FileFormatError(f"{archive}: the archive has no {', '.join(sorted(missing))}")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def _one_process_at_a_time(folder: Path) -> Iterator[None]:
    """Several processes that start together would write into the same temporary file; let them take turns."""
    try:
        import fcntl
    except ImportError:  # Windows: no advisory locks on folders; the SHA-256 still catches a mixed-up file
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
