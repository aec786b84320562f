"""Module: the base of every layer and network.

A Module's parts are simply its attributes: those that are Parameters, those that are Modules, and the Tensors that
`register_buffer` marked as buffers. Their names are paths such as "features.0.weight", as in PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from gpunet.autograd import Handle, no_grad
from gpunet.backends import Device, resolve
from gpunet.creation import asarray
from gpunet.dtypes import is_floating
from gpunet.errors import DTypeError
from gpunet.nn.errors import LOCATED, locate
from gpunet.nn.parameter import Parameter, replace_data
from gpunet.tensor import Tensor

if TYPE_CHECKING:
    from gpunet.nn.summary import Summary

M = TypeVar("M", bound="Module")


class Keys(NamedTuple):
    """What `load_state_dict` found not to match: names that the state lacks, and names that the model lacks."""

    missing_keys: list[str]
    unexpected_keys: list[str]


class Module:
    """Base class: write the layers in `__init__`, and in `forward` what is done with an input.

        class Net(nn.Module):
            def __init__(self):
                self.fc1 = nn.Linear(784, 128)
                self.fc2 = nn.Linear(128, 10)

            def forward(self, x):
                return self.fc2(F.relu(self.fc1(x)))

    Calling a Module calls its `forward`. An error in there is raised again with the path of the layer it came from.

    Attributes:
        training: whether layers such as Dropout and BatchNorm behave as in training; see `train` and `eval`.
    """

    training: bool = True
    # Names of buffers, and whether state_dict has them; hooks. Instances get their own at the first registration, so
    # that a subclass need not call super().__init__().
    _buffers: Mapping[str, bool] = {}
    _pre_hooks: list[Any] | None = None
    _hooks: list[Any] | None = None
    _backward_hooks: list[Any] | None = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the module computes; every subclass that is called defines it."""
        raise NotImplementedError(f"{type(self).__name__} does not define forward()")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            if self._pre_hooks or self._hooks or self._backward_hooks:
                return self._call_with_hooks(args, kwargs)
            return self.forward(*args, **kwargs)
        except LOCATED as error:
            if type(error) in LOCATED:
                raise locate(self, error)  # noqa: B904  (it sets the cause itself)
            raise

    def _call_with_hooks(self, args: Any, kwargs: Any) -> Any:
        for (hook,) in list(self._pre_hooks or ()):
            changed = hook(self, args)
            if changed is not None:
                args = changed if isinstance(changed, tuple) else (changed,)
        if self._backward_hooks:
            from gpunet.nn.gradient_hooks import call

            output = call(self, args, kwargs)
        else:
            output = self.forward(*args, **kwargs)
        for (hook,) in list(self._hooks or ()):
            changed = hook(self, args, output)
            if changed is not None:
                output = changed
        return output

    def register_forward_pre_hook(self, hook: Callable[[Module, tuple[Any, ...]], Any]) -> Handle:
        """Call `hook(module, args)` before every forward; what it returns, if not None, replaces the arguments."""
        if self._pre_hooks is None:
            self._pre_hooks = []
        return Handle(self._pre_hooks, hook)

    def register_forward_hook(self, hook: Callable[[Module, tuple[Any, ...], Any], Any]) -> Handle:
        """Call `hook(module, args, output)` after every forward; what it returns, if not None, replaces the output."""
        if self._hooks is None:
            self._hooks = []
        return Handle(self._hooks, hook)

    def register_full_backward_hook(self, hook: Callable[[Module, tuple[Any, ...], tuple[Any, ...]], Any]) -> Handle:
        """Call `hook(module, grad_input, grad_output)` whenever gradients have come back through the module.

        Args:
            hook: grad_input has a gradient for each Tensor among the positional arguments, and grad_output for each
                that the module returned (itself, or in a tuple, list or dict); None for those that have none. What it
                returns, if not None, is a tuple that takes the place of grad_input.
        """
        if self._backward_hooks is None:
            self._backward_hooks = []
        return Handle(self._backward_hooks, hook)

    # --- parts

    def __setattr__(self, name: str, value: Any) -> None:
        before = self.__dict__.get(name)
        if before is not None and value is not None:
            if isinstance(before, Parameter) and not isinstance(value, Parameter):
                raise TypeError(
                    f"{type(self).__name__}.{name} is a Parameter and cannot become a {type(value).__name__}; "
                    f"assign an nn.Parameter, or change its values: module.{name}.copy_(values) under gpunet.no_grad()"
                )
            if name in self._buffers and not isinstance(value, Tensor):
                where, kind = f"{type(self).__name__}.{name}", type(value).__name__
                raise TypeError(f"{where} is a buffer and cannot become a {kind}; assign a Tensor")
        object.__setattr__(self, name, value)

    def register_buffer(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
        """Make `tensor` the attribute `name`: part of the module's state, but no Parameter, such as a running mean.

        Args:
            name: an attribute name that is not taken.
            tensor: its first value; None for one that is not there yet.
            persistent: whether `state_dict` has it.

        Raises:
            TypeError: it is no Tensor, or it is a Parameter.
        """
        if tensor is not None and (not isinstance(tensor, Tensor) or isinstance(tensor, Parameter)):
            raise TypeError(f"register_buffer({name!r}): expected a Tensor or None, got a {type(tensor).__name__}")
        if name not in self._buffers:
            self._check_name(name)
        self._buffers = {**self._buffers, name: persistent}
        setattr(self, name, tensor)

    def register_parameter(self, name: str, parameter: Parameter | None) -> None:
        """Make `parameter` the attribute `name`: for names made while running; otherwise assign it."""
        if parameter is not None and not isinstance(parameter, Parameter):
            raise TypeError(
                f"register_parameter({name!r}): expected a Parameter or None, got a {type(parameter).__name__}"
            )
        if not isinstance(self.__dict__.get(name), Parameter):
            self._check_name(name)
        setattr(self, name, parameter)

    def add_module(self, name: str, module: Module | None) -> None:
        """Make `module` the attribute `name`: for names made while running; otherwise assign it."""
        if module is not None and not isinstance(module, Module):
            raise TypeError(f"{type(self).__name__}: {name!r} must be a Module, got {_describe(module)}")
        if not isinstance(self.__dict__.get(name), Module):
            self._check_name(name)
        setattr(self, name, module)

    def _check_name(self, name: str) -> None:
        if not isinstance(name, str) or not name or "." in name:
            raise ValueError(f"{type(self).__name__}: a part's name must be a string without dots, got {name!r}")
        if getattr(self, name, None) is not None:
            raise ValueError(f"{type(self).__name__}: the name {name!r} is taken by an attribute")

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """(name, module) of the Modules that are attributes of this one, each module once."""
        seen = set()
        for name, value in self.__dict__.items():
            if isinstance(value, Module) and id(value) not in seen:
                seen.add(id(value))
                yield name, value

    def children(self) -> Iterator[Module]:
        """The Modules that are attributes of this one, each once."""
        for _name, module in self.named_children():
            yield module

    def named_modules(self, prefix: str = "", remove_duplicate: bool = True) -> Iterator[tuple[str, Module]]:
        """(path, module) of this module, whose path is `prefix`, and of all inside it, outer ones first.

        A module that is part of several has the path found first, unless `remove_duplicate` is off.
        """
        return self._walk(prefix, set() if remove_duplicate else None)

    def _walk(self, prefix: str, seen: set[int] | None) -> Iterator[tuple[str, Module]]:
        if seen is not None:
            if id(self) in seen:
                return
            seen.add(id(self))
        yield prefix, self
        for name, value in self.__dict__.items():
            if isinstance(value, Module):
                yield from value._walk(f"{prefix}.{name}" if prefix else name, seen)

    def modules(self) -> Iterator[Module]:
        """This module and all inside it, each once, outer ones first."""
        for _path, module in self.named_modules():
            yield module

    def _named(self, own: Callable[[Module], Any], prefix: str, recurse: bool) -> Iterator[tuple[str, Any]]:
        seen = set()
        for path, module in self.named_modules(prefix) if recurse else [(prefix, self)]:
            for name, tensor in own(module):
                if id(tensor) not in seen:
                    seen.add(id(tensor))
                    yield f"{path}.{name}" if path else name, tensor

    def _own_parameters(self) -> list[tuple[str, Parameter]]:
        return [(name, value) for name, value in self.__dict__.items() if isinstance(value, Parameter)]

    def _own_buffers(self) -> list[tuple[str, Tensor]]:
        values = ((name, self.__dict__.get(name)) for name in self._buffers)
        return [(name, v) for name, v in values if isinstance(v, Tensor) and not isinstance(v, Parameter)]

    def named_parameters(self, prefix: str = "", recurse: bool = True) -> Iterator[tuple[str, Parameter]]:
        """(path, parameter) of this module and, if `recurse`, of all inside it; each parameter once."""
        return self._named(Module._own_parameters, prefix, recurse)

    def parameters(self, recurse: bool = True) -> Iterator[Parameter]:
        """The parameters of this module and, if `recurse`, of all inside it; each once."""
        for _path, parameter in self.named_parameters(recurse=recurse):
            yield parameter

    def named_buffers(self, prefix: str = "", recurse: bool = True) -> Iterator[tuple[str, Tensor]]:
        """(path, buffer) of this module and, if `recurse`, of all inside it; each buffer once."""
        return self._named(Module._own_buffers, prefix, recurse)

    def buffers(self, recurse: bool = True) -> Iterator[Tensor]:
        """The buffers of this module and, if `recurse`, of all inside it; each once."""
        for _path, buffer in self.named_buffers(recurse=recurse):
            yield buffer

    # --- modes, devices and data types

    def train(self: M, mode: bool = True) -> M:
        """Set `training` here and in all modules inside, and return the module."""
        for module in self.modules():
            module.training = mode
        return self

    def eval(self: M) -> M:
        """`train(False)`: behave as when predicting."""
        return self.train(False)

    def requires_grad_(self: M, requires_grad: bool = True) -> M:
        """Set `requires_grad` of all parameters (False freezes the module), and return the module."""
        for parameter in self.parameters():
            parameter.requires_grad = requires_grad
        return self

    def zero_grad(self) -> None:
        """Set `grad` of all parameters to None."""
        for parameter in self.parameters():
            parameter.grad = None

    def apply(self: M, fn: Callable[[Module], Any]) -> M:
        """Call `fn(module)` for all modules inside, then for this one, and return the module."""
        for module in self.children():
            module.apply(fn)
        fn(self)
        return self

    def to(self: M, *targets: Any) -> M:
        """Move parameters and buffers to a device, or convert the floating-point ones to a dtype, or both.

        The Parameter objects stay the same, so that an optimizer that holds them keeps working.

        Args:
            targets: devices (a Device or its name) and floating-point dtypes; None is passed over.

        Returns:
            The module itself.

        Raises:
            DTypeError: a dtype that is not floating-point.
            DeviceError: this machine does not have the device.
        """
        device = dtype = None
        for target in targets:
            if target is None:
                continue
            kind = None if isinstance(target, Device) else _dtype(target)
            if kind is None:
                device = resolve(target)
            elif is_floating(kind):
                dtype = kind
            else:
                raise DTypeError(f"{type(self).__name__}.to: expected a device or a floating-point dtype, got {kind}")

        def convert(t: Tensor) -> Tensor:
            t = t if device is None else t.to_device(device)
            return t.astype(dtype, copy=False) if dtype is not None and is_floating(t.dtype) else t

        for tensor in [*self.parameters(), *self.buffers()]:
            replace_data(tensor, convert)
        return self

    def cpu(self: M) -> M:
        """`to("cpu")`."""
        return self.to("cpu")

    def cuda(self: M, index: int = 0) -> M:
        """`to("cuda:<index>")`."""
        return self.to(f"cuda:{index}")

    # --- state

    def _state(self) -> Iterator[tuple[str, Tensor]]:
        for path, module in self.named_modules(remove_duplicate=False):
            own: list[tuple[str, Tensor]] = [*module._own_parameters()]
            own += [(name, buffer) for name, buffer in module._own_buffers() if module._buffers[name]]
            for name, tensor in own:
                yield f"{path}.{name}" if path else name, tensor

    def state_dict(self) -> dict[str, Tensor]:
        """path -> Tensor for all parameters and persistent buffers. The Tensors share the module's memory."""
        return {name: tensor.detach() for name, tensor in self._state()}

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> Keys:
        """Copy values into the parameters and persistent buffers. Nothing is changed unless everything fits.

        Args:
            state: path -> Tensor or NumPy array; converted to the dtype and device of what it is copied into.
            strict: whether the names must be exactly those of `state_dict()`. If False, names that lack on either side
                are left alone. Shapes must match in any case.

        Returns:
            The names that the state lacks and those that the module lacks, `missing_keys` and `unexpected_keys`.

        Raises:
            ValueError: the state does not fit; all names that lack and all shapes that differ are listed.
        """
        own = dict(self._state())
        values = {name: asarray(value) for name, value in state.items()}
        missing = [name for name in own if name not in values]
        unexpected = [name for name in values if name not in own]
        problems = []
        if strict:
            problems += [f"missing: {name} {own[name].shape}" for name in missing]
            problems += [f"unexpected: {name} {values[name].shape}" for name in unexpected]
        found = {name: values[name] for name in own if name in values}
        for name, value in found.items():
            shape, dtype = own[name].shape, own[name].dtype
            if value.shape != shape:
                problems.append(f"wrong shape: {name} is {shape}, the state has {value.shape}")
            if not np.can_cast(value.dtype, dtype, "same_kind"):
                problems.append(f"wrong dtype: {name} is {dtype}, the state has {value.dtype}")
        if problems:
            raise ValueError(f"{type(self).__name__}: the state does not fit the model:\n  " + "\n  ".join(problems))
        found = {name: asarray(v, dtype=own[name].dtype, device=own[name].device) for name, v in found.items()}
        with no_grad():
            for name, value in found.items():
                own[name].copy_(value)
        return Keys(missing, unexpected)

    # --- what it looks like

    def extra_repr(self) -> str:
        """What the repr shows between the parentheses: the constructor's arguments."""
        return ""

    def __repr__(self) -> str:
        extra = self.extra_repr()
        lines = [extra] if extra else []
        parts = [(name, value) for name, value in self.__dict__.items() if isinstance(value, Module)]
        for name, value in parts:
            lines += f"({name}): {value!r}".split("\n")
        if not parts:
            return f"{type(self).__name__}({extra})"
        return "\n  ".join([f"{type(self).__name__}(", *lines]) + "\n)"

    def summary(self, *inputs: Any) -> Summary:
        """A table of the layers with their output shapes and parameter counts; see `gpunet.nn.summary`."""
        from gpunet.nn.summary import summary

        return summary(self, *inputs)


def _dtype(target: Any) -> np.dtype | None:
    """`target` as a dtype, or None if it is the name of a device."""
    try:
        return np.dtype(target)
    except TypeError:
        if isinstance(target, str):
            return None
        raise TypeError(f"to: expected a device or a dtype, got {target!r}") from None


def _describe(value: Any) -> str:
    if isinstance(value, type):
        return f"the class {value.__name__} itself; did you mean {value.__name__}()?"
    if callable(value) and hasattr(value, "__name__"):
        return f"the function {value.__name__}; a layer, or a Module whose forward calls it, would do"
    return f"a {type(value).__name__}"
