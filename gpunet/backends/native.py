"""Kernels for the CPU: C++ that is compiled for this machine's CPU when it is first needed, and kept on disk.

They make faster what NumPy needs many passes over memory for, or has no vector instructions for. Where there is no C++
compiler, or $GPUNET_CPU_KERNELS is 0, ops run their references on NumPy: the results are the same up to rounding.

A source kernels/cpu/NAME.cpp is a library whose functions take NumPy arrays themselves: the C++ side reads an array's
address, shape and strides from the object, at a fraction of what asking NumPy for them costs.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from gpunet.backends import kernel_folder
from gpunet.backends.cache import Cache
from gpunet.backends.host_compiler import compile_host, find_compiler
from gpunet.errors import KernelError

# Contraction to fused multiply-adds is the only liberty that the compiler may take with floating-point numbers: sums
# keep their order, NaN and infinities their meaning.
_FLAGS = (
    "-std=c++17", "-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-fPIC",
    "-shared", "-fvisibility=hidden", "-Wno-psabi", "-Wno-ignored-attributes",
)  # fmt: skip
_RANGE = "long start, long stop"
_DECLARATION = re.compile(r"^KERNEL (void|long) (\w+)\(([^)]*)\)", re.MULTILINE)
_TYPES = {"const Array*": ctypes.py_object, "const Arrays*": ctypes.py_object, "long": ctypes.c_long,
          "int": ctypes.c_int, "float": ctypes.c_float, "double": ctypes.c_double}  # fmt: skip


class Library:
    """The functions of kernels/cpu/NAME.cpp, as attributes; compiled when the first one is asked for.

    A function `f(..., start, stop)` has an attribute `divided`: `f.divided(..., n, parts, wake)` calls f for as many
    parts of range(n), on the caller's thread and the crew's (kernels/cpu/crew.cpp).

    Args:
        name: NAME.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._usable: bool | None = None

    def usable(self) -> bool:
        """Whether the functions can be called on this machine; compiles them, if that was not done yet."""
        if self._usable is None:
            self._usable = self._load()
        return self._usable

    def __getattr__(self, function: str) -> Callable[..., Any]:
        if function.startswith("_") or not self.usable():
            raise AttributeError(f"kernels/cpu/{self._name}.cpp has no {function!r} that can be called here")
        return self.__dict__[function]

    def _load(self) -> bool:
        if not supported():
            return False
        try:
            loaded = ctypes.CDLL(str(_compiled(self._name)))
            functions = _functions(loaded, source(self._name))
        except (KernelError, OSError) as error:
            warnings.warn(f"ops run on NumPy alone, which is slower: {error}", stacklevel=2)
            return False
        functions.pop("gn_set_none")(None)
        set_crew = functions.pop("gn_set_crew")
        if self._name == "crew":
            self.divide = ctypes.cast(loaded["crew_divide"], ctypes.c_void_p).value
        elif library("crew").usable():
            set_crew(library("crew").divide)
        else:
            return False
        probe = np.full((2, 3), 4.0, np.float32)
        seen = functions.pop("gn_probe")(probe)
        seen_in_tuple = functions.pop("gn_probe_tuple")((np.ones(1, np.float32), probe))
        if seen != probe.ndim + 3 + 12 + 4 or seen_in_tuple != 2 + seen + 1:
            return False  # another Python or NumPy, whose arrays look different in memory
        self.__dict__.update(functions)
        return True


def supported() -> bool:
    """Whether kernels for the CPU are wanted and could be built here."""
    if os.environ.get("GPUNET_CPU_KERNELS", "1") == "0" or sys.implementation.name != "cpython":
        return False
    return os.name == "posix" and sys.maxsize > 2**32 and find_compiler() is not None


_libraries: dict[str, Library] = {}


def library(name: str) -> Library:
    """The library of kernels/cpu/NAME.cpp."""
    found = _libraries.get(name)
    if found is None:
        found = _libraries[name] = Library(name)
    return found


def source(name: str) -> str:
    """The text of kernels/cpu/NAME.cpp and of the headers beside it.

    Raises:
        KernelError: there is no such file.
    """
    folder = kernel_folder() / "cpu"
    file = folder / f"{name}.cpp"
    if not file.is_file():
        raise KernelError(f"there is no kernels/cpu/{name}.cpp")
    return "\n".join(path.read_text(encoding="utf-8") for path in [file, *sorted(folder.glob("*.h"))])


def _compiled(name: str) -> Path:
    compiler = find_compiler()
    assert compiler is not None
    folder = kernel_folder() / "cpu"
    heads = [f"-DGN_OBJECT_HEAD={object.__basicsize__}", f"-DGN_TUPLE_HEAD={tuple.__basicsize__}"]
    flags = [*_FLAGS, *heads, *_sanitizer()]

    text = source(name)
    program = f'#include "{name}.cpp"\n' + "".join(map(_divided, _DECLARATION.findall(text)))

    def make(target: Path) -> None:
        with tempfile.NamedTemporaryFile("w", suffix=".cpp") as file:
            file.write(program)
            file.flush()
            compile_host([*flags, f"-I{folder}", file.name, "-o", str(target)], f"kernels/cpu/{name}.cpp")

    return Cache("so").path_or_make("\0".join([compiler.identity, *flags, text, program]), make)


def _divided(declaration: tuple[str, str, str]) -> str:
    """The C++ of the function that calls a kernel for the parts of a range; nothing if it takes none."""
    result, name, parameters = declaration
    if result != "void" or not parameters.endswith(_RANGE):
        return ""
    before = parameters.removesuffix(_RANGE)
    names = "".join(f"{parameter.split()[-1]}, " for parameter in before.split(",") if parameter.strip())
    return (
        f"KERNEL void {name}_divided({before}long n, long parts, int wake) {{\n"
        f"    gn_divide(n, parts, wake, [&](long start, long stop) {{ {name}({names}start, stop); }});\n}}\n"
    )


def _sanitizer() -> list[str]:
    """Flags for the sanitizer that $GPUNET_CPU_SANITIZE names; its runtime must be preloaded."""
    kind = os.environ.get("GPUNET_CPU_SANITIZE")
    if not kind:
        return []
    kind = "address,undefined" if kind == "address" else kind
    return ["-g", "-O1", f"-fsanitize={kind}", "-fno-sanitize-recover=all"]


def _functions(loaded: ctypes.CDLL, text: str) -> dict[str, Any]:
    """The functions that `text` declares with KERNEL, their parameters' types read from there."""
    functions = {}
    for result, name, parameters in _DECLARATION.findall(text):
        function = functions[name] = getattr(loaded, name)
        words = [" ".join(parameter.split()).rpartition(" ")[0] for parameter in parameters.split(",")]
        try:
            function.argtypes = [_TYPES[word] for word in words]
        except KeyError as error:
            raise KernelError(f"{name}: a kernel's parameter cannot be {error}") from None
        function.restype = ctypes.c_long if result == "long" else None
        if _divided((result, name, parameters)):
            function.divided = getattr(loaded, f"{name}_divided")
            function.divided.argtypes, function.divided.restype = [*function.argtypes, ctypes.c_int], None
    return functions
