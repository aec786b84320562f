"""All declared ops, found by looking into every module of gpunet.ops."""

from __future__ import annotations

import importlib
import pkgutil

import gpunet.ops
from gpunet.ops.op import Op


def all_ops() -> dict[str, Op]:
    """Op by name."""
    modules = [importlib.import_module(f"gpunet.ops.{m.name}") for m in pkgutil.iter_modules(gpunet.ops.__path__)]
    return {o.name: o for module in modules for o in vars(module).values() if isinstance(o, Op)}
