"""What CuPy does not offer of the CUDA driver: descriptions of arrays for the tensor memory accelerator."""

from __future__ import annotations

import ctypes
import functools
import sys
from typing import Any

from gpunet.errors import KernelError

# Of the CUDA driver API, "Tensor Map Object Management". Elements of 2 bytes are copied bit for bit; those of 4 are
# floats for tensor cores, which the copy rounds to TF32 (tensor cores themselves would truncate).
_TYPES = {2: 1, 4: 11}  # bytes of an element: CU_TENSOR_MAP_DATA_TYPE_UINT16, _TFLOAT32
_NO_INTERLEAVE = 0
_SWIZZLE_128B = 3
_L2_PROMOTION_256B = 3
_ZEROS_OUTSIDE = 0
_BYTES = 128
_ALIGNMENT = 64


@functools.cache
def _library() -> Any:
    """The CUDA driver, which is part of NVIDIA's driver for the GPU."""
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        return ctypes.CDLL(name)
    except OSError as error:
        raise KernelError(f"the CUDA driver cannot be loaded: {error}") from error


@functools.lru_cache(maxsize=4096)  # a plan that is launched again often finds its arrays where they were
def tensor_map(
    pointer: int, itemsize: int, shape: tuple[int, ...], strides: tuple[int, ...], box: tuple[int, ...]
) -> bytes:
    """The 128 bytes that describe an array to the tensor memory accelerator; see `Launcher.tensor_map`.

    Source: CUDA driver API, cuTensorMapEncodeTiled.

    Raises:
        KernelError: an array that it cannot describe, and why; or a driver from before CUDA 12.
    """
    rank = len(shape)
    why = ""
    if itemsize not in _TYPES:
        why = f"elements of {itemsize} bytes"
    elif not 1 <= rank <= 5 or len(strides) != rank - 1 or len(box) != rank:
        why = f"{rank} axes, {len(strides)} strides and a box of {len(box)} axes"
    elif pointer % 16 or any(stride % 16 for stride in strides):
        why = f"an address {pointer:#x} or strides {strides} that are no multiples of 16 bytes"
    elif not all(0 < length <= 2**32 for length in shape) or not all(0 < stride < 2**40 for stride in strides):
        why = f"a shape {shape} or strides {strides} out of range"
    elif box[0] * itemsize != 128 or not all(0 < length <= 256 for length in box):
        why = f"a box {box} whose first axis is not of 128 bytes, or that is longer than 256 along another"
    if why:
        raise KernelError(f"the tensor memory accelerator cannot take {why}")
    memory = ctypes.create_string_buffer(_BYTES + _ALIGNMENT)
    start = -ctypes.addressof(memory) % _ALIGNMENT
    lengths, steps = ctypes.c_uint64 * rank, ctypes.c_uint64 * max(rank - 1, 1)
    counts = ctypes.c_uint32 * rank
    encode = getattr(_library(), "cuTensorMapEncodeTiled", None)
    if encode is None:
        raise KernelError("this NVIDIA driver is too old for the tensor memory accelerator: CUDA 12 or later is needed")
    error = encode(
        ctypes.c_void_p(ctypes.addressof(memory) + start),
        _TYPES[itemsize],
        ctypes.c_uint32(rank),
        ctypes.c_void_p(pointer),
        lengths(*shape),
        steps(*strides),
        counts(*box),
        counts(*[1] * rank),
        _NO_INTERLEAVE,
        _SWIZZLE_128B,
        _L2_PROMOTION_256B,
        _ZEROS_OUTSIDE,
    )
    if error:
        raise KernelError(
            f"cuTensorMapEncodeTiled refused an array of shape {shape}, strides {strides} and box {box}: error {error}"
        )
    return memory.raw[start : start + _BYTES]
