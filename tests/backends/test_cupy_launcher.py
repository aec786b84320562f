"""The launcher for CUDA devices, with a stand-in for the part of CuPy that needs a GPU."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from gpunet.backends import cuda_driver, nvrtc
from gpunet.backends.cupy_launcher import CupyLauncher
from gpunet.backends.kernel import Variant
from gpunet.errors import KernelError

SUMS = Variant("sums", "sums<float>", threads=128)


class CUDADriverError(RuntimeError):
    pass


class FakeCupy:
    """Devices of a made-up machine. What is launched is written down, parameters as the driver would read them."""

    def __init__(self, *capabilities: str, parameters: tuple[tuple[int, int], ...] = ((0, 12), (16, 8))) -> None:
        self.capabilities = capabilities
        self.parameters = parameters
        self.current = 0
        self.capturing = False
        self.fail = ""
        self.loaded: list[tuple[int, bytes]] = []
        self.attributes: list[tuple[int, int, int]] = []
        self.launches: list[tuple[Any, ...]] = []
        self.contexts: set[tuple[int, int]] = set()
        machine = self

        class Device:
            def __init__(self, index: int) -> None:
                self.compute_capability = machine.capabilities[index]
                self.attributes = {"MultiProcessorCount": 100 + index, "MaxSharedMemoryPerBlockOptin": 99 << 10}

        class Module:
            def load(self, code: bytes) -> None:
                if code == b"damaged":
                    raise CUDADriverError("CUDA_ERROR_INVALID_IMAGE")
                machine.loaded.append((machine.current, code))

            def get_function(self, name: str) -> SimpleNamespace:
                return SimpleNamespace(ptr=1000 * (machine.current + 1) + len(machine.loaded))

        self.cuda = SimpleNamespace(
            Device=Device,
            function=SimpleNamespace(Module=Module),
            get_current_stream=lambda: SimpleNamespace(ptr=77 + self.current),
            runtime=SimpleNamespace(
                getDevice=lambda: self.current,
                setDevice=lambda index: self.contexts.add((threading.get_ident(), index)),
                streamIsCapturing=lambda stream: self.capturing and stream == 77,
            ),
            driver=SimpleNamespace(
                CUDADriverError=CUDADriverError,
                funcSetAttribute=lambda *arguments: self.attributes.append(arguments),
                launchKernel=self.launch,
            ),
        )
        self.empty = np.empty

    def launch(self, function: int, *numbers: int) -> None:
        *dimensions, shared, stream, parameters, extra = numbers
        assert (threading.get_ident(), self.current) in self.contexts and extra == 0
        if self.fail:
            raise CUDADriverError(self.fail)
        addresses = ctypes.cast(parameters, ctypes.POINTER(ctypes.c_void_p))
        for i, (offset, _) in enumerate(self.parameters):
            assert addresses[i] % (offset & -offset or 64) == 0
        values = tuple(ctypes.string_at(addresses[i], size) for i, (_, size) in enumerate(self.parameters))
        self.launches.append((function, *dimensions, shared, stream, *values))


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Stand-in for the compiler: what it was asked for. Static shared memory is the number in the expression."""
    asked = []

    def stand_in(variant: Variant, architecture: str) -> nvrtc.Compiled:
        asked.append((variant.expression, architecture))
        code = b"damaged" if variant.expression == "damaged" else f"{variant.expression} {architecture}".encode()
        parameters = () if architecture.startswith("compute") else ((0, 12), (16, 8))
        return nvrtc.Compiled(code, "name", shared=1000, parameters=parameters)

    monkeypatch.setattr(nvrtc, "compiled", stand_in)
    monkeypatch.setattr(nvrtc, "capabilities", lambda: (70, 75, 80, 90, 100))
    return asked


def test_launch(compiled: list[tuple[str, str]]) -> None:
    cupy = FakeCupy("80")
    launcher = CupyLauncher(cupy)
    assert (launcher.architecture, launcher.processors) == ("sm_80", 100)
    launcher.launch(SUMS, (3, 2, 1), b"a" * 12, b"b" * 8)
    launcher.launch(SUMS, (5, 65535, 65535), b"c" * 12, b"d" * 8)
    assert cupy.launches == [
        (1001, 3, 2, 1, 128, 1, 1, 0, 77, b"a" * 12, b"b" * 8),
        (1001, 5, 65535, 65535, 128, 1, 1, 0, 77, b"c" * 12, b"d" * 8),
    ]
    assert compiled == [("sums<float>", "sm_80")] and cupy.loaded == [(0, b"sums<float> sm_80")]
    assert cupy.attributes == []


