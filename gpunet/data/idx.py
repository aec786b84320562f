"""The IDX file format of MNIST: a big-endian header (type, number of axes, lengths) and then the array's bytes.

Format: Y. LeCun, C. Cortes, C. Burges, "The MNIST database of handwritten digits", section "File formats".
"""

from __future__ import annotations

import gzip
import math
import os
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from gpunet.errors import FileFormatError

_TYPES: dict[int, np.dtype[Any]] = {
    0x08: np.dtype(">u1"),
    0x09: np.dtype(">i1"),
    0x0B: np.dtype(">i2"),
    0x0C: np.dtype(">i4"),
    0x0D: np.dtype(">f4"),
    0x0E: np.dtype(">f8"),
}
_CODES = {dtype: code for code, dtype in _TYPES.items()}
_MAX_AXES = 32
_GZIP_MAGIC = b"\x1f\x8b"
_GZIP_MAX_RATIO = 1032  # deflate's limit: at best 258 bytes from two bits


def read_idx(path: str | os.PathLike[str]) -> np.ndarray:
    """The array in the IDX file `path`, gzipped or not (told by its first bytes, not by its name).

    The header is checked against the size of the file before anything of that size is allocated.

    Raises:
        FileFormatError: a file that is truncated, too long, damaged, or not IDX.
    """
    path = Path(path)
    size = path.stat().st_size
    with path.open("rb") as raw:
        if raw.read(2) != _GZIP_MAGIC:
            raw.seek(0)
            return _read(raw, path, size)
        raw.seek(0)
        try:
            with gzip.GzipFile(fileobj=raw) as unzipped:
                return _read(unzipped, path, size * _GZIP_MAX_RATIO)
        except EOFError:
            raise FileFormatError(f"{path}: truncated: the gzip stream ends early ({size} bytes on disk)") from None
        except (gzip.BadGzipFile, zlib.error) as error:
            raise FileFormatError(f"{path}: damaged gzip file: {error}") from None


def write_idx(path: str | os.PathLike[str], array: np.ndarray) -> None:
    """Write `array` as an IDX file, gzipped if `path` ends in .gz; the same array always gives the same bytes.

    Raises:
        FileFormatError: a dtype that IDX lacks: it has uint8, int8, int16, int32, float32 and float64.
    """
    array = np.asarray(array)
    code = _CODES.get(array.dtype.newbyteorder(">"))
    if code is None:
        names = ", ".join(dtype.name for dtype in _TYPES.values())
        raise FileFormatError(f"write_idx: IDX files hold {names}; got {array.dtype}")
    content = bytes([0, 0, code, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    content += array.astype(_TYPES[code]).tobytes()
    path = Path(path)
    path.write_bytes(gzip.compress(content, 9, mtime=0) if path.suffix == ".gz" else content)


def _read(file: BinaryIO | gzip.GzipFile, path: Path, limit: int) -> np.ndarray:
    """Parse IDX from `file`, which can hold at most `limit` bytes."""
    magic = file.read(4)
    if len(magic) < 4:
        raise FileFormatError(f"{path}: truncated: an IDX file starts with 4 bytes, this one has {len(magic)}")
    dtype, ndim = _TYPES.get(magic[2]), magic[3]
    if magic[:2] != b"\0\0" or dtype is None or not 1 <= ndim <= _MAX_AXES:
        raise FileFormatError(f"{path}: not an IDX file: it starts with {magic.hex(' ')}, not with 00 00 <type> <axes>")
    lengths = file.read(4 * ndim)
    if len(lengths) < 4 * ndim:
        raise FileFormatError(f"{path}: truncated: the header announces {ndim} lengths and ends within them")
    shape = tuple(int(n) for n in np.frombuffer(lengths, ">u4"))
    nbytes = math.prod(shape) * dtype.itemsize
    if nbytes > limit:
        raise FileFormatError(
            f"{path}: truncated, or a damaged header: it announces an array of shape {shape}, {nbytes} bytes, "
            f"and a file of this size holds at most {limit}"
        )
    content = bytearray(nbytes)
    got, view = 0, memoryview(content)
    while got < nbytes and (n := file.readinto(view[got:])):  # type: ignore[union-attr]
        got += n
    if got < nbytes:
        raise FileFormatError(f"{path}: truncated: shape {shape} needs {nbytes} bytes of data, the file has only {got}")
    if file.read(1):
        raise FileFormatError(f"{path}: there is data after the end of the array of shape {shape} ({nbytes} bytes)")
    return np.frombuffer(content, dtype).reshape(shape).astype(dtype.newbyteorder("="), copy=False)
