"""Reading a CUDA source with the headers that it includes."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpunet import backends
from gpunet.backends import sources
from gpunet.errors import KernelError


@pytest.fixture
def kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "ptx").mkdir()
    monkeypatch.setattr(backends, "kernel_folder", lambda: tmp_path)
    return tmp_path


def test_headers_are_read_once_each(kernels: Path) -> None:
    (kernels / "sum.cu").write_text('#include "numeric.cuh"\n  #  include "ptx/mma.cuh" // why\nint x;\n')
    (kernels / "numeric.cuh").write_text('#pragma once\n#include <limits>\n// #include "nothing.cuh"\n')
    (kernels / "ptx" / "mma.cuh").write_text('#include "numeric.cuh"\n#include "ptx/mma.cuh"\n')
    source = sources.read("sum")
    assert source.name == "sum.cu" and source.text == (kernels / "sum.cu").read_text()
    assert sorted(source.headers) == ["numeric.cuh", "ptx/mma.cuh"]
    assert source.headers["ptx/mma.cuh"].startswith('#include "numeric.cuh"')
    assert source.line("sum.cu", 3) == "int x;" and source.line("numeric.cuh", 1) == "#pragma once"
    assert source.line("sum.cu", 9) == source.line("sum.cu", 0) == source.line("other.cuh", 1) == ""


def test_the_key_depends_on_all_the_text(kernels: Path) -> None:
    (kernels / "sum.cu").write_text('#include "a.cuh"\n')
    (kernels / "a.cuh").write_text('#include "b.cuh"\n')
    (kernels / "b.cuh").write_text("")
    keys = {sources.read("sum").key}
    for file in ("sum.cu", "a.cuh", "b.cuh"):
        with (kernels / file).open("a") as handle:
            handle.write("\n")
        keys.add(sources.read("sum").key)
    assert len(keys) == 4


def test_no_such_kernel(kernels: Path) -> None:
    (kernels / "sum.cu").touch()
    with pytest.raises(KernelError, match="there is no kernels/pool.cu; there are: sum$"):
        sources.read("pool")


@pytest.mark.parametrize("name", ["none.cuh", "mma.cuh", "../outside.cuh", "/etc/hostname"])
def test_a_missing_header_names_who_includes_it(name: str, kernels: Path) -> None:
    (kernels.parent / "outside.cuh").touch()
    (kernels / "ptx" / "mma.cuh").touch()
    (kernels / "sum.cu").write_text('#include "ptx/tile.cuh"\n')
    (kernels / "ptx" / "tile.cuh").write_text(f'#pragma once\n#include "{name}"\n')
    with pytest.raises(KernelError, match=f'kernels/ptx/tile.cuh:2 includes "{name}", and there is no kernels/{name} '):
        sources.read("sum")


def test_ours_are_complete() -> None:
    found = [file.stem for file in backends.kernel_folder().glob("*.cu")]
    for stem in found:
        assert sources.read(stem).text