def test_each_device_has_its_own(compiled: list[tuple[str, str]]) -> None:
    cupy = FakeCupy("80", "90", "120")
    launcher = CupyLauncher(cupy)
    for cupy.current in (0, 1, 2, 0, 1, 2):
        launcher.launch(SUMS, (1, 1, 1), bytes(12), bytes(8))
    assert [launch[0] for launch in cupy.launches] == [1001, 2002, 3003, 1001, 2002, 3003]
    assert [launch[8] for launch in cupy.launches] == [77, 78, 79, 77, 78, 79]
    assert [architecture for _, architecture in compiled] == ["sm_80", "sm_90a", "compute_100"]
    assert launcher.architecture == "sm_100" and launcher.processors == 102


def test_ptx_tells_no_sizes(compiled: list[tuple[str, str]]) -> None:
    cupy = FakeCupy("120", parameters=((0, 5), (64, 70), (192, 8)))
    CupyLauncher(cupy).launch(SUMS, (1, 1, 1), b"a" * 5, b"b" * 70, b"c" * 8)
    assert cupy.launches[0][9:] == (b"a" * 5, b"b" * 70, b"c" * 8)


def test_much_shared_memory_is_asked_for(compiled: list[tuple[str, str]]) -> None:
    cupy = FakeCupy("80")
    launcher = CupyLauncher(cupy)
    for shared in (40_000, 48_153, (99 << 10) - 1000):
        launcher.launch(Variant("sums", "sums<float>", 128, shared), (1, 1, 1), bytes(12), bytes(8))
    assert [launch[7] for launch in cupy.launches] == [40_000, 48_153, 100_376]
    assert cupy.attributes == [(1002, 8, 48_153), (1003, 8, 100_376)]
    with pytest.raises(KernelError, match="needs 101377 bytes of shared memory per block; this device has 101376"):
        launcher.launch(Variant("sums", "sums<float>", 128, 100_377), (1, 1, 1), bytes(12), bytes(8))


@pytest.mark.parametrize("grid", [(0, 1, 1), (1, 65536, 1), (1, 1, 65536), (2**31, 1, 1), (1, -1, 1)])
def test_grids_out_of_range(grid: tuple[int, int, int], compiled: list[tuple[str, str]]) -> None:
    cupy = FakeCupy("80")
    with pytest.raises(KernelError, match="sums<float>: a grid has 1 to 2147483647 blocks along x and 1 to 65535"):
        CupyLauncher(cupy).launch(SUMS, grid, bytes(12), bytes(8))
    assert cupy.launches == []


@pytest.mark.parametrize("parameters", [(), (bytes(12),), (bytes(12), bytes(9)), (bytes(12), bytes(8), b"")])
def test_parameters_must_have_the_kernels_sizes(parameters: tuple[bytes, ...], compiled: list[tuple[str, str]]) -> None:
    cupy = FakeCupy("80")
    with pytest.raises(KernelError, match=r"takes parameters of \[12, 8\] bytes, got \["):
        CupyLauncher(cupy).launch(SUMS, (1, 1, 1), *parameters)
    assert cupy.launches == []


def test_errors_of_the_driver(compiled: list[tuple[str, str]]) -> None:
    cupy = FakeCupy("80")
    launcher = CupyLauncher(cupy)
    cupy.fail = "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES"
    with pytest.raises(KernelError, match=r"could not be launched on a grid of \(3, 1, 1\) blocks of 128 .*RESOURCES"):
        launcher.launch(SUMS, (3, 1, 1), bytes(12), bytes(8))
    with pytest.raises(KernelError, match="damaged cannot be loaded: CUDA_ERROR_INVALID_IMAGE"):
        launcher.launch(Variant("sums", "damaged", 1), (1, 1, 1))
    with pytest.raises(KernelError, match=r"sums<float> needs sm_90a; this device is sm_80"):
        launcher.launch(Variant("sums", "sums<float>", 1, requires="sm_90a"), (1, 1, 1))


def test_threads_do_not_mix_up_parameters(compiled: list[tuple[str, str]]) -> None:
    cupy = FakeCupy("80")
    launcher = CupyLauncher(cupy)

    def work(i: int) -> None:
        for _ in range(200):
            launcher.launch(SUMS, (i + 1, 1, 1), bytes([i]) * 12, bytes([i]) * 8)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(8)))
    assert len(cupy.launches) == 1600 and len(cupy.loaded) == 1
    assert all(launch[9] == bytes([launch[1] - 1]) * 12 for launch in cupy.launches)


def test_capturing(compiled: list[tuple[str, str]]) -> None:
    cupy = FakeCupy("80")
    launcher = CupyLauncher(cupy)
    assert not launcher.capturing()
    cupy.capturing = True
    assert launcher.capturing()


