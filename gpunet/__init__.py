"""gpunet: deep learning on the arrays you already have.

This namespace is that of the arrays: the Python Array API's functions on `Tensor`, NumPy's names for what the standard
lacks, and what differentiation adds. Networks are in `gpunet.nn`, optimizers in `gpunet.optim`, datasets and loaders in
`gpunet.data`, the training loop in `gpunet.train`, files in `gpunet.io`.
"""

from __future__ import annotations

import importlib
import math
from typing import TYPE_CHECKING, Any

from gpunet import dtypes, errors, fft, linalg, random, special
from gpunet.autograd import backward, enable_grad, grad, is_grad_enabled, no_grad, set_grad_enabled
from gpunet.backends import Device, available_devices
from gpunet.backends.threads import get_num_threads, set_num_threads
from gpunet.creation import (
    arange,
    asarray,
    default_device,
    empty,
    empty_like,
    eye,
    from_dlpack,
    full,
    full_like,
    linspace,
    meshgrid,
    ones,
    ones_like,
    set_default_device,
    tensor,
    zeros,
    zeros_like,
)
from gpunet.dtypes import (
    bool,
    can_cast,
    complex64,
    complex128,
    default_dtype,
    finfo,
    float16,
    float32,
    float64,
    get_float32_precision,
    iinfo,
    int8,
    int16,
    int32,
    int64,
    isdtype,
    result_type,
    set_default_dtype,
    set_float32_precision,
    uint8,
    uint16,
    uint32,
    uint64,
)
from gpunet.function import Function
from gpunet.ops.einsum import einsum
from gpunet.ops.elementwise import (
    abs,
    acos,
    acosh,
    add,
    asin,
    asinh,
    atan,
    atan2,
    atanh,
    bitwise_and,
    bitwise_invert,
    bitwise_left_shift,
    bitwise_or,
    bitwise_right_shift,
    bitwise_xor,
    ceil,
    clip,
    conj,
    copysign,
    cos,
    cosh,
    divide,
    equal,
    exp,
    expm1,
    floor,
    floor_divide,
    greater,
    greater_equal,
    hypot,
    imag,
    isfinite,
    isinf,
    isnan,
    less,
    less_equal,
    log,
    log1p,
    log2,
    log10,
    logaddexp,
    logical_and,
    logical_not,
    logical_or,
    logical_xor,
    maximum,
    minimum,
    multiply,
    negative,
    nextafter,
    not_equal,
    positive,
    pow,
    real,
    reciprocal,
    remainder,
    round,
    sign,
    signbit,
    sin,
    sinh,
    sqrt,
    square,
    subtract,
    tan,
    tanh,
    trunc,
    where,
)
from gpunet.ops.index import (
    argsort,
    bincount,
    diff,
    isin,
    nonzero,
    searchsorted,
    sort,
    take,
    take_along_axis,
    top_k,
    unique_all,
    unique_counts,
    unique_inverse,
    unique_values,
)
from gpunet.ops.matmul import matmul, tensordot, vecdot
from gpunet.ops.op import kernels
from gpunet.ops.reduce import (
    all,
    any,
    argmax,
    argmin,
    count_nonzero,
    cumulative_prod,
    cumulative_sum,
    max,
    mean,
    min,
    prod,
    std,
    sum,
    var,
)
from gpunet.ops.shape import (
    broadcast_arrays,
    broadcast_shapes,
    broadcast_to,
    concat,
    expand_dims,
    flip,
    matrix_transpose,
    moveaxis,
    pad,
    permute_dims,
    repeat,
    reshape,
    roll,
    split,
    squeeze,
    stack,
    tile,
    tril,
    triu,
    unstack,
)
from gpunet.random import manual_seed
from gpunet.tensor import Tensor

if TYPE_CHECKING:
    from gpunet import data, io, nn, optim, testing, train
    from gpunet.graph import draw
    from gpunet.transforms import checkpoint, detect_anomaly, hessian, jacobian, jvp, value_and_grad, vjp, vmap

__version__ = "0.1.0"
__array_api_version__ = "2025.12"

pi = math.pi
e = math.e
inf = math.inf
nan = math.nan
newaxis = None


def astype(x: Tensor, dtype: Any, /, *, copy: bool = True, device: Any = None) -> Tensor:  # type: ignore[valid-type]
    """x with elements of another data type, on another device if one is given; x itself if neither differs and copy
    is false."""
    y = x.astype(dtype, copy=copy)
    return y if device is None else y.to_device(device)


def __array_namespace_info__() -> Any:
    """The inspection functions: `info.dtypes()`, `info.devices()` … See `gpunet.info`."""
    return importlib.import_module("gpunet.info")


# What PyTorch's users look for, and where it is.
_HINTS = {
    "cat": "gpunet.concat",
    "from_numpy": "gpunet.asarray",
    "load": "gpunet.io.load",
    "rand": "gpunet.random.uniform",
    "randint": "gpunet.random.randint",
    "randn": "gpunet.random.normal",
    "randperm": "gpunet.random.permutation",
    "relu": "gpunet.nn.functional.relu",
    "save": "gpunet.io.save",
    "sigmoid": "gpunet.nn.functional.sigmoid",
    "softmax": "gpunet.nn.functional.softmax",
    "topk": "gpunet.top_k",
    "transpose": "gpunet.permute_dims",
    "unsqueeze": "gpunet.expand_dims",
}

_SUBPACKAGES = ("data", "io", "nn", "optim", "testing", "train")
_TRANSFORMS = ("checkpoint", "detect_anomaly", "hessian", "jacobian", "jvp", "value_and_grad", "vjp", "vmap")
_LATER = dict.fromkeys(_TRANSFORMS, "gpunet.transforms") | {"draw": "gpunet.graph"}


def __getattr__(name: str) -> Any:
    """The subpackages and transformations, imported when they are first used, so that `import gpunet` is quick."""
    if name in _SUBPACKAGES:
        return importlib.import_module(f"gpunet.{name}")
    if name in _LATER:
        found = globals()[name] = getattr(importlib.import_module(_LATER[name]), name)
        return found
    if name == "bfloat16":
        return dtypes.bfloat16()
    hint = f"; here it is {_HINTS[name]}" if name in _HINTS else ""
    raise AttributeError(f"module 'gpunet' has no attribute {name!r}{hint}")
