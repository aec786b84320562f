"""Recurrent layers and cells."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import gpunet as gn
from gpunet import nn
from gpunet.errors import DTypeError, ShapeError
from tests.nn.layers import check_layer, close

rng = np.random.default_rng(6)
LAYERS = ["RNN", "GRU", "LSTM"]
CELLS = ["RNNCell", "GRUCell", "LSTMCell"]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"bias": False, "batch_first": True},
    {"num_layers": 2, "bidirectional": True},
    {"num_layers": 3, "batch_first": True, "bidirectional": True},
]


def normal(*shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype("float32")


def flat(results: Any) -> list[Any]:
    return [leaf for part in results for leaf in flat(part)] if isinstance(results, tuple) else [results]


class WithState(nn.Module):
    """A recurrent module whose state's parts are arguments, and whose results are not nested."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def forward(self, x: Any, *state: Any) -> Any:
        return tuple(flat(self.module(x, *as_state(state))))


def as_state(parts: Any) -> tuple[Any, ...]:
    """The argument hx, if there is one."""
    return () if not parts else (tuple(parts),) if len(parts) == 2 else tuple(parts)


def states_of(name: str, *shape: int) -> list[np.ndarray]:
    return [normal(*shape) for _ in range(2 if name.startswith("LSTM") else 1)]


# --- against steps


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_its_cell_step_by_step(name: str, device: str) -> None:
    layer = getattr(nn, name)(3, 5, device=device, dtype="float64")
    cell = getattr(nn, f"{name}Cell")(3, 5, device=device, dtype="float64")
    cell.load_state_dict({key.removesuffix("_l0"): value for key, value in layer.state_dict().items()})
    x = gn.tensor(rng.standard_normal((4, 2, 3)), device=device)
    output, final = layer(x)
    state = None
    for t in range(4):
        state = cell(x[t], state)
        np.testing.assert_allclose(output[t].detach().cpu().numpy(), flat(state)[0].detach().cpu().numpy(), rtol=1e-12)
    for whole, part in zip(flat(final), flat(state)):
        assert whole.shape == (1, 2, 5) and output.device == device
        np.testing.assert_allclose(whole[0].detach().cpu().numpy(), part.detach().cpu().numpy(), rtol=1e-12)


@pytest.mark.parametrize("name", LAYERS)
def test_layers_take_one_anothers_output_and_directions_lie_side_by_side(name: str, device: str) -> None:
    both = getattr(nn, name)(3, 5, num_layers=2, bidirectional=True, device=device, dtype="float64")
    x = y = gn.tensor(rng.standard_normal((4, 2, 3)), device=device)
    ends = []
    for layer in range(2):
        outputs = []
        for suffix in ("", "_reverse"):
            one = getattr(nn, name)(y.shape[-1], 5, device=device, dtype="float64")
            ending = f"_l{layer}{suffix}"
            one.load_state_dict(
                {f"{k.removesuffix(ending)}_l0": v for k, v in both.state_dict().items() if k.endswith(ending)}
            )
            output, final = one(gn.flip(y, axis=0) if suffix else y)
            outputs.append(gn.flip(output, axis=0) if suffix else output)
            ends.append(flat(final))
        y = gn.concat(outputs, axis=-1)
    output, final = both(x)
    np.testing.assert_allclose(output.detach().cpu().numpy(), y.detach().cpu().numpy(), rtol=1e-12)
    for whole, parts in zip(flat(final), zip(*ends)):
        np.testing.assert_allclose(
            whole.detach().cpu().numpy(), gn.concat(parts, axis=0).detach().cpu().numpy(), rtol=1e-12
        )


def test_shapes(device: str) -> None:
    layer = nn.LSTM(3, 5, num_layers=2, batch_first=True, bidirectional=True, proj_size=4, device=device)
    output, (h, c) = layer(gn.zeros((7, 6, 3), device=device))
    assert (output.shape, h.shape, c.shape) == ((7, 6, 8), (4, 7, 4), (4, 7, 5))
    output, (h, c) = layer(gn.zeros((6, 3), device=device), (h[:, 0], c[:, 0]))
    assert (output.shape, h.shape, c.shape) == ((6, 8), (4, 4), (4, 5))
    output, h = nn.GRU(3, 5, device=device)(gn.zeros((2, 0, 3), device=device))
    assert (output.shape, h.shape) == ((2, 0, 5), (1, 0, 5))
    h, c = nn.LSTMCell(3, 5, device=device)(gn.zeros(3, device=device))
    assert h.shape == c.shape == (5,)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", [*LAYERS, *CELLS])
def test_gradients(name: str, bias: bool, device: str) -> None:
    shape, state = ((3, 2, 2), (1, 2, 3)) if name in LAYERS else ((2, 2), (2, 3))
    module = WithState(getattr(nn, name)(2, 3, bias=bias))
    check_layer(module, normal(*shape), *states_of(name, *state), device=device)


