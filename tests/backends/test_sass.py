"""Reading machine code: texts as nvdisasm writes them, and real code where the tools are installed."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpunet import backends
from gpunet.backends import nvrtc, sass
from gpunet.backends.kernel import Variant
from gpunet.errors import KernelError


def listing(*lines: str, name: str = "kernel") -> str:
    """Labels and instructions as a section of a listing, addresses added."""
    out = [f'\t.section\t.text.{name},"ax",@progbits', f".text.{name}:", f"{name}:"]
    address = 0
    for line in lines:
        if line.endswith(":"):
            out.append(line)
        else:
            guard, text = line.split(" ", 1) if line.startswith("@") else ("", line)
            out.append(f"        /*{address:04x}*/        {guard:>8} {text} ;")
            address += 16
    return "\n".join([*out, '\t.section\t.nv.shared.kernel,"aw",@nobits', ""])


def function(*lines: str) -> sass.Function:
    (found,) = sass.parse(listing(*lines))
    return found


def test_parse() -> None:
    text = listing(
        "LDC R1, c[0x0][0x28]", "@!P0 BRA `(.L_x_0)", ".L_x_0:", "HMMA.16816.F32.BF16 R4, R8, R2, R4", "EXIT"
    )
    first, second = sass.parse(text + listing("EXIT", name="other"))
    assert (first.name, second.name) == ("kernel", "other")
    assert [i.opcode for i in first.instructions] == ["LDC", "BRA", "HMMA.16816.F32.BF16", "EXIT"]
    assert [i.address for i in first.instructions] == [0, 16, 32, 48]
    assert [i.conditional for i in first.instructions] == [False, True, False, False]
    assert first.instructions[1].labels == (32,) and first.instructions[2].text == "HMMA.16816.F32.BF16 R4, R8, R2, R4"
    assert sass.mix(first.instructions) == {"LDC": 1, "BRA": 1, "HMMA": 1, "EXIT": 1}
    assert first.missing(["HMMA", "HMMA.*BF16", "MMA", "LDGSTS"]) == ["MMA", "LDGSTS"]


def test_the_innermost_loop() -> None:
    found = function(
        ".L_x_0:",  # the outer loop
        *["FFMA R1, R2, R3, R1"] * 3,
        ".L_x_1:",
        *["FFMA R1, R2, R3, R1"] * 2,
        "LDS R2, [R4]",
        "@P0 BRA `(.L_x_1)",
        "FFMA R1, R2, R3, R1",
        "@P1 BRA `(.L_x_0)",
        "EXIT",
    )
    assert [i.address for i in found.hottest_loop()] == [48, 64, 80, 96]
    assert found.arithmetic(found.instructions) == 6 and found.arithmetic(found.hottest_loop()) == 2


def test_a_loop_that_waits_is_not_the_hottest() -> None:
    found = function(
        ".L_x_0:",
        ".L_x_1:",
        "SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [UR4], R3",
        "@!P0 BRA `(.L_x_1)",
        "HGMMA.64x256x16.F32.BF16 R24, gdesc[UR8], R24",
        "BRA.U UP0, `(.L_x_0)",
        *["FFMA R1, R2, R3, R1"] * 50,  # an epilogue; tiles count, where there are any
        "EXIT",
    )
    assert sass.mix(found.hottest_loop()) == {"SYNCS": 1, "BRA": 2, "HGMMA": 1}
    assert found.arithmetic_opcodes == {"HGMMA"}


def test_a_dense_loop_is_hotter_than_a_long_one() -> None:
    found = function(
        ".L_x_0:",
        *["FFMA R1, R2, R3, R1"] * 50,
        "@P0 BRA `(.L_x_0)",
        ".L_x_1:",  # an epilogue of many cases
        *["FFMA R1, R2, R3, R1", "MOV R1, R2", "FSEL R1, R2, R3, P0", "FMUL R1, R2, R3"] * 60,
        "@P0 BRA `(.L_x_1)",
        "EXIT",
    )
    assert len(found.hottest_loop()) == 51


def test_code_out_of_line_belongs_to_its_loop() -> None:
    found = function(
        "BRA `(.L_x_0)",
        ".L_x_0:",
        "FFMA R1, R2, R3, R1",
        "@P0 BRA `(.L_x_2)",
        ".L_x_1:",
        "@P1 BRA `(.L_x_0)",
        "FFMA R9, R9, R9, R9",
        "EXIT",
        ".L_x_2:",  # a rare case, at the end of the function
        "FADD R1, R1, 1",
        "BRA `(.L_x_1)",
    )
    assert [i.text for i in found.hottest_loop()] == [
        "FFMA R1, R2, R3, R1", "BRA `(.L_x_2)", "BRA `(.L_x_0)", "FADD R1, R1, 1", "BRA `(.L_x_1)",
    ]  # fmt: skip


def test_reconvergence_is_a_branch() -> None:
    found = function(
        ".L_x_0:",
        "BSSY B0, `(.L_x_1)",
        "@P0 BRA `(.L_x_2)",
        "FFMA R1, R2, R3, R1",
        "BSYNC B0",
        ".L_x_1:",
        "@P1 BRA `(.L_x_0)",
        "EXIT",
        ".L_x_2:",
        "DFMA R1, R2, R3, R1",
        "BSYNC B0",
    )
    assert sass.mix(found.hottest_loop()) == {"BSSY": 1, "BRA": 2, "FFMA": 1, "DFMA": 1, "BSYNC": 2}


def test_no_loop() -> None:
    found = function("FFMA R1, R2, R3, R1", "EXIT", ".L_x_0:", "BRA `(.L_x_0)")
    assert found.hottest_loop() == ()
    assert not sass.readable("sm_70") and sass.readable("sm_75") and sass.readable("sm_90a")


def test_real_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cupy", reason="CuPy is not installed")
    try:
        sass.nvdisasm(), nvrtc.version()
    except KernelError as error:
        pytest.skip(f"a tool is not installed: {error}")
    monkeypatch.setattr(backends, "kernel_folder", lambda: tmp_path)
    monkeypatch.setenv("GPUNET_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "dots.cu").write_text(
        "template <int N> __global__ void __launch_bounds__(128) dots(const float* x, float* y, int n) {\n"
        "    __shared__ float part[128 * N];\n"
        "    float sum = 0;\n"
        "#pragma unroll 1\n"
        "    for (int i = 0; i < n; i++) {\n"
        "        part[threadIdx.x] = x[i];\n"
        "        __syncthreads();\n"
        "#pragma unroll\n"
        "        for (int j = 0; j < N; j++) sum += part[j] * part[j + N];\n"
        "        __syncthreads();\n"
        "    }\n"
        "    y[threadIdx.x] = sum;\n"
        "}\n"
    )
    for architecture in ("sm_75", "sm_80", "sm_90a", "sm_120"):
        made = nvrtc.compiled(Variant("dots", "dots<16>", threads=128), architecture)
        found = sass.disassemble(made.code)
        assert list(found) == [made.name]
        loop = found[made.name].hottest_loop()
        assert sass.mix(loop)["FFMA"] == 16 and len(loop) < 60
        assert found[made.name].missing(["FFMA", "BAR.SYNC", "HMMA"]) == ["HMMA"]
    monkeypatch.setattr(sass, "nvdisasm", lambda: pytest.fail("what was disassembled is kept"))
    assert list(sass.disassemble(made.code)) == [made.name]


def test_what_is_no_machine_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        sass.nvdisasm()
    except KernelError as error:
        pytest.skip(f"no disassembler: {error}")
    monkeypatch.setenv("GPUNET_CACHE_DIR", str(tmp_path))
    with pytest.raises(KernelError, match="nvdisasm cannot read the machine code: .*fatal"):
        sass.disassemble(b"\x7fELF and nothing more")


def test_no_disassembler(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(package: str) -> None:
        raise sass.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(sass.metadata, "files", none)
    monkeypatch.setenv("PATH", "")
    sass.nvdisasm.cache_clear()
    with pytest.raises(KernelError, match=r'needs nvdisasm: pip install "gpunet\[kernels\]"'):
        sass.nvdisasm()
