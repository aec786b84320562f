"""From a kernel's source to machine code: NVRTC, through CuPy, with what was compiled kept on disk.

One template instance is compiled at a time, when it is first needed. NVRTC needs no GPU and no driver, so machine code
can be made, and checked, anywhere. Arithmetic is IEEE's: denormal numbers stay, division and square root are exact to
the last bit (NVRTC's defaults); products and sums are fused where the compiler likes.
"""

from __future__ import annotations

import json
import re
import struct
from dataclasses import asdict, dataclass
from functools import cache
from types import ModuleType

from gpunet.backends import sources
from gpunet.backends.cache import Cache
from gpunet.backends.kernel import Variant, capability
from gpunet.backends.sources import Source
from gpunet.errors import KernelError

OPTIONS = ("-std=c++17", "-lineinfo", "--ptxas-options=-v")
_FORMAT = 1  # of what is on disk; part of the key
_cubins = Cache("cubin")
_NOTE = re.compile(r"\bwarning( #| *:)|\bLoss\b")
_ELSEWHERE = re.compile(r"Architectures prior to")  # that a later NVRTC will not know them is no fault of a kernel


@dataclass(frozen=True)
class Compiled:
    """A kernel's machine code, and what a thread and a block of it take.

    Attributes:
        code: a cubin; for the architecture "compute_XY" PTX, which the driver turns into one.
        name: the entry point's, mangled.
        registers: per thread.
        spills: bytes per thread that are stored to or loaded from local memory for lack of registers.
        stack: bytes per thread of local memory.
        shared: bytes of static shared memory per block.
        parameters: (offset, size) in bytes of each parameter; empty for PTX.
        notes: what the compiler warned of.
    """

    code: bytes
    name: str
    registers: int = 0
    spills: int = 0
    stack: int = 0
    shared: int = 0
    parameters: tuple[tuple[int, int], ...] = ()
    notes: tuple[str, ...] = ()

    def to_bytes(self) -> bytes:
        """For the cache: a line of JSON, then the code."""
        about = asdict(self)
        del about["code"]
        return json.dumps(about).encode() + b"\n" + self.code

    @classmethod
    def from_bytes(cls, data: bytes) -> Compiled:
        """What `to_bytes` was given."""
        line, code = data.split(b"\n", 1)
        about = json.loads(line)
        about["parameters"] = tuple(map(tuple, about["parameters"]))
        about["notes"] = tuple(about["notes"])
        return cls(code=code, **about)


def compiled(variant: Variant, architecture: str) -> Compiled:
    """A variant's machine code for an architecture: from the disk, or compiled now and stored there.

    Args:
        architecture: such as "sm_90a"; or "compute_90" for PTX, which newer devices run, too.

    Raises:
        KernelError: the source does not compile, NVRTC does not know the architecture, or there is no NVRTC.
    """
    source = sources.read(variant.file)
    key = _key(source, variant.expression, architecture)
    return Compiled.from_bytes(
        _cubins.load_or_make(key, lambda: build(source, variant.expression, architecture).to_bytes())
    )


def on_disk(variant: Variant, architecture: str) -> Compiled | None:
    """What the disk cache holds for a variant; None where that is to be compiled."""
    data = _cubins.load(_key(sources.read(variant.file), variant.expression, architecture))
    return None if data is None else Compiled.from_bytes(data)


def _key(source: Source, expression: str, architecture: str) -> str:
    return "\n".join([f"{_FORMAT} {version()}", architecture, *OPTIONS, expression, source.key])


@cache
def _library() -> ModuleType:
    """CuPy's functions of NVRTC.

    Raises:
        KernelError: CuPy or NVRTC is not installed; what to install.
    """
    try:
        from cupy.cuda import nvrtc
    except ImportError as error:
        raise KernelError(
            'compiling CUDA kernels needs CuPy and NVRTC: pip install "gpunet[cuda]" (CUDA 12) or "gpunet[cuda13]" '
            f'(CUDA 13), or "gpunet[kernels]" for the compiler alone; importing CuPy failed with: {error}'
        ) from error
    try:
        nvrtc.getVersion()
    except Exception as error:  # what CuPy raises differs between its versions
        raise KernelError(
            "CuPy is installed but NVRTC, the compiler of CUDA kernels, cannot be loaded: pip install "
            "nvidia-cuda-nvrtc-cu12 (beside cupy-cuda12x) or nvidia-cuda-nvrtc (beside cupy-cuda13x); "
            f"it says: {str(error).strip().splitlines()[0]}"
        ) from error
    return nvrtc


@cache
def version() -> str:
    """NVRTC's version, such as "12.9".

    Raises:
        KernelError: CuPy or NVRTC is not installed.
    """
    return ".".join(map(str, _library().getVersion()))


@cache
def capabilities() -> tuple[int, ...]:
    """The compute capabilities that NVRTC compiles for, times ten, in ascending order.

    Raises:
        KernelError: CuPy or NVRTC is not installed.
    """
    return tuple(sorted(_library().getSupportedArchs()))


def target(major: int, minor: int) -> str:
    """What to compile for a device of compute capability `major`.`minor`.

    Machine code runs on later minor versions of its major version. A device of a major version that NVRTC does not know
    gets PTX for the latest that it does.

    Raises:
        KernelError: the device is older than all that NVRTC knows, or than 7.0.
    """
    wanted = 10 * major + minor
    if wanted == 90:
        return "sm_90a"  # where wgmma is, and setmaxnreg
    known = [c for c in capabilities() if 70 <= c <= wanted]
    if not known:
        raise KernelError(
            f"compute capability {major}.{minor} is too old: gpunet's kernels need at least 7.0"
            if wanted < 70
            else _too_old(f"sm_{wanted}")
        )
    return f"sm_{known[-1]}" if known[-1] // 10 == major else f"compute_{known[-1]}"