def test_gradients_of_several_layers_and_projections(device: str) -> None:
    check_layer(WithState(nn.LSTM(2, 3, 2, bidirectional=True, proj_size=2)), normal(3, 2, 2), device=device, order=1)
    check_layer(WithState(nn.LSTM(2, 3, proj_size=2)), normal(2, 2, 2), device=device)
    check_layer(WithState(nn.GRU(2, 2, 2, batch_first=True, bidirectional=True)), normal(3, 2, 2), device=device)


def test_a_layer_that_carries_its_state_on_goes_through_a_longer_sequence() -> None:
    layer, x = nn.LSTM(3, 5, num_layers=2), gn.tensor(normal(7, 2, 3))
    whole, _ = layer(x)
    first, state = layer(x[:3])
    second, _ = layer(x[3:], state)
    close(gn.concat([first, second]), whole)


# --- initial values, options


@pytest.mark.parametrize("name", [*LAYERS, *CELLS])
def test_initial_values(name: str) -> None:
    module = getattr(nn, name)(30, 64)
    for parameter in module.parameters():
        values = parameter.detach().numpy()
        assert 0.9 / 8 < np.abs(values).max() <= 1 / 8
        assert abs(values.std() - 1 / 8 / math.sqrt(3)) < 0.02
    before = flat(tuple(p.copy() for p in module.parameters()))
    module.reset_parameters()
    assert not any(np.array_equal(a.detach(), b.detach()) for a, b in zip(before, module.parameters()))


def test_dropout_is_between_layers_in_training() -> None:
    layer, x = nn.GRU(3, 50, num_layers=2, dropout=0.5), gn.ones((4, 2, 3))
    one, again = layer(x)[0], layer(x)[0]
    assert not np.array_equal(one.detach(), again.detach())
    layer.eval()
    np.testing.assert_array_equal(layer(x)[0].detach(), layer(x)[0].detach())
    cut = nn.GRU(3, 50, num_layers=2, dropout=1.0)  # the second layer gets zeros
    np.testing.assert_array_equal(cut(x)[0].detach(), cut(2 * x)[0].detach())
    with pytest.warns(UserWarning, match=r"LSTM: dropout=0.5 is between layers, so it does nothing with num_layers=1"):
        nn.LSTM(3, 4, dropout=0.5)


@pytest.mark.parametrize("name", [*LAYERS, *CELLS])
def test_half_precision(name: str, device: str) -> None:
    shape = (4, 2, 3) if name in LAYERS else (2, 3)
    module = getattr(nn, name)(3, 5, device=device)
    x = gn.tensor(normal(*shape), device=device)
    wanted = flat(module(x))
    module.to("float16")
    got = flat(module(x.astype("float16")))
    for a, b in zip(got, wanted):
        np.testing.assert_allclose(a.detach().cpu().numpy(), b.detach().cpu().numpy(), atol=5e-3)
    gn.sum(got[0]).backward()
    assert all(p.grad is not None and p.grad.dtype == "float16" for p in module.parameters())


def test_a_network_learns() -> None:
    model = nn.Sequential(nn.LSTM(1, 16))
    head, x = nn.Linear(16, 1), gn.tensor(rng.choice([0.0, 1.0], (8, 64, 1)).astype("float32"))
    target = gn.sum(x, axis=0) / 8
    optimizer = gn.optim.Adam([*model.parameters(), *head.parameters()], lr=0.02)
    losses = []
    for _ in range(60):
        loss = nn.functional.mse_loss(head(model(x)[0][-1]), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]


# --- against torch


@pytest.mark.parametrize("given", [False, True], ids=["zeros", "state"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_against_torch(name: str, options: dict[str, Any], given: bool) -> None:
    directions = options.get("num_layers", 1) * (2 if options.get("bidirectional") else 1)
    batch = 5 if options.get("batch_first") else 4
    against_torch(name, normal(5, 4, 3), states_of(name, directions, batch, 6) if given else [], **options)


@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}], ids=str)
def test_projections_against_torch(options: dict[str, Any]) -> None:
    n = 4 if options else 1
    against_torch("LSTM", normal(5, 4, 3), [normal(n, 4, 2), normal(n, 4, 6)], proj_size=2, **options)


def test_one_sequence_and_relu_against_torch() -> None:
    against_torch("RNN", normal(5, 3), [normal(1, 6)], nonlinearity="relu")
    against_torch("LSTM", normal(5, 3), states_of("LSTM", 2, 6), num_layers=2)
    against_torch("GRU", normal(5, 3), [])
    against_torch("RNNCell", normal(4, 3), [normal(4, 6)], nonlinearity="relu")


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch", [(), (4,)])
@pytest.mark.parametrize("name", CELLS)
def test_cells_against_torch(name: str, batch: tuple[int, ...], bias: bool) -> None:
    against_torch(name, normal(*batch, 3), [], bias=bias)
    against_torch(name, normal(*batch, 3), states_of(name, *batch, 6), bias=bias)