def test_memory(compiled: list[tuple[str, str]]) -> None:
    array = CupyLauncher(FakeCupy("80")).empty((2, 3), np.float16)
    assert array.shape == (2, 3) and array.dtype == np.float16
    assert CupyLauncher(FakeCupy("80")).pointer(SimpleNamespace(data=SimpleNamespace(ptr=5))) == 5


def test_cupy_has_what_is_used() -> None:
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
    cuda = cupy.cuda
    used = {
        cuda: ["Device", "get_current_stream"],
        cuda.Device: ["compute_capability", "attributes"],
        cuda.function.Module: ["load", "get_function"],
        cuda.function.Function: ["ptr"],
        cuda.runtime: ["getDevice", "setDevice", "streamIsCapturing"],
        cuda.driver: ["CUDADriverError", "funcSetAttribute", "launchKernel"],
        cupy.ndarray: ["data"],
    }
    assert [name for owner, names in used.items() for name in names if not hasattr(owner, name)] == []


@contextmanager
def fake_driver(monkeypatch: pytest.MonkeyPatch, result: int = 0) -> Iterator[list[Any]]:
    calls: list[Any] = []

    def encode(target: Any, kind: int, rank: Any, address: Any, shape: Any, strides: Any, box: Any, *rest: Any) -> int:
        assert target.value % 64 == 0
        ctypes.memset(target.value, 0xAB, 128)
        steps, *modes = rest
        calls.append((kind, rank.value, address.value, *(list(x) for x in (shape, strides, box, steps)), modes))
        return result

    monkeypatch.setattr(cuda_driver, "_library", lambda: SimpleNamespace(cuTensorMapEncodeTiled=encode))
    cuda_driver.tensor_map.cache_clear()
    yield calls
    cuda_driver.tensor_map.cache_clear()


def test_tensor_map(monkeypatch: pytest.MonkeyPatch, compiled: list[tuple[str, str]]) -> None:
    launcher = CupyLauncher(FakeCupy("90"))
    with fake_driver(monkeypatch) as calls:
        for _ in range(2):  # the second is remembered
            made = launcher.tensor_map(0x7000, 2, (1000, 512, 3), (2048, 2048 * 512), (64, 128, 1))
        launcher.tensor_map(0x7010, 4, (32,), (), (32,))
    assert made == b"\xab" * 128
    assert calls == [
        (1, 3, 0x7000, [1000, 512, 3], [2048, 2048 * 512], [64, 128, 1], [1, 1, 1], [0, 3, 3, 0]),
        (11, 1, 0x7010, [32], [0], [32], [1], [0, 3, 3, 0]),
    ]


@pytest.mark.parametrize(
    "arguments, text",
    [
        ((0, 8, (16,), (), (16,)), "elements of 8 bytes"),
        ((0, 2, (64,) * 6, (128,) * 5, (64,) * 6), "6 axes"),
        ((0, 2, (64, 2), (), (64, 2)), "0 strides"),
        ((8, 2, (64,), (), (64,)), "address 0x8 or strides .* no multiples of 16"),
        ((0, 2, (63, 2), (126,), (64, 2)), r"strides \(126,\) that are no multiples of 16"),
        ((0, 2, (0, 2), (128,), (64, 2)), r"a shape \(0, 2\)"),
        ((0, 2, (64, 2), (0,), (64, 2)), r"strides \(0,\) out of range"),
        ((0, 4, (64, 2), (256,), (64, 2)), "whose first axis is not of 128 bytes"),
        ((0, 2, (64, 512), (128,), (64, 512)), "longer than 256"),
    ],
)
def test_arrays_that_a_tensor_map_cannot_describe(
    arguments: tuple[Any, ...], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with fake_driver(monkeypatch) as calls, pytest.raises(KernelError, match=f"accelerator cannot take .*{text}"):
        cuda_driver.tensor_map(*arguments)
    assert calls == []


def test_tensor_map_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_driver(monkeypatch, result=1), pytest.raises(KernelError, match="refused an array .*: error 1"):
        cuda_driver.tensor_map(0, 2, (64,), (), (64,))
    monkeypatch.setattr(cuda_driver, "_library", lambda: SimpleNamespace())
    with pytest.raises(KernelError, match="driver is too old .* CUDA 12 or later"):
        cuda_driver.tensor_map(0, 2, (64,), (), (64,))


@pytest.mark.skipif(Path("/proc/driver/nvidia").exists(), reason="this machine has NVIDIA's driver")
def test_no_driver() -> None:
    cuda_driver._library.cache_clear()
    with pytest.raises(KernelError, match="the CUDA driver cannot be loaded: "):
        cuda_driver.tensor_map(0, 2, (64,), (), (64,))
