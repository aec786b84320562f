"""Arrays by name in one file, in the safetensors format, which PyTorch, JAX, MLX and others read and write too.

Format: https://huggingface.co/docs/safetensors (a JSON header with names, dtypes, shapes and offsets, then the bytes).
Nothing in it is executed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import IO, Any

import numpy as np

import gpunet as gn
from gpunet.backends import backend_of_type
from gpunet.errors import DTypeError, FileFormatError
from gpunet.io.atomic import replacing

# The format's names of the types, and NumPy's.
DTYPES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "U16": "uint16",
    "I16": "int16",
    "U32": "uint32",
    "I32": "int32",
    "U64": "uint64",
    "I64": "int64",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "C64": "complex64",
}
_MAX_HEADER = 100_000_000  # bytes; a longer header is refused when reading
_CODES = {name: code for code, name in DTYPES.items()}


def save(path: str | os.PathLike[str], tensors: Mapping[str, Any], metadata: Mapping[str, str] | None = None) -> None:
    """Write named arrays, such as `model.state_dict()`, to the safetensors file `path`.

    The file is replaced atomically: a crash leaves the old one whole.

    Args:
        path: the file; its folder must exist.
        tensors: name -> Tensor or NumPy/CuPy array of any shape (0-d and empty ones too), on any device.
        metadata: text to keep in the header, name -> string.

    Raises:
        DTypeError: the format has no such dtype, or a value is not an array; the name is given.
        TypeError: `tensors` is no mapping, or a name or a metadata entry is not a string.
        ValueError: a tensor is called "__metadata__", which the format reserves.
    """
    if not isinstance(tensors, Mapping):
        advice = "; pass its state_dict()" if hasattr(tensors, "state_dict") else ""
        raise TypeError(f"io.save: expected a dict of names and arrays, got a {type(tensors).__name__}{advice}")
    texts = {_text(k, "a metadata key"): _text(v, f"metadata[{k!r}]") for k, v in (metadata or {}).items()}
    arrays = {_text(name, "the name of a tensor"): _to_host(name, value) for name, value in tensors.items()}
    if "__metadata__" in arrays:
        raise ValueError('io.save: the format reserves the name "__metadata__", no tensor can have it')
    with replacing(path) as file:
        _write(file, arrays, texts)


def load(path: str | os.PathLike[str], device: Any = "cpu") -> dict[str, Any]:
    """Read a safetensors file: name -> Tensor on `device`. `model.load_state_dict(io.load(path))` restores a model.

    The header is checked against the file's size before memory is allocated.

    Raises:
        FileFormatError: the file is truncated, damaged, not safetensors, or holds a dtype that NumPy cannot have.
    """
    arrays, _ = read(path)
    return {name: gn.asarray(array, device=device) for name, array in arrays.items()}


def load_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """The metadata of a safetensors file, without reading its arrays. Raises what `load` raises."""
    return read(path, arrays=False)[1]


def read(path: str | os.PathLike[str], *, arrays: bool = True) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """NumPy arrays by name (none unless `arrays`), and the metadata. Raises what `load` raises."""
    from safetensors import SafetensorError, safe_open

    name = os.fspath(path)
    if os.path.isdir(name):
        raise IsADirectoryError(f"{name!r} is a folder, a safetensors file is expected")
    if not os.path.exists(name):
        raise FileNotFoundError(f"there is no file {name!r}")
    try:
        # The library maps the file and checks the header: sizes, offsets, gaps, overlaps, shapes against lengths.
        with safe_open(name, framework="np") as file:
            metadata = dict(file.metadata() or {})
            if not arrays:
                return {}, metadata
            keys = list(file.keys())
            for key in keys:
                _check_readable(name, key, file.get_slice(key).get_dtype())
            return {key: _tidy(file.get_tensor(key)) for key in keys}, metadata
    except (SafetensorError, ValueError) as error:  # ValueError: a shape that NumPy cannot have
        if isinstance(error, FileFormatError):
            raise
        raise FileFormatError(
            f"{name!r} ({os.path.getsize(name)} bytes) is not a whole safetensors file: {error}."
            " It is truncated, damaged or of another format"
        ) from error


def _write(file: IO[bytes], arrays: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
    # Written here because the library copies every array, and goes through a temporary file of its own, which a kill
    # leaves behind. Widest items first, as the library does it, so that each array is aligned in a mapped file.
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    arrays = dict(sorted(arrays.items(), key=lambda item: (-item[1].itemsize, item[0])))
    offset = 0
    for name, array in arrays.items():
        end = offset + array.nbytes
        header[name] = {"dtype": _CODES[array.dtype.name], "shape": array.shape, "data_offsets": (offset, end)}
        offset = end
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > _MAX_HEADER:
        raise ValueError(f"io.save: names and metadata take {len(text)} bytes, the format allows {_MAX_HEADER}")
    file.write(len(text).to_bytes(8, "little"))
    file.write(text)
    for array in arrays.values():
        file.write(array.reshape(-1).view(np.uint8).data)


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise TypeError(f"io.save: {what} must be a string, got {value!r}")
    return value


def _to_host(name: str, value: Any) -> np.ndarray:
    """`value` as a C-contiguous little-endian NumPy array of a dtype that the format has."""
    if isinstance(value, gn.Tensor):
        value = value.data
    try:
        value = backend_of_type(type(value)).to_numpy(value)
    except DTypeError as error:
        raise DTypeError(f"io.save: {name!r}: {error}") from None
    if value.dtype.name not in _CODES:
        raise DTypeError(
            f"io.save: {name!r} has dtype {value.dtype}, which the safetensors format does not have; it has "
            + ", ".join(_CODES)
        )
    return np.asarray(value, dtype=value.dtype.newbyteorder("<"), order="C")


def _tidy(array: np.ndarray) -> np.ndarray:
    """Booleans as 0 or 1, as NumPy relies on, whatever bytes a file has for them."""
    return np.asarray(array.view(np.uint8) != 0) if array.dtype == bool else array


def _check_readable(path: str, name: str, dtype: str) -> None:
    if dtype not in DTYPES:
        raise FileFormatError(f"{path!r}: tensor {name!r} has dtype {dtype}, which NumPy arrays cannot hold")
    if dtype == "BF16":
        try:
            import ml_dtypes  # noqa: F401 - registers the dtype's name with NumPy
        except ImportError:
            raise FileFormatError(
                f"{path!r}: tensor {name!r} is bfloat16, which NumPy has only with the ml_dtypes package:"
                " pip install ml_dtypes"
            ) from None