def against_torch(name: str, x: np.ndarray, state: list[np.ndarray], **options: Any) -> None:
    """Compare module(3, 6, **options) to torch's: the repr, results, and gradients."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    ours, theirs = getattr(nn, name)(3, 6, **options), getattr(torch.nn, name)(3, 6, **options)
    assert repr(ours) == repr(theirs)
    ours.load_state_dict({key: value.numpy() for key, value in theirs.state_dict().items()})
    assert [key for key, _p in ours.named_parameters()] == [key for key, _p in theirs.named_parameters()]
    a = [gn.tensor(v, requires_grad=True) for v in (x, *state)]
    b = [torch.tensor(v, requires_grad=True) for v in (x, *state)]
    ys, zs = flat(ours(a[0], *as_state(a[1:]))), flat(theirs(b[0], *as_state(b[1:])))
    assert len(ys) == len(zs)
    gs = [normal(*y.shape) for y in ys]
    gn.sum(gn.stack([gn.sum(y * gn.tensor(g)) for y, g in zip(ys, gs)])).backward()
    sum((z * torch.tensor(g)).sum() for z, g in zip(zs, gs)).backward()
    for y, z in zip(ys, zs):
        close(y, z)
    for u, v in zip([*a, *ours.parameters()], [*b, *theirs.parameters()]):
        close(u.grad, v.grad)


# --- mistakes


@pytest.mark.parametrize(
    ("make", "kind", "text"),
    [
        (lambda: nn.LSTM(0, 4), ValueError, "LSTM: input_size must be at least 1, got 0"),
        (lambda: nn.GRU(3, 4.0), TypeError, "GRU: hidden_size must be an int, got 4.0"),
        (lambda: nn.RNN(3, 4, 0), ValueError, "RNN: num_layers must be at least 1, got 0"),
        (lambda: nn.RNN(3, 4, dropout=2, num_layers=2), ValueError, "RNN: dropout must be a probability, from 0 to 1"),
        (lambda: nn.RNN(3, 4, nonlinearity="gelu"), ValueError, 'RNN: nonlinearity must be "tanh" or "relu", got \'ge'),
        (lambda: nn.RNNCell(3, 4, nonlinearity="x"), ValueError, 'RNNCell: nonlinearity must be "tanh" or "relu"'),
        (lambda: nn.LSTM(3, 4, proj_size=4), ValueError, "LSTM: proj_size must be less than hidden_size=4, got 4"),
        (lambda: nn.LSTMCell(3, -1), ValueError, "LSTMCell: hidden_size must be at least 1, got -1"),
    ],
)
def test_bad_arguments(make: Any, kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text):
        make()


ZEROS = gn.zeros((5, 2, 3))


@pytest.mark.parametrize(
    ("module", "args", "kind", "text"),
    [
        (
            nn.GRU(3, 4),
            (gn.zeros(3),),
            ShapeError,
            r"^GRU\(3, 4\): expected an input of shape \(L, N, 3\), or \(L, 3\)",
        ),
        (nn.GRU(3, 4, batch_first=True), (gn.zeros(3),), ShapeError, r"of shape \(N, L, 3\), or \(L, 3\) for a single"),
        (nn.GRU(3, 4), (gn.zeros((5, 2, 6)),), ShapeError, r"expected 3 features on the last axis, got 6 in an input"),
        (nn.GRU(3, 4), (gn.zeros((0, 2, 3)),), ShapeError, r"at least one step, got an input of shape \(0, 2, 3\)"),
        (nn.GRU(3, 4), (gn.zeros((5, 2, 3), dtype="int64"),), DTypeError, "expected an input of dtype float32"),
        (nn.GRU(3, 4), ([1.0],), TypeError, "expected a Tensor, got a list"),
        (
            nn.GRU(3, 4),
            (ZEROS, gn.zeros((2, 4))),
            ShapeError,
            r"expected h_0 of shape \(1, 2, 4\) for an input of shape",
        ),
        (
            nn.LSTM(3, 4),
            (ZEROS, gn.zeros((1, 2, 4))),
            TypeError,
            r"expected the state as a pair \(h_0, c_0\), got a Ten",
        ),
        (nn.LSTM(3, 4), (ZEROS, (gn.zeros((1, 2, 4)),)), TypeError, r"as a pair \(h_0, c_0\), got 1 of them"),
        (
            nn.LSTM(3, 4, 2, proj_size=2),
            (ZEROS, (gn.zeros((2, 2, 2)), gn.zeros((2, 2, 2)))),
            ShapeError,
            r"expected c_0 of shape \(2, 2, 4\) for an input of shape \(5, 2, 3\), got \(2, 2, 2\)",
        ),
        (nn.LSTMCell(3, 4), (ZEROS,), ShapeError, r"expected an input of shape \(N, 3\) or \(3,\), got \(5, 2, 3\)"),
        (
            nn.LSTMCell(3, 4),
            (gn.zeros((2, 3)), (gn.zeros((2, 4)), gn.zeros(4))),
            ShapeError,
            r"expected c of shape \(2, 4\) for an input of shape \(2, 3\), got \(4,\)",
        ),
        (nn.RNNCell(3, 4), (gn.zeros((2, 4)),), ShapeError, "expected 3 features on the last axis, got 4"),
    ],
)
def test_bad_inputs(module: Any, args: Any, kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text):
        module(*args)
