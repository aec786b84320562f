"""einsum beside NumPy's, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest

import gpunet as gn
from gpunet.errors import ShapeError

rng = np.random.default_rng(0)

CASES = {
    "ij,jk->ik": ((2, 3), (3, 4)),
    "ij,jk": ((2, 3), (3, 4)),
    "b, a": ((2,), (3,)),
    "ii": ((3, 3),),
    "ii->i": ((3, 3),),
    "iiji->ji": ((2, 2, 3, 2),),
    "i,i,i->": ((3,), (3,), (3,)),
    "...ij,...jk->...ik": ((5, 1, 2, 3), (4, 3, 2)),
    "...ij,...jk": ((5, 1, 2, 3), (4, 3, 2)),
    "i...j->...": ((2, 4, 5, 3),),
    "...,...": ((2, 3), (3,)),
    "i...,i->i...": ((3, 2), (3,)),
    "...ii->...i": ((4, 3, 3),),
    "->": ((),),
    "ij,kj->": ((2, 3), (4, 3)),
}


@pytest.mark.parametrize("subscripts", CASES)
def test_values(subscripts: str, device: str) -> None:
    arrays = [rng.standard_normal(shape) for shape in CASES[subscripts]]
    found = gn.einsum(subscripts, *(gn.asarray(a, device=device) for a in arrays))
    np.testing.assert_allclose(found.cpu().numpy(), np.einsum(subscripts, *arrays), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("subscripts", CASES)
def test_gradients(subscripts: str, device: str) -> None:
    """einsum is linear in each operand: x . dL/dx is L."""
    arrays = [gn.tensor(rng.standard_normal(shape), device=device, requires_grad=True) for shape in CASES[subscripts]]
    y = gn.einsum(subscripts, *arrays)
    g = gn.asarray(rng.standard_normal(y.shape), device=device)
    total = gn.sum(y * g)
    total.backward()
    for x in arrays:
        assert x.grad is not None and x.grad.shape == x.shape
        assert float(gn.sum(x.detach() * x.grad)) == pytest.approx(float(total), rel=1e-10, abs=1e-12)


def test_what_is_refused() -> None:
    x = gn.ones((2, 3))
    for subscripts, arrays, kind, text in [
        ("ij,jk", [x], ValueError, "is for 2 operands, and there are 1"),
        ("i", [x], ValueError, "'i' in 'i' does not name the axes of an array of 2 axes"),
        ("ijk", [x], ValueError, "does not name the axes"),
        ("i1", [x], ValueError, "does not name the axes"),
        ("...i->i", [x], ValueError, "leaves out the axes of the ellipsis"),
        ("ij->ik", [x], ValueError, "stands twice or in no operand"),
        ("ij->ii", [x], ValueError, "stands twice or in no operand"),
        ("ii", [x], ShapeError, "'i' is for axes of lengths 2 and 3"),
        ("ij,ij", [x, gn.ones((2, 2))], ValueError, "einsum"),
    ]:
        with pytest.raises(kind, match=text):
            gn.einsum(subscripts, *arrays)
