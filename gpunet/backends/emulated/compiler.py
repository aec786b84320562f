"""Compiles kernels for the CPU, with the host's C++ compiler, when they are first launched or ahead of that.

A library holds the unmodified .cu file and an entry point for each template instance that it was compiled for, one or
a few; the runtime that they call (emulator.cpp) is a library of its own. Both are cached on disk. With
$GPUNET_EMULATED_SANITIZE set to "address" or "thread" they are instrumented, and the process must have been started
with that sanitizer's runtime preloaded.
"""

from __future__ import annotations

import ctypes
import functools
import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from gpunet.backends import kernel_folder, sources
from gpunet.backends.cache import Cache
from gpunet.backends.host_compiler import Compiler, compile_host, find_compiler
from gpunet.backends.kernel import Variant, capability
from gpunet.errors import DeviceError, KernelError

_HERE = Path(__file__).parent
_COMMON = ("-std=c++17", "-march=native", "-fPIC", "-shared", "-w", "-fvisibility=hidden")
_OPTIMIZATION = {
    "": ("-O2",),
    "address": (
        "-O1",
        "-g",
        "-fno-omit-frame-pointer",
        "-fsanitize=address,undefined",
        "-fno-sanitize=vptr",
        "-fno-sanitize-recover=all",
    ),
    "thread": ("-O1", "-g", "-fsanitize=thread"),
}

_START = """#include "{file}"
namespace {{
thread_local unsigned char gn_member;  // of the segment that holds the kernels' static shared variables
gn::StaticShared gn_variables;
}}
"""
_ENTRY = """extern "C" __attribute__((visibility("default"))) int gn_entry_{number}(const gn::Options* gn_options,
    const void* const* gn_parameters, const size_t* gn_sizes, int gn_count, char* gn_error, size_t gn_error_size) {{
    gn_variables.member = &gn_member;
    return gn::launch_kernel(&{expression}, *gn_options, gn_parameters, gn_sizes, gn_count, gn_variables, gn_error,
                             gn_error_size);
}}
"""
_MOST = 8  # kernels in a library: each costs half as much there as alone, but libraries are compiled side by side


def require_compiler() -> Compiler:
    """The host's C++ compiler.

    Raises:
        DeviceError: there is none.
    """
    found = find_compiler()
    if found is None:
        named = os.environ.get("CXX")
        raise DeviceError(
            'device "emulated" needs a C++ compiler, which was not found: install g++'
            + (f" (CXX is {named!r}, which does not work)" if named else " or name one in the environment variable CXX")
        )
    return found


def _flags() -> tuple[str, ...]:
    """Flags that only GCC understands: gn_shared has no initializer that would have to run first."""
    return ("-fno-extern-tls-init", "-fno-gnu-unique") if require_compiler().is_gnu else ()


def sanitizer() -> str:
    """What kernels are instrumented with in this process: "address", "thread", or "" for nothing.

    Raises:
        DeviceError: $GPUNET_EMULATED_SANITIZE is none of these, or the sanitizer's runtime is not loaded.
    """
    kind = os.environ.get("GPUNET_EMULATED_SANITIZE", "")
    if kind not in _OPTIMIZATION:
        raise DeviceError(f'GPUNET_EMULATED_SANITIZE is {kind!r}: expected "address" or "thread"')
    if kind and not hasattr(ctypes.CDLL(None), {"address": "__asan_init", "thread": "__tsan_init"}[kind]):
        library = {"address": "libasan.so", "thread": "libtsan.so"}[kind]
        raise DeviceError(
            f"GPUNET_EMULATED_SANITIZE={kind} needs a process with the sanitizer's runtime in it: start it with "
            f"LD_PRELOAD=$(g++ -print-file-name={library})"
        )
    return kind


@functools.cache
def runtime() -> ctypes.CDLL:
    """The emulator's runtime, whose functions kernels call."""
    kind = sanitizer()
    texts = [(_HERE / name).read_text(encoding="utf-8") for name in ("emulator.h", "emulator.cpp")]
    define = {"": (), "address": ("-DGN_ADDRESS_SANITIZER",), "thread": ("-DGN_THREAD_SANITIZER",)}[kind]
    flags = ("-O2", "-fno-tree-loop-distribute-patterns", *define, *_flags())
    flags = (*[flag for flag in _COMMON if "visibility" not in flag], *flags)

    def make(target: Path) -> None:
        compile_host([*flags, str(_HERE / "emulator.cpp"), "-o", str(target)], "the emulator's runtime")

    path = Cache("so").path_or_make(_key(flags, *texts), make)
    library = ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    library.gn_allocate.argtypes = [ctypes.c_size_t]
    library.gn_allocate.restype = ctypes.c_void_p
    library.gn_free.argtypes = [ctypes.c_void_p]
    library.gn_free.restype = None
    return library


