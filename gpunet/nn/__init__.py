"""Neural-network layers, with PyTorch's names, arguments, defaults and initial distributions."""

from gpunet.nn.module import Module
from gpunet.nn.parameter import Parameter

__all__ = ["Module", "Parameter"]
