"""Where in a model an error arose: errors that leave `Module.__call__` begin with the layer's path and its repr."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

from gpunet.errors import DeviceError, DTypeError, GradientError, ShapeError

if TYPE_CHECKING:
    from gpunet.nn.module import Module


# The very types, not their subclasses, which may need more than a message.
LOCATED = (ShapeError, DTypeError, DeviceError, GradientError, ValueError, TypeError, IndexError)


def size_error(message: str, argument: str, size: int) -> ShapeError:
    """An error for `size` features or channels where the constructor's `argument` promised another number.

    If the layer before gives just as many, the error will say so where it leaves the module that holds both.
    """
    error = ShapeError(message)
    error.mismatch = (argument, size)  # type: ignore[attr-defined]
    return error


class _Place:
    """What is known, while an error leaves one module after another, about where it comes from."""

    def __init__(self, module: Module, error: Exception) -> None:
        self.outermost = module
        self.layer = repr(module) if next(module.children(), None) is None else type(module).__name__
        self.path = ""
        self.message = str(error)
        self.mismatch: tuple[str, int] | None = getattr(error, "mismatch", None)
        self.giver = ("", "")  # path and class name of the layer before, if it gives what the failing one got

    def enclose(self, module: Module) -> None:
        """Go on to a module that called the outermost one so far."""
        names = {id(m): name for name, m in module.named_modules()}
        name = names.get(id(self.outermost))
        if not name:  # it calls itself, or something that is not a part of it
            return
        if self.giver[0]:
            self.giver = (f"{name}.{self.giver[0]}", self.giver[1])
        elif self.mismatch:
            self.giver = self._find_giver(module, self.mismatch[1])
        self.path = f"{name}.{self.path}" if self.path else name
        self.outermost = module

    def _find_giver(self, module: Module, size: int) -> tuple[str, str]:
        last = ("", "", 0)
        for name, m in module.named_modules():
            if m is self.outermost:
                break
            outputs = getattr(m, "out_features", None) or getattr(m, "out_channels", None)
            if name and isinstance(outputs, int):
                last = (name, type(m).__name__, outputs)
        return last[:2] if last[2] == size else ("", "")

    def __str__(self) -> str:
        where = f"model.{self.path} ({self.layer})" if self.path else self.layer
        hint = ""
        if self.mismatch and self.giver[0]:
            (argument, size), (path, kind) = self.mismatch, self.giver
            hint = f". The layer before it, model.{path} ({kind}), gives {size}: set {argument}={size} here"
        return f"{where}: {self.message}{hint}"


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
