"""Compiling kernels with NVRTC, which needs no GPU."""

from __future__ import annotations

import builtins
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from gpunet import backends
from gpunet.backends import nvrtc, sources
from gpunet.backends.kernel import Variant
from gpunet.errors import KernelError

GOOD = r"""// Sums.
#include "types.cuh"
template <class T, int N>
__global__ void __launch_bounds__(128) sums(const __grid_constant__ Shape shape, T* out) {
    __shared__ T part[N];
    part[threadIdx.x % N] = twice(out[threadIdx.x]);
    __syncthreads();
    T sum = 0;
    for (int i = 0; i < shape.length; i++) sum += part[i] / part[N - 1 - i];
    out[threadIdx.x] = sum;
}
"""
TYPES = r"""#pragma once
struct Shape { int length; double scale[20]; };
template <class T> __device__ T twice(T x) { return x + x; }
"""
SUMS = Variant("sums", "sums<float, 32>", threads=128)


@pytest.fixture
def kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(backends, "kernel_folder", lambda: tmp_path)
    monkeypatch.setenv("GPUNET_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "sums.cu").write_text(GOOD)
    (tmp_path / "types.cuh").write_text(TYPES)
    return tmp_path


@pytest.fixture
def compiler() -> None:
    pytest.importorskip("cupy", reason="CuPy is not installed")
    try:
        nvrtc.version()
    except KernelError as error:
        pytest.skip(f"NVRTC is not installed: {error}")


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """As on a machine with another installation, which `monkeypatch` then describes."""
    memories = (nvrtc._library, nvrtc.version, nvrtc.capabilities)
    for memory in memories:
        memory.cache_clear()
    yield monkeypatch
    for memory in memories:
        memory.cache_clear()


def fake_nvrtc(version: tuple[int, int], known: tuple[int, ...]) -> SimpleNamespace:
    return SimpleNamespace(getVersion=lambda: version, getSupportedArchs=lambda: known)


@pytest.mark.parametrize("architecture", ["sm_75", "sm_80", "sm_90a"])
def test_machine_code(architecture: str, kernels: Path, compiler: None) -> None:
    made = nvrtc.compiled(SUMS, architecture)
    assert made.code.startswith(b"\x7fELF") and "sums" in made.name
    assert 10 < made.registers <= 128 and made.spills == 0 and made.shared == 128 and made.notes == ()
    assert made.parameters == ((0, 168), (168, 8))
    assert nvrtc.Compiled.from_bytes(made.to_bytes()) == made


def test_ptx_for_devices_to_come(kernels: Path, compiler: None) -> None:
    made = nvrtc.compiled(SUMS, "compute_80")
    assert b".target sm_80" in made.code and made.name.encode() in made.code


def test_arithmetic_is_ieee(kernels: Path, compiler: None) -> None:
    ptx = nvrtc.compiled(SUMS, "compute_80").code
    assert b"div.rn.f32" in ptx and b".ftz" not in ptx and b".approx" not in ptx


def test_what_was_compiled_is_not_compiled_again(
    kernels: Path, compiler: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert nvrtc.on_disk(SUMS, "sm_80") is None
    made = nvrtc.compiled(SUMS, "sm_80")

    def refuse(*args: object) -> nvrtc.Compiled:
        raise AssertionError("compiled again")

    with monkeypatch.context() as patch:
        patch.setattr(nvrtc, "build", refuse)
        assert nvrtc.compiled(SUMS, "sm_80") == made == nvrtc.on_disk(SUMS, "sm_80")
        assert nvrtc.on_disk(SUMS, "sm_86") is None
        assert nvrtc.on_disk(Variant("sums", "sums<float, 16>", threads=128), "sm_80") is None
        patch.setattr(nvrtc, "version", lambda: "11.0")
        assert nvrtc.on_disk(SUMS, "sm_80") is None
    (kernels / "types.cuh").write_text(TYPES + "// changed\n")
    assert nvrtc.on_disk(SUMS, "sm_80") is None


def test_spills_are_counted(kernels: Path, compiler: None) -> None:
    text = GOOD.replace("__launch_bounds__(128)", "__launch_bounds__(1024, 2)").replace(
        "T sum = 0;", "T many[200];\n#pragma unroll\nfor (int i = 0; i < 200; i++) many[i] = out[i];\nT sum = 0;"
    )
    text = text.replace(
        "out[threadIdx.x] = sum;", "#pragma unroll\nfor (T x : many) sum = sum * sum + x;\nout[0] = sum;"
    )
    (kernels / "sums.cu").write_text(text)
    assert nvrtc.compiled(SUMS, "sm_80").spills > 0


def test_an_error_shows_the_line(kernels: Path, compiler: None) -> None:
    (kernels / "sums.cu").write_text(GOOD.replace("T sum = 0;", "T sum = zero;"))
    with pytest.raises(KernelError) as caught:
        nvrtc.compiled(SUMS, "sm_80")
    assert str(caught.value) == (
        "sums<float, 32> does not compile for sm_80:\n"
        '  kernels/sums.cu:8: identifier "zero" is undefined\n'
        "      T sum = zero;"
    )


def test_errors_in_a_header_and_many(kernels: Path, compiler: None) -> None:
    (kernels / "types.cuh").write_text(TYPES + "".join(f"__device__ int x{i} = none{i};\n" for i in range(5)))
    with pytest.raises(KernelError) as caught:
        nvrtc.compiled(SUMS, "sm_80")
    lines = str(caught.value).splitlines()
    assert lines[1:3] == ['  kernels/types.cuh:4: identifier "none0" is undefined', "      __device__ int x0 = none0;"]
    assert lines[-1] == "  and 2 more errors" and len(lines) == 8


def test_no_such_instance(kernels: Path, compiler: None) -> None:
    with pytest.raises(KernelError, match='kernels/sums.cu has no such instance: identifier "sum" is undefined'):
        nvrtc.compiled(Variant("sums", "sum<float>", threads=1), "sm_80")


def test_an_instruction_that_the_architecture_lacks(kernels: Path, compiler: None) -> None:
    asm = 'asm volatile("cp.async.wait_all;");'
    (kernels / "sums.cu").write_text(GOOD.replace("T sum = 0;", f"T sum = 0; {asm}"))
    assert nvrtc.compiled(SUMS, "sm_80").name
    with pytest.raises(KernelError, match=r"does not compile for sm_75:\n  ptxas.*cp\.async.* requires .*sm_80"):
        nvrtc.compiled(SUMS, "sm_75")


def test_warnings_are_kept(kernels: Path, compiler: None) -> None:
    (kernels / "sums.cu").write_text(GOOD.replace("T sum = 0;", "int unused = 1; T sum = 0;"))
    (note,) = nvrtc.compiled(SUMS, "sm_80").notes
    assert note.startswith("kernels/sums.cu(8): warning") and "unused" in note


def test_an_architecture_that_nvrtc_does_not_know(kernels: Path, compiler: None) -> None:
    with pytest.raises(KernelError, match="does not compile for sm_999; it knows .*sm_80, "):
        nvrtc.compiled(SUMS, "sm_999")


def test_cuda_13_and_volta(kernels: Path, elsewhere: pytest.MonkeyPatch) -> None:
    elsewhere.setattr(nvrtc, "_library", lambda: fake_nvrtc((13, 1), (75, 80, 90)))
    with pytest.raises(KernelError, match=r'NVRTC 13.1 that is installed does not compile for sm_70.*"gpunet\[cuda\]"'):
        nvrtc.build(sources.read("sums"), "sums<float, 32>", "sm_70")
    with pytest.raises(KernelError, match="does not compile for sm_72"):
        nvrtc.target(7, 2)


def test_targets(elsewhere: pytest.MonkeyPatch) -> None:
    elsewhere.setattr(nvrtc, "_library", lambda: fake_nvrtc((12, 9), (61, 90, 70, 75, 80, 86, 100)))
    assert nvrtc.capabilities() == (61, 70, 75, 80, 86, 90, 100)
    found = {device: nvrtc.target(*device) for device in [(7, 0), (7, 2), (7, 5), (8, 0), (8, 9), (9, 0), (10, 3)]}
    assert list(found.values()) == ["sm_70", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90a", "sm_100"]
    assert nvrtc.target(12, 0) == "compute_100"
    with pytest.raises(KernelError, match="compute capability 6.1 is too old: gpunet's kernels need at least 7.0"):
        nvrtc.target(6, 1)


def test_no_cupy(elsewhere: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: object, **kwargs: object) -> object:
        if name.split(".")[0] == "cupy":
            raise ImportError("No module named 'cupy'")
        return real(name, *args, **kwargs)  # type: ignore[arg-type]

    elsewhere.setattr(builtins, "__import__", without)
    with pytest.raises(KernelError, match=r'needs CuPy and NVRTC: pip install "gpunet\[cuda\]".*No module named'):
        nvrtc.version()


def test_no_nvrtc(elsewhere: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError("CuPy failed to load libnvrtc.so.12: OSError: no such file\nmore")

    module = SimpleNamespace(nvrtc=SimpleNamespace(getVersion=fail))
    elsewhere.setitem(sys.modules, "cupy", SimpleNamespace(cuda=module))
    elsewhere.setitem(sys.modules, "cupy.cuda", module)
    with pytest.raises(KernelError, match="pip install nvidia-cuda-nvrtc-cu12 .* no such file$"):
        nvrtc.version()