def entry(variant: Variant, architecture: str, folder: Path | None = None) -> Callable[..., int]:
    """The function that launches a kernel, compiled if need be.

    Args:
        variant: the kernel.
        architecture: the one it is to believe that it runs on.
        folder: of .cu files that are not in kernels/ (they may include headers that are).

    Raises:
        DeviceError: there is no C++ compiler.
        KernelError: it does not compile.
    """
    found = _entries.get((variant.file, variant.expression, architecture, folder))
    return found or _load([variant], architecture, folder)[0]


def prebuild(variants: Iterable[Variant], architecture: str = "sm_90a", folder: Path | None = None) -> None:
    """Compile all `variants` that run on `architecture`, as many libraries at a time as there are CPUs.

    Args:
        variants: the kernels; several of a file share a library, which takes half as long.
        architecture, folder: as of `entry`.

    Raises:
        DeviceError: there is no C++ compiler.
        KernelError: one of them does not compile.
    """
    runtime()
    files: dict[str, dict[str, Variant]] = {}
    for variant in variants:
        if variant.runs_on(architecture) and (variant.file, variant.expression, architecture, folder) not in _entries:
            files.setdefault(variant.file, {})[variant.expression] = variant
    cpus = os.cpu_count() or 1
    groups = []
    for kernels in files.values():
        ordered = [kernels[expression] for expression in sorted(kernels)]
        size = min(_MOST, -(-len(ordered) // cpus))
        groups += [ordered[i : i + size] for i in range(0, len(ordered), size)]
    with ThreadPoolExecutor(cpus) as pool:
        list(pool.map(lambda group: _load(group, architecture, folder), groups))


_entries: dict[tuple[str, str, str, Path | None], Callable[..., int]] = {}


def _load(variants: Sequence[Variant], architecture: str, folder: Path | None) -> list[Callable[..., int]]:
    """The entry points of one library of kernels, all of one file."""
    runtime()
    library = ctypes.CDLL(str(_library(variants, architecture, folder)))
    functions: list[Any] = []
    for number, variant in enumerate(variants):
        function: Any = library[f"gn_entry_{number}"]
        pointer = ctypes.c_void_p
        function.argtypes = [ctypes.c_char_p, pointer, pointer, ctypes.c_int, pointer, ctypes.c_size_t]
        functions.append(function)
        _entries[variant.file, variant.expression, architecture, folder] = function
    return functions


def _library(variants: Sequence[Variant], architecture: str, folder: Path | None) -> Path:
    """The file of a library of kernels."""
    kernels = kernel_folder()
    file = variants[0].file
    if folder is None:
        text = sources.read(file).key
    else:
        files = [folder / f"{file}.cu", *sorted(kernels.rglob("*.cuh"))]
        if not files[0].is_file():
            raise KernelError(f"there is no {file}.cu in {folder}")
        text = "".join(path.read_text(encoding="utf-8") for path in files)
    macros = [f"-D__CUDA_ARCH__={capability(architecture)}0"]
    if architecture.endswith("a"):
        macros.append(f"-D__CUDA_ARCH_FEAT_SM{capability(architecture)}_ALL")
    flags = (*_COMMON, *_OPTIMIZATION[sanitizer()], *macros, *_flags())
    header = _HERE / "emulator.h"
    program = _START.format(file=f"{file}.cu")
    for number, variant in enumerate(variants):
        program += _ENTRY.format(number=number, expression=variant.expression)

    def make(target: Path) -> None:
        includes = ["-include", str(header), *([f"-I{folder}"] if folder else []), f"-I{kernels}"]
        with tempfile.NamedTemporaryFile("w", suffix=".cpp") as source:
            source.write(program)
            source.flush()
            expressions = ", ".join(variant.expression for variant in variants)
            what = f"{file}.cu: {expressions}, for the emulated device,"
            compile_host([*flags, *includes, source.name, "-o", str(target)], what)

    return Cache("so").path_or_make(_key(flags, header.read_text(encoding="utf-8"), text, program), make)


def _key(flags: tuple[str, ...], *texts: str) -> str:
    return "\0".join([require_compiler().identity, *flags, *texts])
