"""Finding backends and the kernels' sources."""

from __future__ import annotations

import numpy as np
import pytest

import gpunet as gn
from gpunet.backends import backend_of_type, kernel_folder, resolve
from gpunet.backends.numpy import NumpyBackend
from gpunet.errors import DTypeError


def test_backends_of_arrays() -> None:
    assert isinstance(backend_of_type(np.ndarray), NumpyBackend)
    assert backend_of_type(np.float32) is backend_of_type(np.ndarray)
    with pytest.raises(DTypeError, match="expected a Tensor or an array, got an object of type dict"):
        backend_of_type(dict)
    foreign = type("Tensor", (), {"__module__": "torch", "__dlpack__": None})
    hint = r"an object of type torch\.Tensor; gpunet\.asarray\(x\) makes a Tensor of it"
    with pytest.raises(DTypeError, match=hint):
        backend_of_type(foreign)


def test_resolve() -> None:
    assert resolve("cpu") == gn.Device("cpu") and resolve(gn.Device("cuda:1")) == "cuda:1"
    assert str(resolve("auto")) in gn.available_devices()


def test_kernel_folder() -> None:
    assert (kernel_folder() / "README.md").is_file()
