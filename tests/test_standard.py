"""What the Array API 2025.12 asks for and NumPy does otherwise, or not at all."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest

import gpunet as gn
from gpunet.errors import DTypeError, ShapeError

INF, NAN = np.inf, np.nan


def same(got: Any, expected: Any) -> bool:
    """Equal to the last bit of a sign; NaN equals NaN."""
    got, expected = (np.asarray(v).view(np.float64) for v in (got, expected))
    return bool(np.array_equal(got, expected, equal_nan=True) and np.array_equal(np.signbit(got), np.signbit(expected)))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_floor_divide_of_infinities(dtype: str, device: str) -> None:
    a = np.array([INF, INF, -INF, -INF, 1, -1, 1, -1, INF, NAN, 0, 7, -7], dtype)
    b = np.array([1, -1, 1, -1, -INF, INF, INF, -INF, INF, INF, -INF, 2, 2], dtype)
    expected = np.array([INF, -INF, -INF, INF, -0.0, -0.0, 0, 0, NAN, NAN, -0.0, 3, -4])
    x, y = gn.asarray(a, device=device), gn.asarray(b, device=device)
    with np.errstate(invalid="ignore"):
        quotient = (x // y).cpu().numpy()
        x //= y
    for found in (quotient, x.cpu().numpy()):
        known = ~np.isnan(expected)
        assert same(found[known].astype(np.float64), expected[known]) and np.isnan(found[~known]).all()
        assert found.dtype == dtype


COMPLEX = {
    "expm1": {
        complex(0.0, 0.0): complex(0.0, 0.0),
        complex(-0.0, 0.0): complex(0.0, 0.0),
        complex(INF, 0.0): complex(INF, 0.0),
        complex(-INF, INF): complex(-1.0, 0.0),
        complex(INF, INF): complex(INF, NAN),
        complex(-INF, NAN): complex(-1.0, 0.0),
        complex(INF, NAN): complex(INF, NAN),
        complex(NAN, 0.0): complex(NAN, 0.0),
        complex(1e-20, 1e-20): complex(1e-20, 1e-20),
        complex(800.0, 0.0): complex(INF, 0.0),
    },
    "tanh": {
        complex(INF, 2.0): complex(1.0, 0.0),
        complex(INF, -2.0): complex(1.0, -0.0),
        complex(-INF, 2.0): complex(-1.0, 0.0),
        complex(0.0, INF): complex(0.0, NAN),
    },
}


@pytest.mark.parametrize("name", COMPLEX)
def test_complex_special_cases(name: str, device: str) -> None:
    z = np.array(list(COMPLEX[name]))
    with np.errstate(all="ignore"):
        found = getattr(gn, name)(gn.asarray(z, device=device)).cpu().numpy()
        alone = [getattr(gn, name)(gn.asarray(one, device=device)).cpu().numpy() for one in z]
    for argument, got, single, expected in zip(z, found, alone, COMPLEX[name].values()):
        for part in ("real", "imag"):
            wanted = getattr(expected, part)
            for value in (getattr(got, part), getattr(single, part)):
                assert value == pytest.approx(wanted, rel=1e-15, nan_ok=True), argument
                assert np.isnan(wanted) or np.signbit(value) == np.signbit(wanted), argument


def test_expm1_keeps_its_digits_near_zero(device: str) -> None:
    z = 1e-9 * (np.random.default_rng(0).standard_normal(50) + 1j * np.random.default_rng(1).standard_normal(50))
    exact = z + z**2 / 2 + z**3 / 6
    np.testing.assert_allclose(gn.expm1(gn.asarray(z, device=device)).cpu().numpy(), exact, rtol=1e-14)


def test_parameters_stand_where_the_standard_has_them() -> None:
    for function, name in [
        (gn.reshape, "shape"), (gn.squeeze, "axis"), (gn.expand_dims, "axis"), (gn.permute_dims, "axes"),
        (gn.broadcast_to, "shape"), (gn.roll, "shift"),
    ]:  # fmt: skip
        assert inspect.signature(function).parameters[name].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD, function
    for function, name in [(gn.sum, "axis"), (gn.cumulative_sum, "dtype"), (gn.astype, "device"), (gn.flip, "axis")]:
        assert inspect.signature(function).parameters[name].kind is inspect.Parameter.KEYWORD_ONLY, function


def test_inspection() -> None:
    info = gn.zeros(1).__array_namespace__().__array_namespace_info__()
    assert info.capabilities()["boolean indexing"] and info.capabilities()["data-dependent shapes"]
    assert info.default_device() == "cpu" and "cpu" in info.devices()
    assert info.default_dtypes() == {
        "real floating": gn.float32, "complex floating": gn.complex64, "integral": gn.int64, "indexing": gn.int64,
    }  # fmt: skip
    assert set(info.dtypes(kind="real floating")) == {"float32", "float64"}
    assert set(info.dtypes(kind=("bool", "complex floating"))) == {"bool", "complex64", "complex128"}
    assert len(info.dtypes()) == 13
    gn.zeros(tuple([1] * info.capabilities()["max dimensions"]))
    with pytest.raises(ValueError):
        gn.zeros(tuple([1] * (info.capabilities()["max dimensions"] + 1)))
    gn.set_default_dtype(gn.float64)
    try:
        assert info.default_dtypes()["complex floating"] == gn.complex128
    finally:
        gn.set_default_dtype(gn.float32)


def test_limits_are_python_numbers() -> None:
    for dtype in (gn.float16, gn.float32, gn.float64, gn.complex64):
        ours, numpys = gn.finfo(dtype), np.finfo(dtype)
        assert ours.bits == numpys.bits and ours.dtype == numpys.dtype
        for name in ("eps", "max", "min", "smallest_normal"):
            assert type(getattr(ours, name)) is float and getattr(ours, name) == getattr(numpys, name)


def test_bfloat16_is_floating_point() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes, which gives NumPy bfloat16, is not installed")
    assert gn.bfloat16 == ml_dtypes.bfloat16 and gn.ones(2, dtype=gn.bfloat16).dtype == gn.bfloat16
    assert np.asarray(gn.ones(2, dtype=gn.bfloat16)).dtype == gn.bfloat16
    assert gn.finfo(gn.bfloat16).eps == 2**-7 and gn.isdtype(np.dtype(ml_dtypes.bfloat16), "real floating")
    x = gn.tensor(np.array([1.0, 2.0]).astype(ml_dtypes.bfloat16), requires_grad=True)
    gn.sum(x * x).backward()
    assert x.grad is not None and x.grad.dtype == x.dtype and x.grad.tolist() == [2.0, 4.0]


def test_broadcasting() -> None:
    assert gn.broadcast_shapes() == () and gn.broadcast_shapes((3, 1), (2,)) == (3, 2)
    with pytest.raises(ShapeError, match=r"broadcast_shapes: \(3,\), \(2,\) do not broadcast together"):
        gn.broadcast_shapes((3,), (2,))
    a, b = gn.tensor(np.ones((3, 1)), requires_grad=True), gn.ones(2)
    x, y = gn.broadcast_arrays(a, b)
    assert x.shape == y.shape == (3, 2)
    (x * y).sum().backward()
    assert a.grad is not None and a.grad.tolist() == [[2.0]] * 3


def test_casts() -> None:
    z = gn.asarray([1 + 2j, 0j])
    assert gn.astype(z, gn.bool).tolist() == [True, False]
    with pytest.raises(DTypeError, match="astype: complex128 does not become float32 by itself; take real, imag or"):
        gn.astype(z, gn.float32)
    x = gn.ones(2)
    assert gn.astype(x, gn.float32, copy=False, device="cpu") is x and gn.astype(x, gn.float32) is not x


def test_whole_numbers_keep_their_digits() -> None:
    large = [0, 2**63 + 1, 2**64 - 1]
    assert gn.asarray(large, dtype=gn.uint64).tolist() == large


def test_running_sums_of_another_type(device: str) -> None:
    x = gn.asarray(np.array([100, 100, 100], np.int8), device=device)
    assert gn.cumulative_sum(x).dtype == gn.int64 and gn.cumulative_sum(x).tolist() == [100, 200, 300]
    y = gn.cumulative_prod(x, dtype=gn.float32, include_initial=True)
    assert y.dtype == gn.float32 and y.tolist() == [1.0, 100.0, 10_000.0, 1_000_000.0]


def test_expand_dims_refuses_axes_that_are_not_there() -> None:
    for axes in ((0, 0), (3,), (0, -3)):
        with pytest.raises(ShapeError, match="expand_dims"):
            gn.expand_dims(gn.ones(2), axis=axes)


def test_numpy_sees_the_memory_itself() -> None:
    x = gn.arange(3)
    view = np.asarray(x)
    view[1] = 5
    assert x.tolist() == [0, 5, 2] and x.__array_interface__["shape"] == (3,)


def test_dlpack_takes_the_standards_arguments() -> None:
    x = gn.arange(3)
    y = gn.from_dlpack(x)
    y[0] = 7
    assert x.tolist() == [7, 1, 2] and np.from_dlpack(x, copy=True).tolist() == [7, 1, 2]
    assert tuple(x.__dlpack_device__()) == (1, 0)
    with pytest.raises(BufferError):
        x.__dlpack__(dl_device=(2, 0))
