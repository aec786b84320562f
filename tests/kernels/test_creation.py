"""Arrays made of nothing on a device with kernels: NumPy's, and nothing that NumPy or CuPy computes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gpunet as gn
from gpunet.backends import Backend
from gpunet.backends.emulated import emulation

CASES: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = [
    (gn.zeros, ((3, 5),), {}),
    (gn.zeros, (7,), {"dtype": gn.int64}),
    (gn.ones, ((2, 0),), {"dtype": gn.float16}),
    (gn.ones, ((),), {"dtype": gn.bool}),
    (gn.full, ((2, 3), 2.5), {}),
    (gn.full, (4, -7), {"dtype": gn.int8}),
    (gn.arange, (300,), {}),
    (gn.arange, (3, -9, -2), {"dtype": gn.int32}),
    (gn.arange, (0.3, 5.0, 0.1), {}),
    (gn.arange, (1.0, 0.0, -0.01), {"dtype": gn.float64}),
    (gn.arange, (5, 2), {}),
    (gn.linspace, (-1.0, 2.0, 37), {}),
    (gn.linspace, (0, 1, 10), {"endpoint": False, "dtype": gn.float64}),
    (gn.eye, (4,), {}),
    (gn.eye, (3, 6), {"k": 2, "dtype": gn.int64}),
    (gn.eye, (6, 3), {"k": -4}),
    (gn.eye, (2, 3), {"k": 3}),
]


@pytest.mark.parametrize(("function", "args", "params"), CASES, ids=str)
def test_what_is_made(function: Any, args: Any, params: Any, kernel_device: Backend) -> None:
    host: list[str] = []
    with emulation(host=host):
        made = function(*args, **params, device=kernel_device.name)
    expected = function(*args, **params, device="cpu")
    assert made.dtype == expected.dtype and host == []
    np.testing.assert_array_equal(made.cpu().numpy(), expected.numpy())


def test_what_no_kernel_makes(kernel_device: Backend) -> None:
    made = gn.full((2,), 1j, dtype=gn.complex64, device=kernel_device.name)
    assert made.cpu().numpy().tolist() == [1j, 1j]
    assert gn.arange(3, dtype=gn.float16, device=kernel_device.name).cpu().numpy().tolist() == [0, 1, 2]
    with pytest.raises(OverflowError):
        gn.full((2,), 300, dtype=gn.uint8, device=kernel_device.name)
