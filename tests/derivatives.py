"""Every public function of arrays, and how it is differentiated: the cases of tests/test_derivatives.py.

python -m tests.derivatives writes docs/derivatives.md
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

import gpunet as gn

PAGE = Path(__file__).parents[1] / "docs" / "derivatives.md"
MODULES: dict[str, ModuleType] = {"": gn, "linalg.": gn.linalg, "fft.": gn.fft, "special.": gn.special}

rng = np.random.default_rng(0)


class Case(NamedTuple):
    """A function of arrays at which it is smooth."""

    function: Callable[..., Any]
    arrays: tuple[np.ndarray, ...]


CASES: dict[str, dict[str, list[Case]]] = {}  # by the function's name and "real" or "complex"
NONE: dict[str, str] = {}  # functions without a derivative, and why


def find(name: str) -> Any:
    *module, last = name.split(".")
    return getattr(getattr(gn, module[0]) if module else gn, last)


def add(name: str, *arrays: np.ndarray, f: Callable[..., Any] | None = None, **options: Any) -> None:
    """A case; it is a complex one if some array is."""
    f = partial(find(name), **options) if options else f
    kind = "complex" if any(a.dtype.kind == "c" for a in arrays) else "real"
    CASES.setdefault(name, {}).setdefault(kind, []).append(Case(find(name) if f is None else f, arrays))


def x(*shape: int, low: float = -1.5, high: float = 1.5) -> np.ndarray:
    """Numbers no two of which are close."""
    n = int(np.prod(shape))
    return (low + (high - low) * (rng.permutation(n) + rng.uniform(0.3, 0.7, n)) / max(n, 1)).reshape(shape)


def z(*shape: int) -> np.ndarray:
    return x(*shape) + 1j * x(*shape)


def matrix(n: int, *lead: int, kind: Any = x) -> np.ndarray:
    """Well-conditioned matrices."""
    return kind(*lead, n, n) + 3.0 * np.eye(n)


def definite(n: int, kind: Any = x) -> np.ndarray:
    a = kind(n, n)
    return a @ np.conj(a.T) + np.diag(np.arange(1.0, n + 1))


def both(
    name: str, *shapes: tuple[int, ...], f: Callable[..., Any] | None = None, empty: Any = ..., **options: Any
) -> None:
    """A real case, a complex one, one of strided arrays, and one without elements.

    Args:
        name, f: of the function; what calls it.
        shapes: of the arrays.
        empty: shapes without elements; by default the first array has none; None: there is no such case.
        options: keyword arguments of the function.
    """
    f = partial(find(name), **options) if options else f
    function = find(name) if f is None else f
    add(name, *(x(*s) for s in shapes), f=function)
    add(name, *(z(*s) for s in shapes), f=function)
    add(name, *(np.repeat(x(*s), 2, axis=-1)[..., ::2] for s in shapes), f=function)
    if empty is ...:
        empty = ((0, *shapes[0][1:]), *shapes[1:])
    if empty:
        add(name, *(x(*s) for s in empty), f=function)


# --- element by element

for _name in (
    "conj", "cos", "cosh", "exp", "expm1", "imag", "negative", "positive", "real", "sin", "sinh", "square", "tan",
    "tanh", "abs", "sign", "asinh", "atan",
):  # fmt: skip
    both(_name, (3, 4))
for _name in ("log", "log10", "log1p", "log2", "sqrt", "reciprocal"):
    add(_name, x(3, 4, low=0.3, high=2.0))
    add(_name, z(3, 4))
for _name in ("acos", "asin", "atanh"):
    add(_name, x(3, 4, low=-0.8, high=0.8))
    add(_name, z(3, 4))
add("acosh", x(3, 4, low=1.2, high=3.0))
add("acosh", z(3, 4))
for _name in ("add", "subtract", "multiply"):
    both(_name, (3, 4), (4,))
    add(_name, x(3, 1), z(4))
for _name in ("divide", "pow"):
    add(_name, x(3, 4, low=0.5, high=2.0), x(4, low=0.5, high=2.0))
    add(_name, z(3, 4), z(4))
    add(_name, x(3, 1, low=0.5, high=2.0), z(4))
for _name in ("atan2", "copysign", "hypot", "logaddexp", "maximum", "minimum"):
    add(_name, x(3, 4), x(4) + 0.017)
add("remainder", x(3, 4), x(4, low=0.5, high=2.0))
add("clip", x(3, 4), f=lambda a: gn.clip(a, -0.53, 0.71))
add("clip", x(3, 4), np.full(4, -0.53), np.full((3, 1), 0.71))
both("where", (3, 3), (3,), f=lambda a, b: gn.where(gn.asarray([True, False, True]), a, b))
both("astype", (3,), f=lambda a: gn.astype(a, gn.complex128) ** 2)

# --- reductions

for _name in ("sum", "mean", "prod"):
    both(_name, (3, 4), axis=-1)
    both(_name, (3, 4), axis=0, keepdims=True, empty=None)
for _name in ("var", "std"):
    add(_name, x(3, 4), axis=1, correction=1)
for _name in ("max", "min"):
    add(_name, x(3, 4), axis=1)
    add(_name, x(3, 4))
for _name in ("cumulative_sum", "cumulative_prod"):
    both(_name, (3, 4), axis=-1, include_initial=True)
add("cumulative_prod", np.array([[1.0, 0.0, 2.0, 0.0]]), axis=1)
add("prod", np.array([[1.0, 0.0, 2.0], [0.0, 3.0, 0.0]]), axis=1)

# --- other shapes

_indices = np.array([2, 0, 2])
for _name, _f in {
    "broadcast_to": lambda a: gn.broadcast_to(a, (2, *a.shape)),
    "expand_dims": lambda a: gn.expand_dims(a, axis=(0, -1)),
    "flip": lambda a: gn.flip(a, axis=-1),
    "matrix_transpose": gn.matrix_transpose,
    "moveaxis": lambda a: gn.moveaxis(a, -1, 0),
    "pad": lambda a: gn.pad(a, [(0, 0)] * (a.ndim - 1) + [(1, 2)]),
    "permute_dims": lambda a: gn.permute_dims(a, tuple(range(a.ndim))[::-1]),
    "repeat": lambda a: gn.repeat(a, 2, axis=-1),
    "reshape": lambda a: gn.reshape(a, (*a.shape[:-2], 6, -1) if a.size else a.shape[::-1]),
    "roll": lambda a: gn.roll(a, 1, axis=-1),
    "split": lambda a: gn.split(a, 2, axis=-1),
    "squeeze": lambda a: gn.squeeze(a[..., None], axis=-1),
    "take": lambda a: gn.take(a, gn.asarray(_indices), axis=-1),
    "tile": lambda a: gn.tile(a, (2,) * a.ndim),
    "tril": gn.tril,
    "triu": lambda a: gn.triu(a, k=1),
    "unstack": lambda a: gn.unstack(a, axis=-1),
    "diff": lambda a: gn.diff(a, axis=-1, n=2),
    "asarray": lambda a: gn.asarray(a, copy=True) * 2.0,
    "linalg.diagonal": gn.linalg.diagonal,
    "linalg.trace": gn.linalg.trace,
    "linalg.matrix_transpose": gn.linalg.matrix_transpose,
}.items():
    both(_name, (3, 4), f=_f)
both("broadcast_arrays", (3, 1), (4,))
both("meshgrid", (3,), (4,), f=lambda a, b: gn.meshgrid(gn.reshape(a, (-1,)), gn.reshape(b, (-1,))))
both("concat", (3, 4), (3, 2), f=lambda a, b: gn.concat([a, b], axis=-1), empty=((0, 4), (0, 2)))
both("stack", (3, 4), (3, 4), f=lambda a, b: gn.stack([a, b], axis=1), empty=((0, 4), (0, 4)))
both("take_along_axis", (3, 4), f=lambda a: gn.take_along_axis(a, gn.argsort(gn.real(a), axis=-1), axis=-1))
add("sort", x(3, 4), f=lambda a: gn.sort(a, axis=0, descending=True))
add("top_k", x(3, 4), f=lambda a: gn.top_k(a, 2)[0])
add("unique_values", x(5))
add("unique_counts", x(5), f=lambda a: gn.unique_counts(a).values)
add("unique_inverse", x(5), f=lambda a: gn.unique_inverse(a).values)
add("unique_all", x(5), f=lambda a: gn.unique_all(a).values)

# --- products

for _prefix in ("", "linalg."):
    both(f"{_prefix}matmul", (3, 4), (4, 2))
    add(f"{_prefix}matmul", x(2, 3, 4), x(4))
    add(f"{_prefix}tensordot", x(2, 3, 4), x(3, 4, 2))
    add(f"{_prefix}tensordot", z(3, 4), z(4, 2), axes=1)
    both(f"{_prefix}vecdot", (3, 4), (4,), f=gn.vecdot)
add("einsum", x(2, 3, 3), x(3, 4), f=lambda a, b: gn.einsum("...ii,ij->...j", a, b))
add("einsum", z(3, 3), z(3, 4), f=lambda a, b: gn.einsum("ik,kj->j", a, b))
add("linalg.outer", x(3), x(4))
add("linalg.outer", z(3), z(4))
add("linalg.cross", x(2, 3), x(3))
add("linalg.cross", z(2, 3), z(3))
for _kind in (x, z):
    add("linalg.multi_dot", _kind(3, 4), _kind(4, 2), _kind(2, 3), f=lambda *a: gn.linalg.multi_dot(a))

# --- linear algebra

for _kind in (x, z):
    for _name in ("det", "inv", "slogdet", "expm"):
        add(f"linalg.{_name}", matrix(3, 2, kind=_kind))
    add("linalg.matrix_power", matrix(3, kind=_kind), f=lambda a: gn.linalg.matrix_power(a, 3))
    add("linalg.matrix_power", matrix(3, kind=_kind), f=lambda a: gn.linalg.matrix_power(a, -2))
    add("linalg.solve", matrix(3, kind=_kind), _kind(3, 2))
    add("linalg.solve", matrix(3, 2, kind=_kind), _kind(3))
    add("linalg.solve_triangular", matrix(3, kind=_kind), _kind(3, 2))
    add("linalg.lstsq", _kind(5, 3), _kind(5, 2), f=lambda a, b: gn.linalg.lstsq(a, b)[0])
    for _shape in ((4, 3), (3, 4)):
        add("linalg.pinv", _kind(*_shape))
        add("linalg.svdvals", _kind(*_shape))
        add("linalg.matrix_norm", _kind(*_shape))
        for _ord in ("nuc", 2, -2, 1, -1, np.inf, -np.inf):
            add("linalg.matrix_norm", _kind(*_shape), ord=_ord)
    for _ord in (2, 1, 3, np.inf, -np.inf):
        add("linalg.vector_norm", _kind(3, 4), axis=-1, ord=_ord)
    add("linalg.norm", _kind(3, 4))
    add("linalg.cond", matrix(3, kind=_kind))

add("linalg.cholesky", definite(3), f=lambda a: gn.linalg.cholesky((a + a.mT) / 2))
add("linalg.cholesky", definite(3, z), f=lambda a: gn.linalg.cholesky((a + gn.conj(a).mT) / 2))
for _name in ("eigh", "eigvalsh"):
    add(f"linalg.{_name}", definite(3), f=lambda a, f=find(f"linalg.{_name}"): f((a + a.mT) / 2))  # noqa: B008
add("linalg.eigvalsh", definite(3, z), f=lambda a: gn.linalg.eigvalsh((a + gn.conj(a).mT) / 2))
_matrix = definite(3, z)


def _projections(vectors: Any) -> Any:
    """What of some vectors does not depend on their phases."""
    return gn.abs(gn.matmul(gn.asarray(_matrix), vectors)) ** 2


add("linalg.eigh", _matrix, f=lambda a: _projections(gn.linalg.eigh((a + gn.conj(a).mT) / 2).eigenvectors))
add("linalg.qr", x(4, 3))
add("linalg.qr", x(3, 4))
add("linalg.qr", z(4, 3))
add("linalg.svd", x(4, 3), f=lambda a: gn.linalg.svd(a, full_matrices=False))
add("linalg.svd", z(3, 3), f=lambda a: _projections(gn.linalg.svd(a, full_matrices=False).U))
for _kind in (x, z):
    add("linalg.eigvals", np.diag([1.0, 3.0, 6.0]) + 0.3 * _kind(3, 3))
    add(
        "linalg.eig",
        np.diag([1.0, 3.0, 6.0]) + 0.3 * _kind(3, 3),
        f=lambda a: _projections(gn.linalg.eig(a).eigenvectors),
    )

# --- Fourier transforms

for _name in ("fft", "ifft", "hfft", "irfft"):
    both(f"fft.{_name}", (3, 4))
for _name in ("fftn", "ifftn", "irfftn"):
    both(f"fft.{_name}", (3, 4), empty=None)
for _name in ("rfft", "rfftn", "ihfft"):
    add(f"fft.{_name}", x(3, 4))
    add(f"fft.{_name}", x(3, 5))
for _name in ("fftshift", "ifftshift"):
    both(f"fft.{_name}", (3, 4))

# --- special functions

for _name in ("digamma", "psi", "gammaln"):
    add(f"special.{_name}", x(3, 4, low=0.3, high=5.0))
for _name in ("erf", "erfc", "erfcx", "expit", "i0", "i0e", "i1", "i1e", "log_expit", "log_ndtr", "ndtr"):
    add(f"special.{_name}", x(3, 4))
for _name in ("logit", "entr"):
    add(f"special.{_name}", x(3, 4, low=0.1, high=0.9))
add("special.erfinv", x(3, 4, low=-0.9, high=0.9))
add("special.polygamma", x(3, 4, low=0.5, high=4.0), f=lambda a: gn.special.polygamma(1, a))
for _name in ("betaln", "rel_entr", "xlogy", "xlog1py"):
    add(f"special.{_name}", x(3, 4, low=0.3, high=3.0), x(4, low=0.3, high=3.0))
for _name in ("softmax", "log_softmax", "logsumexp"):
    add(f"special.{_name}", x(3, 4), axis=-1)

# --- and those that have none

for _reason, _names in {
    "its results are whole numbers or truth values": (
        "all any argmax argmin argsort bincount bitwise_and bitwise_invert bitwise_left_shift bitwise_or "
        "bitwise_right_shift bitwise_xor count_nonzero equal greater greater_equal isfinite isin isinf isnan less "
        "less_equal logical_and logical_not logical_or logical_xor nonzero not_equal searchsorted signbit "
        "linalg.matrix_rank"
    ),
    "a step function, with a zero for a gradient": "ceil floor round trunc",
    "a step function; not recorded": "floor_divide nextafter",
    "it makes new arrays": (
        "arange empty empty_like eye from_dlpack full full_like linspace ones ones_like tensor zeros zeros_like "
        "fft.fftfreq fft.rfftfreq"
    ),
}.items():
    NONE.update(dict.fromkeys(_names.split(), _reason))

NOT_OF_ARRAYS = (
    "available_devices backward broadcast_shapes can_cast checkpoint default_device default_dtype detect_anomaly draw "
    "finfo get_float32_precision get_num_threads grad hessian iinfo is_grad_enabled isdtype jacobian jvp kernels "
    "manual_seed result_type set_default_device set_default_dtype set_float32_precision set_num_threads "
    "value_and_grad vjp vmap"
)


def public_functions() -> Iterator[str]:
    """The names of all public functions of arrays."""
    left_out = NOT_OF_ARRAYS.split()
    for prefix, module in MODULES.items():
        names = getattr(module, "__all__", None) or [n for n in vars(module) if not n.startswith("_")]
        for name in sorted(names):
            found = getattr(module, name)
            if callable(found) and not isinstance(found, type) and name not in left_out:
                yield prefix + name


def page() -> str:
    """The table."""
    lines = [
        "# What can be differentiated",
        "",
        "Every function of arrays. ✓: forward mode, reverse mode, and the four ways to combine them for second",
        "derivatives agree with finite differences in float64 (complex128), which tests/test_derivatives.py checks;",
        "–: there is nothing to differentiate, or no complex form. This page is written by",
        "`python -m tests.derivatives`.",
        "",
        "| | real | complex | |",
        "|---|---|---|---|",
    ]
    for name in public_functions():
        kinds = CASES.get(name, {})
        marks = ["✓" if kind in kinds else "–" for kind in ("real", "complex")]
        lines.append(f"| `{name}` | {marks[0]} | {marks[1]} | {NONE.get(name, '')} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(), encoding="utf-8")
