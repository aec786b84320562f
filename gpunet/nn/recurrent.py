"""Recurrent layers, and their cells for single steps."""

from __future__ import annotations

import math
import warnings
from typing import Any

import gpunet as gn
from gpunet.creation import empty
from gpunet.errors import ShapeError
from gpunet.nn import functional as F
from gpunet.nn import init
from gpunet.nn.arguments import check_array, check_dtype, integer
from gpunet.nn.errors import size_error
from gpunet.nn.module import Module
from gpunet.nn.parameter import Parameter
from gpunet.ops import recurrent as ops
from gpunet.ops.matmul import linear
from gpunet.tensor import Tensor


def _as_one(a: Tensor) -> Tensor:
    """With a first axis of length one; a view, whose gradient is one too."""
    return a.reshape((1, *a.shape))


def _sum(a: Tensor | None, b: Tensor | None) -> Any:
    return None if a is None or b is None else a + b


class _Kind(Module):
    """What the layers and the cell of one kind have in common."""

    gates: int  # how many times hidden_size rows the weights have
    hidden_size: int

    def reset_parameters(self) -> None:
        """Draw the parameters anew."""
        bound = 1 / math.sqrt(self.hidden_size)
        for parameter in self.parameters():
            init.uniform_(parameter, -bound, bound)

    def _sequence(self, x: Tensor, state: Any, parameters: tuple[Any, ...], reverse: bool) -> tuple[Tensor, Any]:
        """One direction of one layer.

        Args:
            x: (T, B, features).
            state: a tuple of what is before the first step, (B, H) each; None for zeros.
            parameters: weight_ih, weight_hh, bias_ih, bias_hh, and perhaps weight_hr.

        Returns:
            The outputs (T, B, H), and for each part of the state its values after every step.
        """
        raise NotImplementedError


class _TanhOrReLU(_Kind):
    gates = 1
    nonlinearity: str

    def _check_nonlinearity(self) -> None:
        if self.nonlinearity not in ("tanh", "relu"):
            raise ValueError(f'{type(self).__name__}: nonlinearity must be "tanh" or "relu", got {self.nonlinearity!r}')

    def _sequence(self, x: Tensor, state: Any, parameters: Any, reverse: bool) -> tuple[Tensor, Any]:
        weight_ih, weight_hh, bias_ih, bias_hh = parameters
        inputs, (h,) = linear(x, weight_ih, None), state or (None,)
        hs = ops.rnn(inputs, h, weight_hh, _sum(bias_ih, bias_hh), activation=self.nonlinearity, reverse=reverse)
        return hs, (hs,)


class _LongShortTerm(_Kind):
    gates = 4

    def _sequence(self, x: Tensor, state: Any, parameters: Any, reverse: bool) -> tuple[Tensor, Any]:
        weight_ih, weight_hh, bias_ih, bias_hh, *projection = parameters
        inputs, (h, c) = linear(x, weight_ih, None), state or (None, None)
        args = (inputs, h, c, weight_hh, _sum(bias_ih, bias_hh))
        if projection:
            hs, cs, _gates = ops.projected_lstm(gn, *args, projection[0], reverse=reverse)
        else:
            hs, cs, _gates = ops.lstm(*args, reverse=reverse)
        return hs, (hs, cs)


class _GatedUnit(_Kind):
    gates = 3

    def _sequence(self, x: Tensor, state: Any, parameters: Any, reverse: bool) -> tuple[Tensor, Any]:
        weight_ih, weight_hh, bias_ih, bias_hh = parameters
        inputs, (h,) = linear(x, weight_ih, bias_ih), state or (None,)
        hs, _gates = ops.gru(inputs, h, weight_hh, bias_hh, reverse=reverse)
        return hs, (hs,)


