"""Modules that hold other Modules, or Parameters, by number or by name."""

from __future__ import annotations

from collections.abc import ItemsView, Iterable, Iterator, KeysView, Mapping, ValuesView
from operator import index
from typing import Any, TypeVar, overload

from gpunet.nn.fusion import call_next
from gpunet.nn.module import Module
from gpunet.nn.parameter import Parameter

S = TypeVar("S", bound="_Sequence")


class _Sequence(Module):
    """A list of Modules, which are attributes named "0", "1", ..."""

    def _parts(self) -> dict[str, Module]:
        return {name: value for name, value in self.__dict__.items() if isinstance(value, Module)}

    def _name(self, i: Any) -> str:
        names = list(self._parts())
        try:
            return names[index(i)]
        except IndexError:
            raise IndexError(f"{type(self).__name__}: no module {i}; it has {len(names)}") from None

    def _become(self, parts: list[tuple[str, Module]]) -> None:
        """Hold just these; numbered anew, unless they have names."""
        numbered = all(name.isdecimal() for name, _module in parts)
        for name in self._parts():
            delattr(self, name)
        for i, (name, module) in enumerate(parts):
            self.add_module(str(i) if numbered else name, module)

    @overload
    def __getitem__(self, i: int) -> Any: ...
    @overload
    def __getitem__(self: S, i: slice) -> S: ...
    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            part = type(self)()
            for name, module in list(self._parts().items())[i]:
                part.add_module(name, module)
            return part
        return getattr(self, self._name(i))

    def __setitem__(self, i: int, module: Module) -> None:
        self.add_module(self._name(i), module)

    def __delitem__(self, i: int | slice) -> None:
        parts = list(self._parts().items())
        if not isinstance(i, slice):
            self._name(i)
        del parts[i]
        self._become(parts)

    def __len__(self) -> int:
        return len(self._parts())

    def __iter__(self) -> Iterator[Any]:
        return iter(self._parts().values())

    def append(self: S, module: Module) -> S:
        """Add a module at the end, and return the container."""
        names = self._parts()
        number = len(names)
        while str(number) in names:  # a slice of another container starts at a later number
            number += 1
        self.add_module(str(number), module)
        return self

    def extend(self: S, modules: Iterable[Module]) -> S:
        """Add modules at the end, and return the container."""
        for module in modules:
            self.append(module)
        return self

    def insert(self: S, i: int, module: Module) -> S:
        """Add a module before number i, and return the container. Those after it get other numbers."""
        self.append(module)
        parts = list(self._parts().items())
        last = parts.pop()
        parts.insert(i, last)
        self._become(parts)
        return self


class Sequential(_Sequence):
    """Calls its modules one after another, each with what the one before it returned.

        nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))
        nn.Sequential({"hidden": nn.Linear(784, 128), "act": nn.ReLU(), "head": nn.Linear(128, 10)})

    `model[0]`, `model[-1]` are its modules, `model[:2]` is a Sequential of some of them, which it shares.

    What the device has a kernel for runs as one op: on a GPU, Linear layers that follow each other with ReLU, GELU or
    SiLU between them (`gpunet.ops.feed_forward`); on the CPU, Conv2d and ReLU, with MaxPool2d(2) if it is there
    (`gpunet.ops.conv.conv_relu_pool`). Modules with hooks run by themselves.

    Args:
        modules: in the order in which they are called; or one dict of them, which gives them names.

    Raises:
        TypeError: one of them is no Module.
    """

    def __init__(self, *modules: Module | Mapping[str, Module]) -> None:
        if len(modules) == 1 and isinstance(modules[0], Mapping):
            for name, module in modules[0].items():
                self.add_module(name, module)
        else:
            self.extend(modules)  # type: ignore[arg-type]  # add_module checks

    def forward(self, x: Any) -> Any:
        parts = [value for value in self.__dict__.values() if isinstance(value, Module)]
        i = 0
        while i < len(parts):
            x, i = call_next(parts, i, x)
        return x


class ModuleList(_Sequence):
    """A list of Modules, whose parameters belong to the Module whose attribute it is.

    Args:
        modules: to begin with.
    """

    def __init__(self, modules: Iterable[Module] = ()) -> None:
        self.extend(modules)


class ModuleDict(Module):
    """A dict of Modules, whose parameters belong to the Module whose attribute it is.

    Args:
        modules: name -> Module, to begin with. Names are strings without dots, and none of a Module's own attributes.
    """

    def __init__(self, modules: Mapping[str, Module] | None = None) -> None:
        self.update(modules or {})

    def _parts(self) -> dict[str, Module]:
        return {name: value for name, value in self.__dict__.items() if isinstance(value, Module)}

    def __getitem__(self, name: str) -> Any:
        return self._parts()[name]

    def __setitem__(self, name: str, module: Module) -> None:
        self.add_module(name, module)

    def __delitem__(self, name: str) -> None:
        self.pop(name)

    def __len__(self) -> int:
        return len(self._parts())

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts())

    def __contains__(self, name: object) -> bool:
        return name in self._parts()

    def keys(self) -> KeysView[str]:
        """The names."""
        return self._parts().keys()

    def values(self) -> ValuesView[Module]:
        """The modules."""
        return self._parts().values()

    def items(self) -> ItemsView[str, Module]:
        """(name, module) pairs."""
        return self._parts().items()

    def update(self, modules: Mapping[str, Module]) -> None:
        """Add modules, or replace those of the same names."""
        for name, module in modules.items():
            self.add_module(name, module)

    def pop(self, name: str) -> Module:
        """Take a module out and return it."""
        module = self[name]
        delattr(self, name)
        return module


class ParameterList(Module):
    """A list of Parameters, which belong to the Module whose attribute it is.

    Args:
        parameters: to begin with; what is no Parameter becomes one.
    """

    def __init__(self, parameters: Iterable[Any] = ()) -> None:
        for parameter in parameters:
            self.append(parameter)

    def append(self, parameter: Any) -> ParameterList:
        """Add a parameter at the end, and return the list."""
        self.register_parameter(str(len(self)), parameter if isinstance(parameter, Parameter) else Parameter(parameter))
        return self

    def __getitem__(self, i: int) -> Parameter:
        return list(self)[i]

    def __len__(self) -> int:
        return len(self._own_parameters())

    def __iter__(self) -> Iterator[Parameter]:
        return (parameter for _name, parameter in self._own_parameters())

    def extra_repr(self) -> str:
        return ", ".join(f"{name}: {p.shape} {p.dtype}" for name, p in self._own_parameters())
