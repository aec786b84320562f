"""Kernels compiled ahead of time, the reports on them, and the command that does both."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpunet import backends, cli, kernel_tools
from gpunet.backends import nvrtc, sass
from gpunet.backends.kernel import ARCHITECTURES, Variant
from gpunet.errors import KernelError
from gpunet.kernel_tools import Job

SCALE = r"""
template <class T>
__global__ void __launch_bounds__(256) scale(T* x, T factor, int n) {
    extern __shared__ __align__(1024) unsigned char gn_shared[];
    T sum = 0;
    for (int i = 0; i < n; i++) sum = sum * factor + x[i];
    x[threadIdx.x] = sum + gn_shared[threadIdx.x];
}
"""
SCALES = [
    Variant("scale", "scale<float>", threads=256, shared=60_000),
    Variant("scale", "scale<double>", threads=256, requires="sm_80+"),
    Variant("shift", "shift<float>", threads=32, requires="sm_90a"),
]


@pytest.fixture
def kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(backends, "kernel_folder", lambda: tmp_path)
    monkeypatch.setattr(kernel_tools, "all_variants", lambda: SCALES)
    monkeypatch.setenv("GPUNET_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "scale.cu").write_text(SCALE)
    (tmp_path / "shift.cu").write_text(SCALE.replace("scale", "shift").replace("x[i];", "x[i] + y;"))
    return tmp_path


@pytest.fixture
def compiler() -> None:
    try:
        nvrtc.version()
    except KernelError as error:
        pytest.skip(f"no compiler: {error}")


@pytest.fixture
def cuda_12(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvrtc, "version", lambda: "12.9")
    monkeypatch.setattr(nvrtc, "capabilities", lambda: (61, 70, 75, 80, 86, 89, 90, 100, 120))


def test_architectures(cuda_12: None) -> None:
    assert kernel_tools.architectures("sm_80, sm_90,sm_90a") == ["sm_80", "sm_90a"]  # what an H100 asks for, once
    assert kernel_tools.architectures("all") == [a for a in ARCHITECTURES if a != "sm_90"]


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "expected architectures such as sm_80,sm_90a or \"all\", got ''"),
        ("sm_80,80", "expected architectures"),
        ("sm_61", "compute capability 6.1 is too old"),
        ("sm_87", "the NVRTC 12.9 that is installed does not compile for sm_87"),
        ("sm_130", "does not compile for sm_130"),
    ],
)
def test_no_architectures(text: str, message: str, cuda_12: None) -> None:
    with pytest.raises(KernelError, match=message):
        kernel_tools.architectures(text)


def test_families(kernels: Path) -> None:
    assert kernel_tools.every_variant() == SCALES
    assert kernel_tools.every_variant("sh") == SCALES[2:]
    with pytest.raises(KernelError, match="no kernel's file begins with 'conv'; there are: scale, shift"):
        kernel_tools.every_variant("conv")


def test_compile_all(kernels: Path, compiler: None, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = [Job(SCALES[0], "sm_80"), Job(SCALES[2], "sm_90a"), Job(SCALES[1], "sm_80")]
    made = dict(kernel_tools.compile_all(jobs, processes=1))
    assert set(made) == set(jobs)
    error = made.pop(jobs[1])
    assert isinstance(error, KernelError) and 'shift.cu:6: identifier "y" is undefined' in str(error)
    monkeypatch.setattr(nvrtc, "build", lambda *_: pytest.fail("it is on disk"))
    assert dict(kernel_tools.compile_all([jobs[0], jobs[2]])) == made


def test_compile_all_in_processes(tmp_path: Path, compiler: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUNET_CACHE_DIR", str(tmp_path))
    variants = [v for v in kernel_tools.every_variant() if v.runs_on("sm_80")][-2:]
    variants.append(Variant(variants[0].file, "none<float>", 256))
    made = dict(kernel_tools.compile_all([Job(v, "sm_80") for v in variants], processes=2))
    assert [type(made[v, "sm_80"]) for v in variants] == [nvrtc.Compiled, nvrtc.Compiled, KernelError]
    assert nvrtc.on_disk(variants[0], "sm_80") == made[variants[0], "sm_80"]


def test_resources() -> None:
    job = Job(Variant("scale", "scale<float>", threads=256, shared=60_000), "sm_80")
    row = kernel_tools.resources(job, nvrtc.Compiled(b"", "scale", registers=64, spills=8, shared=2_000))
    assert row == ("scale<float>", "sm_80", "64", "8", "2000", "60000", "2", "25%", "shared memory")
    assert len(row) == len(kernel_tools.HEADER)


def test_faults() -> None:
    job = Job(Variant("sums", "sums<float>", 128, registers=100), "sm_80")
    assert kernel_tools.faults(job, nvrtc.Compiled(b"", "sums", registers=100)) == []
    bad = nvrtc.Compiled(b"", "sums", registers=101, spills=8, notes=("Potential Performance Loss",))
    assert kernel_tools.faults(job, bad) == [
        "sums<float> for sm_80: spills 8 bytes of registers",
        "sums<float> for sm_80: takes 101 registers, more than 100",
        "sums<float> for sm_80: Potential Performance Loss",
    ]
    assert kernel_tools.faults(job, KernelError("does not compile")) == ["does not compile"]


def test_check(
    kernels: Path, compiler: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        sass.nvdisasm()
    except KernelError as error:
        pytest.skip(f"no disassembler: {error}")
    good = Variant("scale", "scale<float>", threads=256, instructions=("FFMA", r"LDG\.E"))
    bad = Variant("scale", "scale<double>", threads=256, registers=4, instructions=("DFMA", "HMMA"))
    monkeypatch.setattr(kernel_tools, "all_variants", lambda: [good])
    assert cli.main(["kernels", "check", "--arch", "sm_75,sm_80", "--jobs", "1"]) == 0
    assert capsys.readouterr().out == "2 kernels are as they should be\n"
    monkeypatch.setattr(kernel_tools, "all_variants", lambda: [good, bad])
    assert cli.main(["kernels", "check", "--arch", "sm_80", "--jobs", "1"]) == 1
    out, error = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0] == "scale<double> for sm_80: has no HMMA" and len(lines) == 2
    assert lines[1].startswith("scale<double> for sm_80: takes ") and lines[1].endswith(" registers, more than 4")
    assert error == "gpunet: 2 faults in 2 kernels\n"


def test_table() -> None:
    assert kernel_tools.table([("kernel", "size", "why"), ("a", "5", ""), ("bcdefgh", "1000", "x")]) == (
        "kernel   size  why\na           5\nbcdefgh  1000  x"
    )


def test_list(kernels: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["kernels", "list"]) == 0
    assert capsys.readouterr().out == (
        "file      instances  runs on\nscale.cu          1  sm_70+\nscale.cu          1  sm_80+\n"
        "shift.cu          1  sm_90a\n"
    )


def test_compile_ahead_of_time(kernels: Path, compiler: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["kernels", "compile", "--family", "scale", "--arch", "sm_75,sm_80", "--jobs", "1"]) == 0
    assert f"3 kernels are in {kernels / 'cache'}, after " in capsys.readouterr().out
    assert nvrtc.on_disk(SCALES[0], "sm_75") and nvrtc.on_disk(SCALES[1], "sm_80")
    assert nvrtc.on_disk(SCALES[1], "sm_75") is None  # which it does not run on
    assert cli.main(["kernels", "compile", "--arch", "sm_90", "--jobs", "1"]) == 1
    error = capsys.readouterr().err
    assert "kernels/shift.cu:6: " in error and "gpunet: 1 of 3 kernels did not compile" in error


def test_report(kernels: Path, compiler: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["kernels", "report", "--family", "scale", "--arch", "sm_80", "--jobs", "1"]) == 0
    header, double, single = capsys.readouterr().out.splitlines()
    assert tuple(header.split()) == kernel_tools.HEADER
    assert double.startswith("scale<double>  sm_80") and double.endswith("100%  warps")
    assert "  60000       2    25%  shared memory" in single
    assert cli.main(["kernels", "report", "--arch", "sm_90", "--jobs", "1"]) == 1
    out, error = capsys.readouterr()
    assert len(out.splitlines()) == 3 and "gpunet: shift<float> does not compile for sm_90a" in error


def test_report_on_loops(kernels: Path, compiler: None, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        sass.nvdisasm()
    except KernelError as error:
        pytest.skip(f"no disassembler: {error}")
    assert cli.main(["kernels", "report", "--sass", "--family", "scale", "--arch", "sm_80", "--jobs", "1"]) == 0
    header, double, single = capsys.readouterr().out.splitlines()
    assert header.endswith("hottest loop") and " DFMA" in double and " FFMA" in single


def test_commands_without_cupy(kernels: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    def none() -> None:
        raise KernelError("compiling CUDA kernels needs CuPy and NVRTC")

    monkeypatch.setattr(nvrtc, "capabilities", none)
    assert cli.main(["kernels", "compile", "--arch", "sm_80"]) == 1
    assert capsys.readouterr().err == "gpunet: compiling CUDA kernels needs CuPy and NVRTC\n"
