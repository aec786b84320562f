"""How ops are declared and dispatched."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import gpunet as gn
from gpunet import backends
from gpunet.backends.numpy import NumpyBackend
from gpunet.errors import DeviceError, DTypeError, ShapeError
from gpunet.ops.op import Op, op


class LaunchedArray(np.ndarray):
    """An array of a device that has kernels."""


class LaunchingBackend(NumpyBackend):
    """A device whose launcher notes what it launches."""

    name = "launching"
    array_type = LaunchedArray
    platform = "launching"

    def __init__(self) -> None:
        self.log: list[str] = []

    def launcher(self, name: str) -> Any:
        def launch(*args: Any) -> None:
            self.log.append(name)

        return launch

    def owns(self, kind: type) -> bool:
        return issubclass(kind, LaunchedArray)

    def device_of(self, array: Any) -> gn.Device:
        return gn.Device("launching")

    def from_numpy(self, array: np.ndarray, device: gn.Device) -> Any:
        return np.array(array).view(LaunchedArray)

    def array_from(self, value: Any) -> Any:
        return np.asarray(value).view(LaunchedArray)

    def to_numpy(self, array: Any) -> np.ndarray:
        return np.array(array)


@pytest.fixture
def backend() -> Iterator[LaunchingBackend]:
    made = LaunchingBackend()
    backends.register_backend("launching", lambda: made)
    yield made
    backends.unregister_backend("launching")


@pytest.fixture
def double() -> Op:
    @op
    def double(xp, x, *, times=2):
        return x * times

    @double.vjp
    def _(xp, g, _y, _x, *, times):
        return double(g, times=times)

    @double.kernel("double_rows", platform="launching", when=lambda x, *, times: x.ndim == 2)
    def _(launch, x, *, times):
        launch(x)
        return x * times

    @double.kernel("double_any", platform="launching", when=lambda x, *, times: x.ndim != 3)
    def _(launch, x, *, times):
        launch(x)
        return x * times

    return double


def test_the_first_kernel_that_applies_is_launched(backend: LaunchingBackend, double: Op) -> None:
    for shape, expected in [((2, 2), ["double_rows"]), ((4,), ["double_any"]), ((1, 1, 1), [])]:
        backend.log.clear()
        y = double(gn.ones(shape).to("launching"), times=3)
        assert backend.log == expected
        assert y.device == "launching" and (y.cpu().numpy() == 3.0).all()


def test_kernels_off_and_forced(backend: LaunchingBackend, double: Op) -> None:
    x = gn.ones((2, 2)).to("launching")
    with gn.kernels("off"):
        double(x)
        assert backend.log == []
        with gn.kernels("auto"):
            double(x)
    assert backend.log == ["double_rows"]
    with gn.kernels("force"):
        double(x)
        with pytest.raises(DeviceError, match=r"double: none of its kernels applies to \(1, 1, 1\) float32"):
            double(gn.ones((1, 1, 1)).to("launching"))
    double(gn.ones((1, 1, 1)).to("launching"))
    with pytest.raises(ValueError, match='expected "off", "auto" or "force", got \'on\''), gn.kernels("on"):
        pass


def test_derivatives_use_kernels_too(backend: LaunchingBackend, double: Op) -> None:
    x = gn.ones(4).to("launching").requires_grad_()
    y = double(x)
    y.backward(gn.ones(4).to("launching"))
    assert backend.log == ["double_any", "double_any"] and (x.grad.cpu().numpy() == 2.0).all()


def test_the_cpu_has_no_kernels(double: Op) -> None:
    with gn.kernels("force"):
        np.testing.assert_array_equal(double(np.ones(3)), [2.0, 2.0, 2.0])


def test_raw_arrays_give_raw_arrays(double: Op) -> None:
    assert type(double(np.ones(3))) is np.ndarray
    assert isinstance(double(gn.ones(3)), gn.Tensor)


def test_parameters_by_position_and_arrays_by_name() -> None:
    x = gn.ones((2, 3))
    assert gn.reshape(x, (3, 2)).shape == gn.reshape(x, shape=(3, 2)).shape == (3, 2)
    np.testing.assert_array_equal(gn.clip(gn.arange(5), max=2).numpy(), [0, 1, 2, 2, 2])
    assert gn.reshape(x, (3, 2), copy=True).data.base is None
    with pytest.raises(ShapeError, match="copy=False forbids"):
        gn.reshape(x.T, (6,), copy=False)
    with pytest.raises(TypeError, match="reshape: too many positional arguments"):
        gn.reshape(x, (3, 2), None, 5)
    with pytest.raises(TypeError, match="clip: got an unexpected keyword argument 'low'"):
        gn.clip(x, low=1)
    with pytest.raises(TypeError, match="add: missing a required argument: 'b'"):
        gn.add(x)


def test_errors_say_what_was_given() -> None:
    with pytest.raises(DTypeError, match="exp: expected at least one Tensor or array, got str"):
        gn.exp("a")
    with pytest.raises(ShapeError, match=r"reshape: .*it was given \(2, 3\) float32 with shape=\(4, 4\)"):
        gn.reshape(gn.ones((2, 3)), (4, 4))
    with pytest.raises(DTypeError, match="sum: .*unexpected keyword argument 'dim' .gpunet says axis"):
        gn.sum(gn.ones((2, 3)), dim=1)
    with pytest.raises(DTypeError, match="add: .*'text'"):
        gn.ones(2) + "text"


def test_repr_shows_the_signature() -> None:
    assert repr(gn.sum) == "<op sum(x, *, axis=None, dtype=None, keepdims=False)>"
    assert gn.sum.__doc__.startswith("The sum of the elements")


def test_the_derivative_of_arrays_is_asked_only_for_what_is_wanted() -> None:
    @op
    def product(xp, a, b):
        return a * b

    product.vjps(lambda xp, g, _y, _a, b: g * b, lambda xp, g, _y, a, _b: g * a)
    asked: list[list[bool]] = []

    @product.vjp_of_arrays
    def _(xp, g, _y, wanted, a, b):
        asked.append([want is not None for want in wanted])
        return [f() if want is not None else None for want, f in zip(wanted, (lambda: g * b, lambda: g * a))]

    a, b = gn.tensor([1.0, 2.0], requires_grad=True), gn.tensor([3.0, 5.0], requires_grad=True)
    product(a, b).sum().backward()
    assert a.grad.tolist() == [3.0, 5.0] and b.grad.tolist() == [1.0, 2.0]
    product(a.detach(), b).sum().backward()
    y = product(a, b).sum()
    assert gn.grad(y, a, retain_graph=True).tolist() == [3.0, 5.0]
    assert asked == [[True, True], [False, True], [True, False]]
    (first,) = gn.grad([y], [a], create_graph=True)  # on Tensors, it is the other one that is recorded
    assert gn.grad((first * first).sum(), b).tolist() == [6.0, 10.0]
    assert len(asked) == 3


def test_other_threads_record_where_one_does_not() -> None:
    x, found = gn.tensor([1.0, 2.0], requires_grad=True), []
    with gn.no_grad(), gn.kernels("off"):
        thread = threading.Thread(target=lambda: found.append((gn.exp(x).requires_grad, gn.is_grad_enabled())))
        thread.start()
        thread.join()
        assert not gn.exp(x).requires_grad and not gn.is_grad_enabled()
        with gn.enable_grad():
            assert (x * x).requires_grad and gn.is_grad_enabled()
    assert found == [(True, True)] and (x * x).requires_grad