class _Layers(_Kind):
    weight_ih_l0: Parameter

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        bias: bool,
        batch_first: bool,
        dropout: float,
        bidirectional: bool,
        proj_size: int,
        device: Any,
        dtype: Any,
    ) -> None:
        where = type(self).__name__
        self.input_size = integer(where, "input_size", input_size)
        self.hidden_size = integer(where, "hidden_size", hidden_size)
        self.num_layers = integer(where, "num_layers", num_layers)
        self.bias = bool(bias)
        self.batch_first = bool(batch_first)
        if not 0 <= dropout <= 1:
            raise ValueError(f"{where}: dropout must be a probability, from 0 to 1, got {dropout!r}")
        self.dropout = float(dropout)
        self.bidirectional = bool(bidirectional)
        self.proj_size = integer(where, "proj_size", proj_size, 0)
        if self.proj_size >= self.hidden_size:
            raise ValueError(f"{where}: proj_size must be less than hidden_size={hidden_size}, got {proj_size}")
        if dropout and self.num_layers == 1:
            warnings.warn(
                f"{where}: dropout={dropout} is between layers, so it does nothing with num_layers=1", stacklevel=3
            )
        size, out_size = self.gates * self.hidden_size, self.proj_size or self.hidden_size
        for layer in range(self.num_layers):
            features = out_size * (1 + self.bidirectional) if layer else self.input_size
            shapes: dict[str, tuple[int, ...]] = {"weight_ih": (size, features), "weight_hh": (size, out_size)}
            if bias:
                shapes |= {"bias_ih": (size,), "bias_hh": (size,)}
            if self.proj_size:
                shapes["weight_hr"] = (self.proj_size, self.hidden_size)
            for suffix in self._suffixes(layer):
                for name, shape in shapes.items():
                    setattr(self, name + suffix, Parameter(empty(shape, dtype=dtype, device=device)))
        self.reset_parameters()

    def _suffixes(self, layer: int) -> list[str]:
        """What the names of a layer's parameters end in, for each direction."""
        return [f"_l{layer}", f"_l{layer}_reverse"][: 1 + self.bidirectional]

    def _parameters_of(self, suffix: str) -> tuple[Any, ...]:
        names = ["weight_ih", "weight_hh", "bias_ih", "bias_hh", *(["weight_hr"] if self.proj_size else [])]
        return tuple(getattr(self, name + suffix, None) for name in names)

    def flatten_parameters(self) -> None:
        """Nothing: PyTorch's programs call it to arrange the parameters in memory."""

    def _run(self, x: Tensor, state: tuple[Any, ...] | None) -> tuple[Tensor, tuple[Tensor, ...]]:
        """All layers; the state is what the user gave, h or (h, c)."""
        shape = check_array(x)
        if len(shape) not in (2, 3):
            batch = "(N, L, " if self.batch_first else "(L, N, "
            wanted = f"{batch}{self.input_size}), or (L, {self.input_size}) for a single sequence"
            raise ShapeError(f"expected an input of shape {wanted}, got {shape}")
        _check_features(x, self.input_size)
        check_dtype(x, self.weight_ih_l0)
        batched = len(shape) == 3
        if not batched:
            x = x.reshape((shape[0], 1, shape[1]))
        elif self.batch_first:
            x = x.swapaxes(0, 1)
        if not x.shape[0]:
            raise ShapeError(f"expected a sequence of at least one step, got an input of shape {shape}")
        if state is not None:
            directions = self.num_layers * (1 + self.bidirectional)
            sizes = (self.proj_size or self.hidden_size, self.hidden_size)
            batch_shape = (x.shape[1],) if batched else ()
            for name, part, size in zip(("h_0", "c_0"), state, sizes):
                _check_state(name, part, (directions, *batch_shape, size), shape, self.weight_ih_l0)
            if not batched:
                state = tuple(part.reshape((directions, 1, -1)) for part in state)
        ends: list[list[Tensor]] = []  # of each layer and direction, the state after its last step
        for layer in range(self.num_layers):
            if layer and self.dropout:
                x = F.dropout(x, self.dropout, self.training)
            outputs = []
            for reverse, suffix in enumerate(self._suffixes(layer)):
                own = None if state is None else tuple(part[len(ends)] for part in state)
                hs, states = self._sequence(x, own, self._parameters_of(suffix), bool(reverse))
                outputs.append(hs)
                ends.append([after[0 if reverse else -1] for after in states])
            x = outputs[0] if len(outputs) == 1 else gn.concat(outputs, axis=-1)
        final = tuple(_as_one(parts[0]) if len(parts) == 1 else gn.stack(parts) for parts in zip(*ends))
        if not batched:
            return x[:, 0], tuple(part[:, 0] for part in final)
        return x.swapaxes(0, 1) if self.batch_first else x, final

    def extra_repr(self) -> str:
        options = {
            "proj_size": (self.proj_size, 0),
            "num_layers": (self.num_layers, 1),
            "bias": (self.bias, True),
            "batch_first": (self.batch_first, False),
            "dropout": (self.dropout, 0.0),
            "bidirectional": (self.bidirectional, False),
        }
        shown = [f"{name}={value}" for name, (value, default) in options.items() if value != default]
        return ", ".join([f"{self.input_size}, {self.hidden_size}", *shown])


