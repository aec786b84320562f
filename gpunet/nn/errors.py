"""Where in a model an error arose: errors that leave `Module.__call__` begin with the layer's path and its repr."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

from gpunet.errors import DeviceError, DTypeError, GradientError, ShapeError

if TYPE_CHECKING:
    from gpunet.nn.module import Module


class SizeError(ShapeError):
    """A layer got `size` features or channels where its constructor's `argument` promised another number."""

    def __init__(self, message: str, argument: str = "", size: int = 0) -> None:
        super().__init__(message)
        self.argument = argument
        self.size = size


# The very types, not their subclasses, which may need more than a message.
LOCATED = (SizeError, ShapeError, DTypeError, DeviceError, GradientError, ValueError, TypeError, IndexError)


class _Place:
    """What is known, while an error leaves one module after another, about where it comes from."""

    def __init__(self, module: Module, error: Exception) -> None:
        self.outermost = module
        self.layer = repr(module) if next(module.children(), None) is None else type(module).__name__
        self.path = ""
        self.message = str(error)
        self.mismatch = (error.argument, error.size) if isinstance(error, SizeError) and error.argument else None

    def enclose(self, module: Module) -> None:
        """Go on to a module that called the outermost one so far."""
        names = {id(m): name for name, m in module.named_modules()}
        name = names.get(id(self.outermost))
        if not name:  # it calls itself, or something that is not a part of it
            return
        if self.mismatch and (hint := self._neighbour(module)):
            self.message += hint
            self.mismatch = None
        self.path = f"{name}.{self.path}" if self.path else name
        self.outermost = module

    def _neighbour(self, module: Module) -> str:
        """What to say if the layer before the failing one has as many outputs as the failing one got."""
        assert self.mismatch is not None
        argument, size = self.mismatch
        before = None
        for name, m in module.named_modules():
            if m is self.outermost:
                break
            outputs = getattr(m, "out_features", None) or getattr(m, "out_channels", None)
            if outputs:
                before = name, type(m).__name__, outputs
        if before is None or before[2] != size:
            return ""
        return f". The layer before it, {before[0]} ({before[1]}), gives {size}: set {argument}={size} here"

    def __str__(self) -> str:
        return f"model.{self.path} ({self.layer}): {self.message}" if self.path else f"{self.layer}: {self.message}"


def locate(module: Module, error: Exception) -> Exception:
    """`error`, which leaves `module.forward`, with its message telling where it arose.

    The innermost module makes a new error of the same type, caused by the original one; the modules around it only
    lengthen the path in that.
    """
    place = getattr(error, "place", None)
    if place is not None:
        place.enclose(module)
        error.args = (str(place),)
        return error
    located = copy.copy(error)
    place = located.place = _Place(module, error)  # type: ignore[attr-defined]
    located.args = (str(place),)
    located.__cause__ = error
    return located
