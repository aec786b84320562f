"""Tensor: its attributes, conversions, operators and methods."""

from __future__ import annotations

import copy

import numpy as np
import pytest

import gpunet as gn
from gpunet.errors import DTypeError, GradientError
from gpunet.tensor import _HINTS as TENSOR_HINTS

A = np.arange(-3.0, 3.0).reshape(2, 3)
N = np.arange(6).reshape(2, 3) + 1


def host(t: gn.Tensor) -> np.ndarray:
    return t.detach().cpu().numpy()


OPERATORS = {
    "a + b": lambda a, b: a + b,
    "a - b": lambda a, b: a - b,
    "a * b": lambda a, b: a * b,
    "a / b": lambda a, b: a / b,
    "a // b": lambda a, b: a // b,
    "a % b": lambda a, b: a % b,
    "a ** b": lambda a, b: b**a,
    "a == b": lambda a, b: a == b,
    "a != b": lambda a, b: a != b,
    "a < b": lambda a, b: a < b,
    "a <= b": lambda a, b: a <= b,
    "a > b": lambda a, b: a > b,
    "a >= b": lambda a, b: a >= b,
}


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_are_numpys(name: str, device: str) -> None:
    f, b = OPERATORS[name], np.array([1.5, 2.0, 3.0])
    x, y = gn.asarray(A, device=device), gn.asarray(b, device=device)
    for got, expected in [(f(x, y), f(A, b)), (f(x, 2.0), f(A, 2.0)), (f(2.0, y), f(2.0, b)), (f(3, y), f(3, b))]:
        np.testing.assert_array_equal(host(got), expected)
        assert got.dtype == expected.dtype and got.device == device


def test_integer_operators() -> None:
    x, y = gn.asarray(N), gn.asarray(np.array([1, 2, 3]))
    for f in (
        lambda a, b: a & b,
        lambda a, b: a | b,
        lambda a, b: a ^ b,
        lambda a, b: a << b,
        lambda a, b: a >> b,
        lambda a, b: ~a + b,
        lambda a, b: 7 & a | 1 ^ b,
        lambda a, b: -a + +b - abs(-a),
    ):
        np.testing.assert_array_equal(host(f(x, y)), f(N, np.array([1, 2, 3])))


def test_numpy_arrays_mix_in_on_the_cpu() -> None:
    x = gn.asarray(A)
    for y in (x + A, A + x, A @ x.T, x @ A.T):
        assert isinstance(y, gn.Tensor)
    np.testing.assert_array_equal(host(A - x), np.zeros((2, 3)))


def test_python_floats_do_not_widen() -> None:
    x = gn.ones(3)
    assert (x * 2.5).dtype == gn.float32 and (1 / x).dtype == gn.float32
    images = gn.asarray(np.array([0, 128, 255], np.uint8))
    assert (images / 255).dtype == gn.float32 and (images * 0.5).dtype == gn.float32 and (images + 1).dtype == gn.uint8
    assert gn.where(x > 0, 1.0, 0.0).dtype == gn.float32 and gn.where(x > 0, 1, 0).dtype == gn.int64
    assert (
        gn.where(x > 0, x, 0.5).dtype == gn.float32 and gn.where(x > 0, 0.5, x.astype(gn.float64)).dtype == gn.float64
    )
    assert gn.arange(3).mean().dtype == gn.float32 and gn.exp(gn.arange(3)).dtype == gn.float32


