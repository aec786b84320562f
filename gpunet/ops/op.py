"""`op`: how an operation is declared, once, for every device.

    @op
    def softmax(xp, x, *, axis=-1):                    # the reference: NumPy and CuPy both run it as it is
        e = xp.exp(x - xp.max(x, axis=axis, keepdims=True))
        return e / xp.sum(e, axis=axis, keepdims=True)

    @softmax.vjp
    def _(xp, g, y, _x, *, axis):                      # gradient with respect to x, given g, that of y
        return y * (g - xp.sum(g * y, axis=axis, keepdims=True))

    @softmax.kernel("softmax", when=rows_are_contiguous)
    def _(launch, x, *, axis): ...                     # allocate the output, choose grid and tile, launch

The positional parameters after `xp` are the arrays, the keyword-only ones are the op's other parameters (a caller may
give these by position too, after the arrays). Called with raw arrays, an op returns raw arrays. Called with Tensors it
returns Tensors and, where gradients are wanted, records one node on the tape.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial, update_wrapper
from typing import Any, NamedTuple

import numpy as np

from gpunet.backends import Backend, backend_of_type
from gpunet.backends.kernel import Launcher, Rehearsal
from gpunet.errors import DeviceError, DTypeError


class Traced:
    """Base of Tensor: an object that an op hands to the tape instead of running on it directly."""

    __slots__ = ()

    data: Any


class Kernel(NamedTuple):
    """A kernel candidate of backends of a platform: `launch` is used where `when` holds."""

    platform: str
    name: str
    when: Callable[..., bool] | None
    launch: Callable[..., Any]
    least: int


class _Mode(threading.local):
    kernels = "auto"


_mode = _Mode()
_blocks: list[None] = []  # an entry for each `kernels` block that any thread is in: asking `_mode` takes time


@contextmanager
def kernels(mode: str) -> Iterator[None]:
    """Choose whether ops may use gpunet's own kernels, within a `with` block and this thread.

    Args:
        mode: "off" runs every op's reference; "auto" runs the first kernel candidate that applies; "force" raises
            DeviceError where no candidate of an op that has kernels applies.
    """
    if mode not in ("off", "auto", "force"):
        raise ValueError(f'kernels: expected "off", "auto" or "force", got {mode!r}')
    before, _mode.kernels = _mode.kernels, mode
    _blocks.append(None)
    try:
        yield
    finally:
        _blocks.pop()
        _mode.kernels = before


def kernels_mode() -> str:
    """What `kernels` was last given, in this thread."""
    return _mode.kernels if _blocks else "auto"


def explain(operation: Op, *args: Any, **params: Any) -> str:
    """Which of an op's kernels would run on these arguments, and why others would not. Nothing is launched.

        print(gn.kernels.explain(gn.matmul, a, b))

    Args:
        operation: the op.
        args, params: as it takes them.

    Returns:
        A line for each candidate in the order in which they are tried, then one for the reference: the kernels that
        would be launched, with their grids; or the condition that does not hold. A kernel of the CPU may still leave
        a dtype or layout to the reference when it is called.

    Raises:
        TypeError: `operation` is not an op.
        DTypeError: there is no array among the arguments.
    """
    if not isinstance(operation, Op):
        raise TypeError(f"explain: expected an op, such as gpunet.matmul, got {operation!r}")
    args, params = operation.arguments(*args, **params)
    arrays = [a.data if isinstance(a, Traced) else a for a in args]
    kind = next((type(a) for a in arrays if hasattr(a, "dtype")), None)
    if kind is None:
        raise DTypeError(f"explain: expected at least one Tensor or array for {operation.name}")
    backend = backend_of_type(kind)
    params = operation.defaults | params
    lines = [f"{operation.name} of {describe(args)} on {backend.name}:"]
    chosen, off = False, kernels_mode() == "off"
    for kernel in operation.kernels if backend.launcher is not None else ():
        if kernel.platform == backend.platform:
            found, reason = (False, "kernels are off") if off else _try(kernel, backend, arrays, params)
            taken, chosen = found and not chosen, chosen or found
            lines.append(f"  {'runs' if taken else '    '} kernel {kernel.name}: {reason}")
    lines.append(f"  {'    ' if chosen else 'runs'} reference, on {getattr(backend.xp, '__name__', backend.name)}")
    return "\n".join(lines)


def _try(kernel: Kernel, backend: Backend, arrays: list[Any], params: dict[str, Any]) -> tuple[bool, str]:
    """Whether a candidate would run, and what it would launch or what keeps it from that."""
    assert backend.launcher is not None
    if getattr(arrays[0], "size", 0) < kernel.least:
        return False, f"does not apply, as the first argument is no array of {kernel.least} elements or more"
    if kernel.when is not None and not kernel.when(*arrays, **params):
        return False, f"does not apply, as its condition does not hold: {_text_of(kernel.when)}"
    launcher = backend.launcher(kernel.name)
    if not isinstance(launcher, Launcher):
        usable = launcher.usable()
        return usable, f"kernels/cpu/{kernel.name}.cpp" + ("" if usable else ", which cannot be compiled here")
    rehearsal = Rehearsal(launcher)
    if kernel.launch(rehearsal, *arrays, **params) is NotImplemented:
        return False, "declines these dtypes, shapes or layouts"
    launches = [f"{variant.expression} on a grid of {grid}" for variant, grid in rehearsal.launches]
    return True, ", then ".join(launches) or "with nothing to launch"


def _text_of(condition: Callable[..., bool]) -> str:
    """The source of a condition, on one line."""
    try:
        text = inspect.getsource(condition)
    except (OSError, TypeError):
        return repr(condition)
    for start in ("lambda", "return "):  # of a function, what it returns
        if start in text:
            text = text[text.index(start) :].removeprefix("return ")
            break
    return " ".join(text.split())[:200]


kernels.explain = explain  # type: ignore[attr-defined]


class Op:
    """An operation: its reference, its derivative, its kernel candidates. Made by `op`; see the module's docstring."""

    # Set by gpunet.autograd, which stands on the floor above: running an op on Tensors, recorded, and the way back.
    record: Callable[[Op, tuple[Any, ...], dict[str, Any]], Any]
    record_one: Callable[[Op, Any], Any]
    backward: Callable[..., None]

    def __init__(
        self, reference: Callable[..., Any], *, view: bool = False, promotes: bool = False, direct: bool = False
    ) -> None:
        self.reference = reference
        self.direct = direct
        self.name = reference.__name__.lstrip("_")
        self.view = view
        self.promotes = promotes
        parameters = list(inspect.signature(reference).parameters.values())[1:]
        arrays = [p for p in parameters if p.kind is not p.KEYWORD_ONLY]
        self.variadic = any(p.kind is p.VAR_POSITIONAL for p in arrays)
        self.arity = len(arrays)
        self.array_names = tuple(p.name for p in arrays)
        self.param_names = tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)
        self.defaults = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is not p.empty}
        self.derivative: Callable[..., Any] | None = None
        self.derivatives: tuple[Callable[..., Any], ...] | None = None  # for each input, where they are separate
        self.raw_derivative: Callable[..., Any] | None = None  # what `vjp_of_arrays` was given
        self.passes_on = False  # whether the gradient of the output, as it is, is that of both inputs
        self.keeps_output = False
        self.keeps: tuple[bool, ...] = ()  # for each input: whether the derivative needs its value
        self.drops: tuple[int, ...] = ()  # numbers of the inputs whose values it does not need
        self.keeps_all = self.keeps_none = False
        self.needs: tuple[tuple[int, ...], ...] = ()  # with `derivatives`: for each, numbers of the inputs it needs
        self.kernels: list[Kernel] = []
        self.in_place: Callable[[Any, Any], bool] | None = None  # a kernel that does what `write` does, if it can
        self.implementations: dict[type, Callable[..., Any]] = {}
        update_wrapper(self, reference)
        if not any(_has_default(p) for p in arrays):  # parameters without defaults come next, and by position too
            parameters = [
                p.replace(kind=p.POSITIONAL_OR_KEYWORD) if p.kind is p.KEYWORD_ONLY and not _has_default(p) else p
                for p in parameters
            ]
        self.__signature__ = inspect.Signature(sorted(parameters, key=lambda p: p.kind))
        if not self.variadic:  # parameters may be given by position too, after the arrays
            self._parameters = inspect.Signature(
                sorted((p.replace(kind=p.POSITIONAL_OR_KEYWORD) for p in parameters), key=_has_default)
            )

    def __call__(self, *args: Any, **params: Any) -> Any:
        if len(args) != self.arity and not self.variadic:
            args, params = self._bind(args, params)
        if len(args) == 1 and not params and isinstance(args[0], Traced):
            return Op.record_one(self, args[0])
        run = None
        for a in args:
            if isinstance(a, Traced):
                return Op.record(self, args, params)
            if run is None:
                run = self.implementations.get(type(a))
        return self.run(args, params) if run is None else run(*args, **params)

    def arguments(self, *args: Any, **params: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """All arrays by position (None for those left out) and the other parameters by name."""
        return (args, params) if len(args) == self.arity or self.variadic else self._bind(args, params)

    def run(self, args: tuple[Any, ...], params: dict[str, Any]) -> Any:
        """Run on raw arrays."""
        for a in args:
            if hasattr(a, "dtype"):
                return self.implementation(type(a))(*args, **params)
        raise DTypeError(
            f"{self.name}: expected at least one Tensor or array, got {', '.join(type(a).__name__ for a in args)}"
        )

    def implementation(self, kind: type) -> Callable[..., Any]:
        """What runs this op on raw arrays of class `kind`."""
        run = self.implementations.get(kind)
        if run is None:
            run = self.implementations[kind] = self._implement(kind, backend_of_type(kind))
        return run

    def vjp(self, derivative: Callable[..., Any]) -> Callable[..., Any]:
        """Declare the vector-Jacobian product: `derivative(xp, g, y, *inputs, **params)`.

        It returns one entry for each input (no tuple where there is one input): an array, None where there is no
        derivative, or a function of no arguments that computes it and is called only if that input wants a gradient.
        The gradient g of an op with several outputs is a tuple, with None for outputs that have none.
        An entry may have the shape that its input broadcasts to; the tape sums it down.

        A parameter named with a leading underscore says that the value is not needed: it is not kept in memory, and
        what arrives has only `shape`, `ndim` and `dtype`. The body must be written in Array API words and ops: it also
        runs on Tensors, which is how higher derivatives come about.
        """
        _xp, _g, y, *inputs = [
            p for p in inspect.signature(derivative).parameters.values() if p.kind is not p.KEYWORD_ONLY
        ]
        self.derivative = derivative
        self.keeps_output = not y.name.startswith("_")
        self._keep(not p.name.startswith("_") for p in inputs)
        return derivative

    def vjps(self, *derivatives: Callable[..., Any]) -> None:
        """Declare a vector-Jacobian product for each input: functions `derivative(xp, g, y, *inputs)`.

        As one `vjp` that gives a function for each, at a lower cost. Only for ops without other parameters.
        """
        needed = [[not p.startswith("_") for p in inspect.signature(d).parameters] for d in derivatives]
        _xp, _g, self.keeps_output, *keeps = map(any, zip(*needed))

        def derivative(xp: Any, g: Any, y: Any, *inputs: Any) -> tuple[Any, ...]:
            return tuple((lambda d=d: d(xp, g, y, *inputs)) for d in derivatives)

        self.derivative = derivative if len(derivatives) > 1 else derivatives[0]
        self.derivatives = derivatives
        self.needs = tuple(tuple(i for i, need in enumerate(row[3:]) if need) for row in needed)
        self.passes_on = all(d is pass_on for d in derivatives)
        self._keep(keeps)

    def vjp_of_arrays(self, derivative: Callable[..., Any]) -> Callable[..., Any]:
        """Declare what a vector-Jacobian product comes to on raw arrays: `derivative(xp, g, y, wanted, *inputs)`.

        For ops without other parameters, beside `vjp` or `vjps`, which say which values are kept. It returns a tuple
        with an entry for each input, which may be None where `wanted` has None.
        """
        self.raw_derivative = derivative
        return derivative

    def _keep(self, keeps: Iterable[bool]) -> None:
        self.keeps = tuple(keeps)
        self.drops = tuple(i for i, keep in enumerate(self.keeps) if not keep)
        self.keeps_all = not self.drops
        self.keeps_none = not any(self.keeps)

    def kernel(
        self, name: str, *, platform: str = "cuda", when: Callable[..., bool] | None = None, least: int = 0
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Declare a kernel candidate: `launch(launcher(name), *arrays, **params)`, used where `when(*arrays, **params)`
        is true or there is none, unless it returns NotImplemented.

        Candidates are tried in the order of their declaration. On the platform "cpu", launcher(name) holds the
        functions of kernels/cpu/NAME.cpp.

        An op of two arrays whose only candidate says `least` has no kernels where the first is not an array of so many
        elements; to find that out costs next to nothing.
        """

        def declare(launch: Callable[..., Any]) -> Callable[..., Any]:
            self.kernels.append(Kernel(platform, name, when, launch, least))
            self.implementations.clear()
            return launch

        return declare

    def write(self, xp: Any, target: Any, other: Any, params: dict[str, Any]) -> None:
        """Replace the elements of the raw array `target` by those of op(target, other)."""
        if self.in_place is not None and type(target) is not np.ndarray and self.in_place(target, other):
            return
        if self.direct:
            getattr(xp, self.name)(target, other, out=target)
        else:
            result = self.run((target, other), params)
            if not np.can_cast(result.dtype, target.dtype, "same_kind"):  # which `out=` checks too
                raise DTypeError(f"{self.name}: cannot write a result of {result.dtype} to an array of {target.dtype}")
            target[...] = result

    def _implement(self, kind: type, backend: Backend) -> Callable[..., Any]:
        reference = getattr(backend.xp, self.name) if self.direct else partial(self.reference, backend.xp)
        reference = backend.implement(reference)
        launcher = backend.launcher
        kernels = [k for k in self.kernels if k.platform == backend.platform]
        if launcher is None or not kernels:
            return reference
        candidates: list[tuple[Any, Any, Any]] = []
        for kernel in kernels:
            functions = launcher(kernel.name)
            usable = getattr(functions, "usable", None)
            candidates.append((kernel.when, usable, backend.implement(partial(kernel.launch, functions))))
        defaults, count = self.defaults, len(self.param_names)
        least = kernels[0].least
        simple = not count and len(candidates) == 1 and candidates[0][0] is None and not least

        def dispatch(*args: Any, **params: Any) -> Any:
            mode = _mode.kernels if _blocks else "auto"
            if mode != "off":
                if len(params) < count:
                    params = defaults | params
                for i, (when, usable, launch) in enumerate(candidates):
                    if when is None or when(*args, **params):
                        if usable is not None:
                            if not usable():
                                continue
                            candidates[i] = when, None, launch  # it need not be asked again
                            if simple:
                                self.implementations[kind] = _quick(launch, dispatch, reference)
                        y = launch(*args, **params)
                        if y is not NotImplemented:
                            return y
                if mode == "force":
                    raise DeviceError(f"{self.name}: none of its kernels applies to {describe(args)}, {params}")
            return reference(*args, **params)

        return _by_size(least, reference, dispatch) if least else dispatch

    def _bind(self, args: tuple[Any, ...], params: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """All arrays by position (None for those left out) and all parameters by name."""
        extra = args[self.arity :]
        if 0 < len(extra) <= len(self.param_names) and not params:
            return args[: self.arity], dict(zip(self.param_names, extra))
        try:
            bound = self._parameters.bind(*args, **params).arguments
        except TypeError as error:
            raise TypeError(f"{self.name}: {error}") from None
        arrays = tuple(bound.pop(name, None) for name in self.array_names)
        return arrays, bound

    def __repr__(self) -> str:
        return f"<op {self.name}{self.__signature__}>"


def pass_on(_xp: Any, g: Any, _y: Any, _a: Any, _b: Any) -> Any:
    """For `Op.vjps`: the derivative of a sum with respect to either of its terms."""
    return g


def _quick(launch: Callable[..., Any], dispatch: Callable[..., Any], reference: Callable[..., Any]) -> Any:
    """What `dispatch` does for an op without parameters whose only kernel candidate decides by itself."""

    def run(*args: Any) -> Any:
        if _blocks:
            return dispatch(*args)
        y = launch(*args)
        return reference(*args) if y is NotImplemented else y

    return run


def _by_size(least: int, small: Callable[..., Any], large: Callable[..., Any]) -> Any:
    """`large` where the first of two arguments is an array of `least` elements or more."""

    def run(a: Any, b: Any) -> Any:
        try:
            if a.size < least:
                return small(a, b)
        except AttributeError:  # a number
            return small(a, b)
        return large(a, b)

    return run


def _has_default(parameter: inspect.Parameter) -> bool:
    return parameter.default is not parameter.empty


def op(reference: Any = None, **flags: bool) -> Any:
    """Declare an op by its reference, a function of (xp, arrays…, *, parameters…); see the module's docstring.

    Args:
        view: its result may share memory with its first input.
        direct: the array library's function of the same name is the reference.
        promotes: an integer array that meets a Python float becomes an array of the default floating-point type.
    """
    if reference is None:
        return partial(op, **flags)
    return Op(reference, **flags)


def kernel_launcher(x: Any) -> Any:
    """What launches CUDA kernels on the device of the raw array x; None where there is none, or they are off."""
    if type(x) is np.ndarray or isinstance(x, np.generic) or _mode.kernels == "off":
        return None
    backend = backend_of_type(type(x))
    return backend.launcher("") if backend.launcher is not None and backend.platform == "cuda" else None


def raw(x: Any) -> Any:
    """The raw array of a Tensor; anything else as it is."""
    return x.data if isinstance(x, Traced) else x


def describe(args: tuple[Any, ...]) -> str:
    """Shapes and dtypes of an op's arguments, for error messages: "(3, 4) float32 and (5,) float32"."""
    words = [f"{tuple(a.shape)} {a.dtype}" if hasattr(a, "dtype") else repr(a) for a in args if a is not None]
    return " and ".join(words) if len(words) < 3 else ", ".join(words[:-1]) + " and " + words[-1]