def _too_old(architecture: str) -> str:
    return (
        f"the NVRTC {version()} that is installed does not compile for {architecture}: CUDA 13 left compute "
        'capabilities under 7.5 behind; pip install "gpunet[cuda]", which has CUDA 12\'s, instead of "gpunet[cuda13]"'
    )


def build(source: Source, expression: str, architecture: str) -> Compiled:
    """Compile one template instance of a source.

    Raises:
        KernelError: it does not compile (where, and why), NVRTC does not know the architecture, or there is no NVRTC.
    """
    nvrtc = _library()
    known = capabilities()
    if capability(architecture.replace("compute", "sm")) not in known:
        if capability(architecture.replace("compute", "sm")) < known[0]:
            raise KernelError(_too_old(architecture))
        raise KernelError(
            f"the NVRTC {version()} that is installed does not compile for {architecture}; it knows "
            + ", ".join(f"sm_{c}" for c in known)
        )
    headers = [text.encode() for text in source.headers.values()]
    names = [name.encode() for name in source.headers]
    program = nvrtc.createProgram(source.text, f"kernels/{source.name}", headers, names)
    try:
        nvrtc.addNameExpression(program, expression)
        try:
            nvrtc.compileProgram(program, [f"-arch={architecture}", *OPTIONS])
        except nvrtc.NVRTCError as error:
            log = nvrtc.getProgramLog(program)
            raise KernelError(_explain(source, expression, architecture, log) or f"{error}\n{log}") from None
        name = nvrtc.getLoweredName(program, expression)
        log = nvrtc.getProgramLog(program)
        if architecture.startswith("compute"):
            return Compiled(nvrtc.getPTX(program), name, notes=_notes(log))
        code = nvrtc.getCUBIN(program) + b"\0"  # CuPy takes it for a text, and leaves off its last byte
    finally:
        nvrtc.destroyProgram(program)
    return Compiled(code, name, **_resources(log), parameters=parameters(code, name), notes=_notes(log))


def _explain(source: Source, expression: str, architecture: str, log: str) -> str:
    """The first few errors of a compiler's log: where each is, the line there, and what is wrong."""
    found = []
    for match in re.finditer(r"^(\S+?)\((\d+)\): (?:\w+ )?error: (.+)$", log, re.MULTILINE):
        name, number, message = match[1].removeprefix("kernels/"), int(match[2]), match[3]
        if name == "__nv_name_map":  # a file that NVRTC writes to find instances
            if not message.startswith("Error in parsing name expression"):
                found.append(f"kernels/{source.name} has no such instance: {message}")
        else:
            found.append(f"kernels/{name}:{number}: {message}\n      {source.line(name, number).strip()}")
    # An assembler's complaint, which knows no line of the source.
    found += [line.strip() for line in log.splitlines() if re.match(r"ptxas .*(error|fatal) *:", line)]
    if not found:
        return ""
    shown = found[:3] + ([f"and {len(found) - 3} more errors"] if len(found) > 3 else [])
    return "\n  ".join([f"{expression} does not compile for {architecture}:", *shown])


def _resources(log: str) -> dict[str, int]:
    """What `ptxas -v` says that an entry point takes."""

    def total(pattern: str) -> int:
        return sum(map(int, re.findall(pattern, log)))

    return {
        "registers": total(r"Used (\d+) registers"),
        "spills": total(r"(\d+) bytes spill stores") + total(r"(\d+) bytes spill loads"),
        "stack": total(r"(\d+) bytes stack frame"),
        "shared": total(r"(\d+) bytes smem"),
    }


def _notes(log: str) -> tuple[str, ...]:
    """Warnings, and the assembler's remarks on lost speed (such as wgmma that runs one at a time)."""
    lines = (line.strip() for line in log.splitlines())
    return tuple(line for line in lines if _NOTE.search(line) and not _ELSEWHERE.search(line))


def parameters(cubin: bytes, name: str) -> tuple[tuple[int, int], ...]:
    """(offset, size) in bytes of each parameter of a kernel, as the cubin itself tells the driver.

    A cubin is an ELF64 file. Section .nv.info.NAME is a list of attributes: a byte of format, a byte of kind, two bytes
    of value or of length, and that many bytes. Kind 0x17 is a parameter: its index (4 bytes), ordinal (2), offset (2)
    and a word whose bits from 18 on are its size.
    """
    (sections_at,) = struct.unpack_from("<Q", cubin, 0x28)
    size, count, names = struct.unpack_from("<HHH", cubin, 0x3A)
    headers = [struct.unpack_from("<IIQQQQ", cubin, sections_at + i * size) for i in range(count)]
    strings = headers[names][4]
    found = {}
    for title, _, _, _, offset, length in headers:
        end = cubin.index(b"\0", strings + title)
        if cubin[strings + title : end] != f".nv.info.{name}".encode():
            continue
        at = offset
        while at + 4 <= offset + length:
            layout, kind, value = struct.unpack_from("<BBH", cubin, at)
            at += 4
            if layout == 4:
                if kind == 0x17:
                    _, ordinal, place, flags = struct.unpack_from("<IHHI", cubin, at)
                    found[ordinal] = (place, flags >> 18)
                at += value
    return tuple(found[i] for i in sorted(found))