class RNN(_TanhOrReLU, _Layers):
    """Plain recurrent layers (Elman, 1990): h = tanh(weight_ih @ x + bias_ih + weight_hh @ h + bias_hh) at each step.

    Shapes: an input (L, N, input_size) of L steps, with batch_first (N, L, input_size), or of one sequence
    (L, input_size); and, if not zero, h_0 (D * num_layers, N, hidden_size), without N for one sequence, where D is 2
    if bidirectional, else 1. Returned are the output (L, N, D * hidden_size), in the layout of the input, which is h of
    the last layer after each step, and h_n, of the shape of h_0, which is h of each layer after its last step.
    Sequences of one batch are of one length.

    Args:
        input_size, hidden_size: lengths of the last axis of the input and of h.
        num_layers: layers, each of which takes the output of the one before.
        nonlinearity: "tanh" or "relu".
        bias: whether there are bias_ih and bias_hh.
        batch_first: whether N comes before L in the input and the output.
        dropout: in training, the probability that an element of what goes from one layer to the next is dropped.
        bidirectional: whether a second network goes from the last step to the first, its output beside that of the
            other.
        device, dtype: of the parameters.

    Attributes:
        weight_ih_l0, weight_hh_l0, bias_ih_l0, bias_hh_l0: (hidden_size, features), (hidden_size, hidden_size),
            (hidden_size,) and (hidden_size,) of layer 0, and so on; with _reverse at the end, of the other direction.
            At first uniform within ±1/sqrt(hidden_size).

    Raises:
        ValueError, TypeError: an argument that is out of range. When called, ShapeError: an input or state that does
            not fit.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        self.nonlinearity = nonlinearity
        self._check_nonlinearity()
        super().__init__(
            input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, 0, device, dtype
        )

    def forward(self, x: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:
        output, (h,) = self._run(x, None if hx is None else (hx,))
        return output, h


class GRU(_GatedUnit, _Layers):
    """Layers of gated recurrent units (Cho et al., 2014). At each step, with the sums weight @ x + bias of the input
    (i) and of the state (h) in three parts:

        r, z = sigmoid(i_r + h_r), sigmoid(i_z + h_z)
        n = tanh(i_n + r * h_n)
        h = (1 - z) * n + z * h

    Shapes, arguments, attributes and errors: as of `RNN`; the weights and biases have 3 * hidden_size rows, those
    for r, z and n in turn.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(
            input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, 0, device, dtype
        )

    def forward(self, x: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:
        output, (h,) = self._run(x, None if hx is None else (hx,))
        return output, h


class LSTM(_LongShortTerm, _Layers):
    """Layers of long short-term memory (Hochreiter and Schmidhuber, 1997). At each step, with the sums of
    weight_ih @ x + bias_ih and weight_hh @ h + bias_hh in four parts:

        i, f, o = sigmoid(i), sigmoid(f), sigmoid(o)
        c = f * c + i * tanh(g)
        h = o * tanh(c)

    Shapes: as of `RNN`, but that the state is a pair: `lstm(x, (h_0, c_0))` gives `output, (h_n, c_n)`, where c is of
    the shape of h.

    Args:
        proj_size: if not 0, h is projected to so many features at the end of each step (Sak, Senior and Beaufays,
            2014): these take the place of hidden_size in the shapes of h and of the output.
        others: as of `RNN`.

    Attributes:
        weight_ih_l0, ...: as of `RNN`, with 4 * hidden_size rows, those for i, f, g and o in turn.
        weight_hr_l0, ...: with proj_size, (proj_size, hidden_size).
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(
            input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size, device, dtype
        )

    def forward(self, x: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        output, (h, c) = self._run(x, _pair(hx, "h_0, c_0"))
        return output, (h, c)


class _Cell(_Kind):
    def __init__(self, input_size: int, hidden_size: int, bias: bool, device: Any, dtype: Any) -> None:
        where = type(self).__name__
        self.input_size = integer(where, "input_size", input_size)
        self.hidden_size = integer(where, "hidden_size", hidden_size)
        self.bias = bool(bias)
        size, how = self.gates * self.hidden_size, {"device": device, "dtype": dtype}
        self.weight_ih = Parameter(empty((size, self.input_size), **how))
        self.weight_hh = Parameter(empty((size, self.hidden_size), **how))
        self.bias_ih = Parameter(empty((size,), **how)) if bias else None
        self.bias_hh = Parameter(empty((size,), **how)) if bias else None
        self.reset_parameters()

    def _run(self, x: Tensor, state: tuple[Any, ...] | None) -> tuple[Tensor, ...]:
        shape = check_array(x)
        if len(shape) not in (1, 2):
            wanted = f"(N, {self.input_size}) or ({self.input_size},)"
            raise ShapeError(f"expected an input of shape {wanted}, got {shape}")
        _check_features(x, self.input_size)
        check_dtype(x, self.weight_ih)
        for name, part in zip(("h", "c"), state or ()):
            _check_state(name, part, (*shape[:-1], self.hidden_size), shape, self.weight_ih)
        if len(shape) == 1:
            x, state = _as_one(x), state and tuple(map(_as_one, state))
        parameters = (self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh)
        _hs, states = self._sequence(_as_one(x), state, parameters, False)
        return tuple(after.reshape((*shape[:-1], self.hidden_size)) for after in states)

    def extra_repr(self) -> str:
        return f"{self.input_size}, {self.hidden_size}" + ("" if self.bias else ", bias=False")


class RNNCell(_TanhOrReLU, _Cell):
    """One step of an `RNN` of one layer: `h = cell(x, h)`.

    Shapes: (N, input_size) and (N, hidden_size) -> (N, hidden_size), or all without N. h may be left out for zeros.

    Args:
        input_size, hidden_size: lengths of the last axis of x and of h.
        bias: whether there are bias_ih and bias_hh.
        nonlinearity: "tanh" or "relu".
        device, dtype: of the parameters.

    Attributes:
        weight_ih, weight_hh, bias_ih, bias_hh: (hidden_size, input_size), (hidden_size, hidden_size), (hidden_size,)
            and (hidden_size,), at first uniform within ±1/sqrt(hidden_size); the biases may be None.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        self.nonlinearity = nonlinearity
        self._check_nonlinearity()
        super().__init__(input_size, hidden_size, bias, device, dtype)

    def forward(self, x: Tensor, hx: Tensor | None = None) -> Tensor:
        return self._run(x, None if hx is None else (hx,))[0]

    def extra_repr(self) -> str:
        return super().extra_repr() + ("" if self.nonlinearity == "tanh" else f", nonlinearity={self.nonlinearity}")


class GRUCell(_GatedUnit, _Cell):
    """One step of a `GRU` of one layer: `h = cell(x, h)`. Shapes, arguments and attributes: as of `RNNCell`; the
    weights and biases have 3 * hidden_size rows.
    """

    def __init__(
        self, input_size: int, hidden_size: int, bias: bool = True, device: Any = None, dtype: Any = None
    ) -> None:
        super().__init__(input_size, hidden_size, bias, device, dtype)

    def forward(self, x: Tensor, hx: Tensor | None = None) -> Tensor:
        return self._run(x, None if hx is None else (hx,))[0]


class LSTMCell(_LongShortTerm, _Cell):
    """One step of an `LSTM` of one layer: `h, c = cell(x, (h, c))`. Shapes, arguments and attributes: as of `RNNCell`;
    the weights and biases have 4 * hidden_size rows.
    """

    def __init__(
        self, input_size: int, hidden_size: int, bias: bool = True, device: Any = None, dtype: Any = None
    ) -> None:
        super().__init__(input_size, hidden_size, bias, device, dtype)

    def forward(self, x: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        h, c = self._run(x, _pair(hx, "h, c"))
        return h, c


def _pair(hx: Any, names: str) -> tuple[Any, ...] | None:
    if hx is None:
        return None
    if not isinstance(hx, (tuple, list)) or len(hx) != 2:
        given = f"{len(hx)} of them" if isinstance(hx, (tuple, list)) else f"a {type(hx).__name__}"
        raise TypeError(f"expected the state as a pair ({names}), got {given}")
    return tuple(hx)


def _check_features(x: Any, size: int) -> None:
    if x.shape[-1] != size:
        message = f"expected {size} features on the last axis, got {x.shape[-1]} in an input of shape {tuple(x.shape)}"
        raise size_error(message, "input_size", x.shape[-1])


def _check_state(name: str, part: Any, wanted: tuple[int, ...], shape: tuple[int, ...], weight: Tensor) -> None:
    if check_array(part) != wanted:
        raise ShapeError(f"expected {name} of shape {wanted} for an input of shape {shape}, got {tuple(part.shape)}")
    check_dtype(part, weight)