def test_in_place_operators_write_to_the_memory(device: str) -> None:
    x = gn.asarray(A.copy(), device=device)
    alias = x
    x += 1.0
    x *= 2.0
    x -= gn.ones(3, dtype=gn.float64, device=device)
    x /= 3.0
    x **= 2
    x //= 0.5
    x %= 5.0
    assert alias is x
    np.testing.assert_array_equal(host(x), ((((A + 1) * 2 - 1) / 3) ** 2 // 0.5) % 5.0)
    n = gn.asarray(N.copy(), device=device)
    n &= 3
    n |= 4
    n ^= 1
    np.testing.assert_array_equal(host(n), ((N & 3) | 4) ^ 1)


KEYS = [
    0, -1, (1, 2), slice(None, None, 2), (slice(None), 1), ..., (..., 0), None, (0, None, slice(1, None)),
    np.array([1, 0, 1]), (np.array([0, 1]), np.array([2, 0])), A > 0, [0, 1], (slice(None), [2, 0]), (), np.array(True),
]  # fmt: skip


@pytest.mark.parametrize("key", KEYS, ids=str)
def test_indexing_is_numpys(key, device: str) -> None:
    x = gn.asarray(A.copy(), device=device)
    np.testing.assert_array_equal(host(x[key]), A[key])
    expected = A.copy()
    expected[key] = 9.0
    x[key] = 9.0
    np.testing.assert_array_equal(host(x), expected)


def test_indexing_with_tensors(device: str) -> None:
    x = gn.asarray(A, device=device)
    np.testing.assert_array_equal(host(x[x > 0]), A[A > 0])
    np.testing.assert_array_equal(host(x[:, gn.asarray([2, 0], device=device)]), A[:, [2, 0]])
    with pytest.raises(IndexError, match=r"getitem: .*out of bounds.*\(2, 3\)"):
        x[5]


METHODS = {
    "reshape": (lambda t: t.reshape(3, 2), lambda a: a.reshape(3, 2)),
    "reshape tuple": (lambda t: t.reshape((3, -1)), lambda a: a.reshape(3, -1)),
    "flatten": (lambda t: t.flatten(), lambda a: a.flatten()),
    "T": (lambda t: t.T, lambda a: a.T),
    "mT": (lambda t: t.mT, lambda a: a.T),
    "transpose": (lambda t: t.transpose(), lambda a: a.transpose()),
    "transpose axes": (lambda t: t.transpose(1, 0), lambda a: a.transpose(1, 0)),
    "swapaxes": (lambda t: t.swapaxes(0, -1), lambda a: a.swapaxes(0, -1)),
    "squeeze": (lambda t: t[None].squeeze(), lambda a: a),
    "repeat": (lambda t: t.repeat(2, axis=1), lambda a: a.repeat(2, axis=1)),
    "take": (lambda t: t.take(gn.asarray([1], device=t.device), axis=1), lambda a: a.take([1], axis=1)),
    "sum": (lambda t: t.sum(), lambda a: a.sum()),
    "sum axis": (lambda t: t.sum(0, keepdims=True), lambda a: a.sum(0, keepdims=True)),
    "prod": (lambda t: t.prod(axis=1), lambda a: a.prod(axis=1)),
    "mean": (lambda t: t.mean(axis=(0, 1)), lambda a: a.mean()),
    "var": (lambda t: t.var(axis=1, correction=1), lambda a: a.var(axis=1, ddof=1)),
    "std": (lambda t: t.std(), lambda a: a.std()),
    "max": (lambda t: t.max(axis=0), lambda a: a.max(axis=0)),
    "min": (lambda t: t.min(), lambda a: a.min()),
    "argmax": (lambda t: t.argmax(1), lambda a: a.argmax(1)),
    "argmin": (lambda t: t.argmin(), lambda a: a.argmin()),
    "all": (lambda t: (t > -5).all(), lambda a: (a > -5).all()),
    "any": (lambda t: (t > 5).any(axis=0), lambda a: (a > 5).any(axis=0)),
    "cumsum": (lambda t: t.cumsum(axis=1), lambda a: a.cumsum(axis=1)),
    "clip": (lambda t: t.clip(-1, 1), lambda a: a.clip(-1, 1)),
    "clip max": (lambda t: t.clip(max=1), lambda a: a.clip(max=1)),
    "round": (lambda t: (t / 3).round(), lambda a: (a / 3).round()),
    "exp": (lambda t: t.exp(), np.exp),
    "log": (lambda t: (t + 4).log(), lambda a: np.log(a + 4)),
    "sqrt": (lambda t: (t + 4).sqrt(), lambda a: np.sqrt(a + 4)),
    "tanh": (lambda t: t.tanh(), np.tanh),
    "dot": (lambda t: t.dot(t.T), lambda a: a @ a.T),
    "trace": (lambda t: t.trace(), lambda a: a.trace()),
    "astype": (lambda t: t.astype(gn.float16), lambda a: a.astype(np.float16)),
    "copy": (lambda t: t.copy(), lambda a: a),
    "iterate": (lambda t: list(t)[1], lambda a: a[1]),
}


@pytest.mark.parametrize("name", METHODS)
def test_methods_are_numpys(name: str, device: str) -> None:
    ours, theirs = METHODS[name]
    got, expected = ours(gn.asarray(A, device=device)), np.asarray(theirs(A))
    assert isinstance(got, gn.Tensor) and got.shape == expected.shape and got.dtype == expected.dtype
    np.testing.assert_allclose(host(got), expected, rtol=1e-14)


def test_attributes(device: str) -> None:
    x = gn.asarray(A, device=device)
    assert (x.shape, x.ndim, x.size, x.nbytes, len(x)) == ((2, 3), 2, 6, 48, 2)
    assert x.dtype == gn.float64 and x.device == device and str(x.device).startswith(device)
    assert x.__array_namespace__() is gn
    assert 2.0 in x and 7.0 not in x


def test_python_numbers(device: str) -> None:
    x = gn.asarray(np.array([2.75]), device=device)
    assert (float(x), int(x), bool(x), x.item(), complex(x)) == (2.75, 2, True, 2.75, 2.75 + 0j)
    assert f"{x:.1f}" == "2.8" and range(5)[gn.asarray(3, device=device)] == 3
    with pytest.raises(ValueError, match="truth value of a tensor of shape .2, 3. is ambiguous"):
        bool(gn.asarray(A))
    with pytest.raises(TypeError, match="one element"):
        float(gn.asarray(A))
    with pytest.raises(ValueError, match="item: expected a tensor of one element"):
        gn.asarray(A).item()
    with pytest.raises(TypeError, match="0-d"):
        len(gn.asarray(1.0))
    with pytest.raises(TypeError, match="0-d"):
        iter(gn.asarray(1.0))


def test_numpy_shares_the_memory() -> None:
    a = A.copy()
    x = gn.asarray(a)
    assert np.shares_memory(np.asarray(x), a) and x.numpy() is a and np.shares_memory(np.from_dlpack(x), a)
    assert np.asarray(x, dtype=np.float32).dtype == np.float32
    assert not np.shares_memory(np.array(x, copy=True), a)
    with pytest.raises(GradientError, match=r"a NumPy array of a tensor that requires gradients: use x.detach\(\)"):
        np.asarray(gn.tensor(A, requires_grad=True))
    with pytest.raises(GradientError, match=r"x.detach\(\).numpy\(\)"):
        gn.tensor([1.0], requires_grad=True).numpy()


def test_to() -> None:
    x = gn.ones(3)
    assert x.to("cpu") is x and x.to(gn.float32) is x and x.to("float64").dtype == gn.float64
    y = x.to("strict")
    assert y.device == "strict" and y.cpu().device == "cpu"


def test_deepcopy() -> None:
    x = gn.tensor([1.0, 2.0], requires_grad=True)
    y = copy.deepcopy(x)
    assert y.requires_grad and y.is_leaf and not np.shares_memory(x.data, y.data)
    with pytest.raises(GradientError, match="no op made"):
        copy.deepcopy(x * 2)


def test_grad_attribute() -> None:
    x = gn.tensor([1.0, 2.0], requires_grad=True)
    assert x.grad is None
    x.grad = gn.ones(2)
    with pytest.raises(GradientError, match=r"must have the tensor's shape \(2,\), got \(3,\)"):
        x.grad = gn.ones(3)
    with pytest.raises(DTypeError, match="Tensor or None"):
        x.grad = 1.0
    with pytest.raises(GradientError, match="requires gradients"):
        gn.ones(2).grad = gn.ones(2)
    with pytest.raises(GradientError, match="only on a leaf"):
        (x * 2).requires_grad = False
    x.requires_grad = False
    assert not (x * 2).requires_grad


def test_repr(device: str) -> None:
    assert repr(gn.tensor([1.0, 2.5])) == "tensor([1. , 2.5])"
    x = gn.tensor(np.array([1, 2], np.int8), device="strict")
    assert repr(x) == 'tensor([1, 2], dtype=int8, device="strict:0")'
    p = gn.tensor(1.0, requires_grad=True)
    assert repr(p) == "tensor(1., requires_grad=True)" and repr(p * 2) == "tensor(2., made_by=multiply)"


def test_where_what_pytorch_has_is_found() -> None:
    x = gn.ones((2, 3))
    with pytest.raises(AttributeError, match=r"'Tensor' object has no attribute 'view'; here it is x.reshape"):
        x.view(3, 2)
    with pytest.raises(AttributeError, match="no attribute 'colour'$"):
        _ = x.colour
    with pytest.raises(AttributeError, match="no attribute 'cat'; here it is gpunet.concat"):
        gn.cat([x, x])
    for hints, owner in ((TENSOR_HINTS, x), (gn._HINTS, gn)):
        assert not [name for name in hints if name in dir(owner)]  # no hint for what is there


def test_empty_arrays(device: str) -> None:
    x = gn.zeros((0, 3), device=device).requires_grad_()
    y = (x * 2).sum()
    y.backward()
    assert y.item() == 0.0 and x.grad.shape == (0, 3)
    assert (x @ gn.ones((3, 2), device=device)).shape == (0, 2)


def test_reshape_can_copy() -> None:
    x = gn.ones(4)
    y = x.reshape(2, 2, copy=True)
    y += 1.0
    assert x.numpy().tolist() == [1.0] * 4


def test_empty_list_as_an_index() -> None:
    assert gn.ones((3, 2))[[]].shape == (0, 2)


def test_in_place_division_of_integers_is_refused() -> None:
    x = gn.arange(4)
    with pytest.raises(DTypeError, match="divide: cannot write a result of float32 to an array of int64"):
        x /= 2
    with pytest.raises(DTypeError, match="pow: cannot write a result of float64 to an array of int64"):
        x **= 0.5
    assert x.tolist() == [0, 1, 2, 3]
