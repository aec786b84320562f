"""The device that kernels are tested on: the emulated one, or with `--device cuda` a GPU."""

from __future__ import annotations

import pytest

from gpunet.backends import Backend, Device, get_backend
from gpunet.errors import DeviceError


@pytest.fixture(scope="session")
def kernel_device(request: pytest.FixtureRequest) -> Backend:
    """A backend with kernels."""
    chosen = request.config.getoption("--device")
    try:
        return get_backend(Device(chosen if chosen and Device(chosen).type == "cuda" else "emulated"))
    except DeviceError as error:
        pytest.skip(str(error))
