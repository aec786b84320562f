"""gpunet and PyTorch behind one face: what differs between them in a user's program, and nothing else."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

LEARNING_RATES = {"adam": 1e-3, "sgd": 1e-2}


@dataclass(frozen=True)
class Options:
    """How a worker uses its library.

    Attributes:
        side: "gpunet" or "torch".
        threads: how many it may use.
        channels_last: PyTorch's memory format of images and of the weights of convolutions.
        optimizer: which of PyTorch's implementations: "fused", "foreach" or its default, "".
        compile: whether PyTorch compiles what goes from the input to the loss.
    """

    side: str
    threads: int
    channels_last: bool = False
    optimizer: str = ""
    compile: bool = False


class Gpunet:
    """gpunet, as a program that trains a network sees it."""

    def __init__(self, options: Options) -> None:
        import gpunet as gn

        self._gn = gn
        self.nn = gn.nn
        self.functional = gn.nn.functional
        self.permute = gn.permute_dims
        self.no_grad = gn.no_grad
        self.manual_seed = gn.manual_seed
        gn.set_num_threads(options.threads)

    def tensor(self, array: np.ndarray, requires_grad: bool = False) -> Any:
        return self._gn.tensor(array, requires_grad=requires_grad)

    def prepare(self, model: Any) -> Any:
        return model

    def compiled(self, function: Callable[[], Any]) -> Callable[[], Any]:
        return function

    def load(self, model: Any, state: Mapping[str, np.ndarray]) -> None:
        model.load_state_dict(state)

    def optimizer(self, kind: str, parameters: Iterable[Any]) -> Any:
        algorithm = {"adam": self._gn.optim.Adam, "sgd": self._gn.optim.SGD}[kind]
        return algorithm(parameters, lr=LEARNING_RATES[kind])

    def lacks(self, names: Iterable[str]) -> list[str]:
        """Those of `names`, such as "nn.LSTM", that gpunet does not have (yet)."""
        return [name for name in names if not _has(self._gn, name)]

    def facts(self) -> dict[str, Any]:
        from gpunet.backends import native

        return {"gpunet": self._gn.__version__, "threads": self._gn.get_num_threads(), "kernels": native.supported()}


class Torch:
    """PyTorch on the CPU, likewise."""

    def __init__(self, options: Options) -> None:
        import torch

        self._torch = torch
        self._options = options
        self._format = torch.channels_last if options.channels_last else torch.contiguous_format
        self.nn = torch.nn
        self.functional = torch.nn.functional
        self.permute = torch.permute
        self.no_grad = torch.no_grad
        self.manual_seed = torch.manual_seed
        torch.set_num_threads(options.threads)

    def tensor(self, array: np.ndarray, requires_grad: bool = False) -> Any:
        tensor = self._torch.from_numpy(array.copy())
        if tensor.ndim == 4:
            tensor = tensor.to(memory_format=self._format)
        return tensor.requires_grad_(requires_grad)

    def prepare(self, model: Any) -> Any:
        return model.to(memory_format=self._format)

    def compiled(self, function: Callable[[], Any]) -> Callable[[], Any]:
        return self._torch.compile(function) if self._options.compile else function

    def load(self, model: Any, state: Mapping[str, np.ndarray]) -> None:
        model.load_state_dict({name: self._torch.from_numpy(np.array(array)) for name, array in state.items()})

    def optimizer(self, kind: str, parameters: Iterable[Any]) -> Any:
        algorithm = {"adam": self._torch.optim.Adam, "sgd": self._torch.optim.SGD}[kind]
        implementation = {self._options.optimizer: True} if self._options.optimizer else {}
        return algorithm(parameters, lr=LEARNING_RATES[kind], **implementation)

    def lacks(self, names: Iterable[str]) -> list[str]:
        return [name for name in names if not _has(self._torch, name)]

    def facts(self) -> dict[str, Any]:
        return {"torch": self._torch.__version__, "threads": self._torch.get_num_threads()}


Library = Gpunet | Torch


def open_library(options: Options) -> Library:
    """The library that `options` name, set up as they say."""
    return Gpunet(options) if options.side == "gpunet" else Torch(options)


def environment(library: Library) -> dict[str, Any]:
    """Versions, BLAS and thread counts as this process has them."""
    from threadpoolctl import threadpool_info

    pools = [
        {key: pool.get(key) for key in ("user_api", "internal_api", "version", "num_threads", "architecture")}
        for pool in threadpool_info()
    ]
    return {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        **library.facts(),
        "pools": pools,
    }


def cpu_model() -> str:
    """The processor's name, where the system tells it."""
    if sys.platform.startswith("linux"):
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _has(root: Any, path: str) -> bool:
    for name in path.split("."):
        if not hasattr(root, name):
            return False
        root = getattr(root, name)
    return True
