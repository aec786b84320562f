"""What an installation of the project has."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_every_package_is_installed() -> None:
    """pyproject.toml names them one by one, as kernels/ lies elsewhere."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    listed = re.search(r"^packages = \[(.*?)^\]", text, re.DOTALL | re.MULTILINE)
    assert listed is not None
    there = {".".join(file.parent.relative_to(ROOT).parts) for file in (ROOT / "gpunet").rglob("*.py")}
    assert set(re.findall(r'"([\w.]+)"', listed[1])) == there | {"gpunet.data.files", "gpunet.kernels"}
