"""What can be known of the CUDA backend without a GPU: CuPy has every function that gpunet calls on it."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest

import gpunet as gn
import gpunet.ops
from gpunet.backends import Device
from gpunet.backends.cupy import CupyBackend
from gpunet.errors import DeviceError
from tests.every_op import all_ops
from tests.strict import ATTRIBUTES, LACKING


def functions_called_on_xp() -> set[str]:
    """Dotted names after "xp." in the ops, and the names of ops that call the function of their name."""
    names = {op.name for op in all_ops().values() if op.direct}
    for file in Path(gpunet.ops.__path__[0]).glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Attribute):
                parts = []
                while isinstance(node, ast.Attribute):
                    parts.append(node.attr)
                    node = node.value
                if isinstance(node, ast.Name) and node.id == "xp":
                    names.add(".".join(reversed(parts)))
    return names


def test_the_scan_finds_something() -> None:
    assert {"exp", "zeros_like", "linalg.diagonal", "add", "bitwise_and"} <= functions_called_on_xp()
    assert not functions_called_on_xp() & LACKING


def test_cupy_has_what_is_called() -> None:
    pytest.importorskip("cupy", reason="CuPy is not installed")
    xp = pytest.importorskip("array_api_compat.cupy", reason="array-api-compat is not installed")

    def has(name: str) -> bool:
        found = xp
        for part in name.split("."):
            found = getattr(found, part, None)
        return found is not None

    assert [name for name in sorted(functions_called_on_xp()) if not has(name)] == []


def test_the_strict_device_offers_no_more_than_cupy() -> None:
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
    assert [name for name in sorted(ATTRIBUTES) if not hasattr(cupy.ndarray, name)] == []


def test_factorizations_that_fail_are_reported() -> None:
    cupyx = pytest.importorskip("cupyx", reason="CuPy is not installed")
    before = cupyx.geterr()["linalg"]
    with CupyBackend.__new__(CupyBackend).reporting():
        assert cupyx.geterr()["linalg"] == "raise"
    assert cupyx.geterr()["linalg"] == before == "ignore"


@pytest.mark.skipif(len(gn.available_devices()) > 1, reason="this machine has a GPU")
def test_no_gpu() -> None:
    pytest.importorskip("cupy", reason="CuPy is not installed")
    with pytest.raises(DeviceError, match="needs an NVIDIA GPU and its driver; CuPy is installed but finds none"):
        gn.zeros(1, device="cuda")


@pytest.mark.skipif(len(gn.available_devices()) == 1, reason="this machine has no GPU")
def test_on_a_gpu() -> None:
    x = gn.asarray(np.ones((2, 3)), device="cuda")
    assert x.device == Device("cuda:0") and (x + x).sum().item() == 12.0
    with pytest.raises(DeviceError, match="NumPy array"):
        gn.add(x, np.ones(3))
