"""Launching gpunet's kernels on CUDA devices, on CuPy's current device and stream."""

from __future__ import annotations

import ctypes
import threading
from typing import Any

from gpunet.backends import cuda_driver, nvrtc
from gpunet.backends.kernel import Launcher, Variant
from gpunet.errors import KernelError

_MAX_X, _MAX_YZ = 2**31 - 1, 65535  # blocks along a grid's axes (CUDA C++ Programming Guide, technical specifications)
_MAX_DYNAMIC_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
_FREE_SHARED = 48 << 10  # what a block may have without asking
_ALIGNMENT = 64  # of the parameters; a tensor map's, the strictest


class CupyLauncher(Launcher):
    """Compiles kernels at their first use, loads them once per device, and launches them from several threads."""

    def __init__(self, cupy: Any) -> None:
        self._cupy = cupy
        self._runtime = cupy.cuda.runtime
        self._devices: dict[int, _Device] = {}
        self._lock = threading.Lock()
        self._thread = _Thread()

    def _device(self) -> _Device:
        index = self._runtime.getDevice()
        device = self._devices.get(index)
        if device is None:
            with self._lock:
                device = self._devices.setdefault(index, _Device(self._cupy, index))
        return device

    @property
    def architecture(self) -> str:
        return self._device().architecture

    @property
    def processors(self) -> int:
        return self._device().processors

    def launch(self, variant: Variant, grid: tuple[int, int, int], *parameters: bytes) -> None:
        device = self._device()
        if device.index not in self._thread.entered:
            device.enter()
            self._thread.entered.add(device.index)
        kernel = device.kernels.get(variant) or device.load(variant)
        kernel.launch(grid, parameters)

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Any:
        return self._cupy.empty(shape, dtype)

    def pointer(self, array: Any) -> int:
        return array.data.ptr

    def capturing(self) -> bool:
        return self._runtime.streamIsCapturing(self._cupy.cuda.get_current_stream().ptr)

    def tensor_map(
        self, pointer: int, itemsize: int, shape: tuple[int, ...], strides: tuple[int, ...], box: tuple[int, ...]
    ) -> bytes:
        return cuda_driver.tensor_map(pointer, itemsize, shape, strides, box)


class _Thread(threading.local):
    """What a thread has done: the devices whose contexts it has entered."""

    def __init__(self) -> None:
        self.entered: set[int] = set()


class _Device:
    """A device, and the kernels that were loaded on it.

    Attributes:
        architecture: what decides which variants run, such as "sm_90a".
        target: what is compiled for: the architecture, or PTX such as "compute_120" for a device newer than NVRTC.
        processors: the number of multiprocessors.
    """

    def __init__(self, cupy: Any, index: int) -> None:
        device = cupy.cuda.Device(index)
        capability = device.compute_capability  # "90" is 9.0, "120" 12.0
        self.target = nvrtc.target(int(capability[:-1]), int(capability[-1]))
        self.architecture = self.target.replace("compute", "sm")
        self.processors = device.attributes["MultiProcessorCount"]
        self.shared = device.attributes["MaxSharedMemoryPerBlockOptin"]
        self.kernels: dict[Variant, _Kernel] = {}
        self.index = index
        self._cupy = cupy
        self._lock = threading.Lock()

    def enter(self) -> None:
        """Make this device's context the calling thread's. The driver's functions need that, and CuPy does not see to
        it where it only hands out memory that it holds already."""
        self._cupy.cuda.runtime.setDevice(self.index)

    def load(self, variant: Variant) -> _Kernel:
        """Compile a variant and load it on this device, the current one.

        Raises:
            KernelError: it does not compile, or takes more than the device has.
        """
        if not variant.runs_on(self.architecture):
            raise KernelError(f"{variant.expression} needs {variant.requires}; this device is {self.architecture}")
        with self._lock:  # threads that need the same kernel wait for the first to have it
            kernel = self.kernels.get(variant)
            if kernel is None:
                compiled = nvrtc.compiled(variant, self.target)
                if compiled.shared + variant.shared > self.shared:
                    raise KernelError(
                        f"{variant.expression} needs {compiled.shared + variant.shared} bytes of shared memory per "
                        f"block; this device has {self.shared}"
                    )
                kernel = self.kernels[variant] = _Kernel(self._cupy, variant, compiled)
            return kernel


class _Kernel:
    """A loaded kernel, and memory for its parameters that the driver reads them from."""

    def __init__(self, cupy: Any, variant: Variant, compiled: nvrtc.Compiled) -> None:
        self.variant = variant
        self._driver = cupy.cuda.driver
        self._current_stream = cupy.cuda.get_current_stream
        self._launch = cupy.cuda.driver.launchKernel
        self._lock = threading.Lock()
        try:
            self._module = cupy.cuda.function.Module()  # unloads its code when it is collected
            self._module.load(compiled.code)
            self._function = self._module.get_function(compiled.name)
            if variant.shared + compiled.shared > _FREE_SHARED:
                self._driver.funcSetAttribute(self._function.ptr, _MAX_DYNAMIC_SHARED, variant.shared)
        except self._driver.CUDADriverError as error:
            raise KernelError(f"{variant.expression} cannot be loaded: {error}") from error
        self._pointer = self._function.ptr
        self._views: list[memoryview] = []
        if compiled.parameters:
            self._make_room(compiled.parameters)

    def _make_room(self, parameters: tuple[tuple[int, int], ...]) -> None:
        """Memory for parameters of these (offset, size), and the addresses of each."""
        offset, size = parameters[-1]
        self._memory = ctypes.create_string_buffer(offset + size + _ALIGNMENT)
        base = ctypes.addressof(self._memory)
        start = -base % _ALIGNMENT
        view = memoryview(self._memory).cast("B")[start:]
        self._views = [view[offset : offset + size] for offset, size in parameters]
        self._addresses = (ctypes.c_void_p * len(parameters))(*(base + start + offset for offset, _ in parameters))
        self._parameters = ctypes.addressof(self._addresses)

    def launch(self, grid: tuple[int, int, int], parameters: tuple[bytes, ...]) -> None:
        x, y, z = grid
        if not (0 < x <= _MAX_X and 0 < y <= _MAX_YZ and 0 < z <= _MAX_YZ):
            raise KernelError(
                f"{self.variant.expression}: a grid has 1 to {_MAX_X} blocks along x and 1 to {_MAX_YZ} along y and z, "
                f"got {grid}"
            )
        with self._lock:
            if not self._views:  # PTX does not tell sizes
                ends = [0]
                for parameter in parameters:
                    ends.append(ends[-1] + -(-len(parameter) // _ALIGNMENT) * _ALIGNMENT)
                self._make_room(tuple(zip(ends, map(len, parameters))))
            try:
                for view, parameter in zip(self._views, parameters, strict=True):
                    view[:] = parameter
            except ValueError:
                raise KernelError(
                    f"{self.variant.expression} takes parameters of {[len(view) for view in self._views]} bytes, "
                    f"got {[len(parameter) for parameter in parameters]}"
                ) from None
            try:
                self._launch(
                    self._pointer,
                    x,
                    y,
                    z,
                    self.variant.threads,
                    1,
                    1,
                    self.variant.shared,
                    self._current_stream().ptr,
                    self._parameters,
                    0,
                )
            except self._driver.CUDADriverError as error:
                raise KernelError(
                    f"{self.variant.expression} could not be launched on a grid of {grid} blocks of "
                    f"{self.variant.threads} threads and {self.variant.shared} bytes of shared memory: {error}"
                ) from error
