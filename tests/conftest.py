"""What all tests share: the device they run on, and a fixed seed."""

from __future__ import annotations

import pytest

import gpunet as gn
import tests.strict  # noqa: F401 (makes device="strict" available)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--device", help='run the device-independent tests on this device, such as "cuda"; default: "cpu" and "strict"'
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "device" in metafunc.fixturenames:
        chosen = metafunc.config.getoption("--device")
        metafunc.parametrize("device", [chosen] if chosen else ["cpu", "strict"])


@pytest.fixture(autouse=True)
def seed() -> None:
    gn.manual_seed(0)
