"""The README's tour, run as it is written, on a small part of the real digits in place of Fashion-MNIST."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from gpunet import data

README = Path(__file__).parent.parent / "README.md"


class SmallFashionMNIST(data.ImageDataset):
    """Digits of 8 x 8 enlarged to Fashion-MNIST's 28 x 28."""

    def __init__(self, train: bool = True, download: bool = False) -> None:
        digits = data.Digits(train=train)
        images = np.pad(digits.images[:256].repeat(3, axis=1).repeat(3, axis=2), ((0, 0), (2, 2), (2, 2)))
        super().__init__(images, digits.labels[:256], digits.classes, highest=16)


def test_the_tour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)  # it saves files
    monkeypatch.setattr(data, "FashionMNIST", SmallFashionMNIST)
    blocks = re.findall(r"^```python\n(.*?)^```$", README.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert len(blocks) >= 4
    names: dict[str, object] = {}
    for block in blocks:
        capsys.readouterr()
        exec(compile(block.replace('"cuda"', '"cpu"'), str(README), "exec"), names)
        printed = capsys.readouterr().out.strip()
        if promised := re.findall(r"^print\(.*\) +# (.*)$", block, re.MULTILINE):
            assert printed.splitlines() == promised
    assert (tmp_path / "runs" / "last.safetensors").exists() and (tmp_path / "model.safetensors").exists()
    assert names["trainer"].history["accuracy"][-1] > 0.6  # type: ignore[attr-defined]
