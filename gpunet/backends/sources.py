"""The text of a CUDA source and of every header it includes: all that a compiler, or a cache's key, needs to know."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from gpunet import backends
from gpunet.errors import KernelError

_INCLUDE = re.compile(r'[ \t]*#[ \t]*include[ \t]*"([^"\n]+)"')


@dataclass(frozen=True)
class Source:
    """A file of kernels/.

    Attributes:
        name: its path in that folder, such as "matmul_simt.cu".
        text: what it says.
        headers: the text of every file that it includes, directly or not, by the name that `#include` uses: its path in
            the folder, such as "ptx/mma.cuh".
    """

    name: str
    text: str
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """All the text, for a cache's key."""
        files = [(self.name, self.text), *sorted(self.headers.items())]
        return "".join(f"{name} {len(text)}\n{text}" for name, text in files)

    def line(self, name: str, number: int) -> str:
        """Line `number`, counted from 1, of this file or of a header; empty where there is none."""
        text = self.text if name == self.name else self.headers.get(name, "")
        lines = text.splitlines()
        return lines[number - 1] if 0 < number <= len(lines) else ""


def read(stem: str) -> Source:
    """Read kernels/STEM.cu and the headers that it includes.

    Raises:
        KernelError: one of them is not there; which, and what includes it.
    """
    folder = backends.kernel_folder()
    name = f"{stem}.cu"
    if not (folder / name).is_file():
        known = ", ".join(sorted(file.stem for file in folder.glob("*.cu"))) or "none"
        raise KernelError(f"there is no kernels/{name}; there are: {known}")
    text = (folder / name).read_text(encoding="utf-8")
    headers: dict[str, str] = {}
    waiting = [(name, text)]
    while waiting:
        includer, content = waiting.pop()
        for line, included in _includes(content):
            if included in headers:
                continue
            if not (folder / included).is_file() or Path(included).is_absolute() or ".." in Path(included).parts:
                raise KernelError(
                    f'kernels/{includer}:{line} includes "{included}", and there is no kernels/{included} '
                    "(names are paths in that folder, in headers of its subfolders too)"
                )
            headers[included] = (folder / included).read_text(encoding="utf-8")
            waiting.append((included, headers[included]))
    return Source(name, text, headers)


def _includes(text: str) -> Iterator[tuple[int, str]]:
    """Line numbers and names of the files that a text includes in quotes. Conditions are not looked at."""
    for number, line in enumerate(text.splitlines(), 1):
        if match := _INCLUDE.match(line):
            yield number, match[1]
