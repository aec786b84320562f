"""What the tests of layers share: derivatives against finite differences, and everything against torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gpunet as gn
from gpunet import nn
from tests.gradcheck import check_gradients


def check_layer(layer: nn.Module, *inputs: np.ndarray, device: str, order: int = 2) -> None:
    """Check the derivatives with respect to inputs and parameters, in float64."""
    layer.to(device, "float64")
    places = []
    for path, parameter in layer.named_parameters():
        *outer, name = path.split(".")
        owner = layer
        for part in outer:
            owner = getattr(owner, part)
        places.append((owner, name, parameter))

    def f(*tensors: gn.Tensor) -> gn.Tensor:
        for (owner, name, _p), t in zip(places, tensors[len(inputs) :]):
            owner.__dict__[name] = t  # a plain Tensor in place of the Parameter
        return layer(*tensors[: len(inputs)])

    values = [np.array(p.detach().cpu().numpy()) for _o, _n, p in places]
    try:
        check_gradients(f, [*inputs, *values], order, device=device)
    finally:
        for owner, name, parameter in places:
            owner.__dict__[name] = parameter


def check_against_torch(make: str, x: np.ndarray, *args: Any, training: bool = True, **kwargs: Any) -> None:
    """Compare nn.<make>(*args, **kwargs) to torch.nn's: the repr, and with the same weights, the state after a forward
    pass, the output, and the gradients with respect to parameters and input. Both libraries load the other's state."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    ours, theirs = getattr(nn, make)(*args, **kwargs), getattr(torch.nn, make)(*args, **kwargs)
    ours.train(training)
    theirs.train(training)
    ours.load_state_dict({name: v.numpy() for name, v in theirs.state_dict().items()})
    theirs.load_state_dict({name: torch.from_numpy(v.cpu().numpy().copy()) for name, v in ours.state_dict().items()})
    assert [name for name, _p in ours.named_parameters()] == [name for name, _p in theirs.named_parameters()]
    integers = x.dtype.kind == "i"
    a, b = gn.tensor(x, requires_grad=not integers), torch.tensor(x, requires_grad=not integers)
    y, z = ours(a), theirs(b)
    close(y, z)
    g = np.random.default_rng(5).standard_normal(y.shape).astype("float32")
    if y.requires_grad:
        y.backward(gn.tensor(g))
        z.backward(torch.tensor(g))
        if not integers:
            close(a.grad, b.grad)
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters()):
        close(p.grad, q.grad, name)
    for (name, u), v in zip(ours.state_dict().items(), theirs.state_dict().values()):
        close(u, v, name)


def close(a: Any, b: Any, what: str = "") -> None:
    """Assert equality to 1e-5 of the largest element."""
    a, b = np.asarray(a.detach()), np.asarray(b.detach())
    assert a.shape == b.shape, what
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * max(1.0, np.abs(b).max(initial=0)), err_msg=what)
