"""Sequential, ModuleList, ModuleDict, ParameterList."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
import pytest

import gpunet as gn
from gpunet import nn
from gpunet.errors import DTypeError, ShapeError


class Add(nn.Module):
    def __init__(self, n: float) -> None:
        self.n = n
        self.weight = nn.Parameter([float(n)])

    def forward(self, x: Any) -> Any:
        return 10 * x + self.n


def numbers(modules: Any) -> list[float]:
    return [m.n for m in modules]


def names(module: nn.Module) -> list[str]:
    return [name for name, _p in module.named_parameters()]


def test_sequential_calls_in_order() -> None:
    model = nn.Sequential(Add(1), Add(2), Add(3))
    assert model(0) == 123 and len(model) == 3 and nn.Sequential()(7) == 7
    assert model[0].n == 1 and model[-1].n == 3 and numbers(model) == [1, 2, 3]
    same = Add(1)
    assert nn.Sequential(same, same)(0) == 11


@pytest.mark.parametrize("kind", [dict, OrderedDict])
def test_sequential_with_names(kind: Any) -> None:
    model = nn.Sequential(kind([("a", Add(1)), ("b", Add(2))]))
    assert model(0) == 12 and model.b.n == 2 and model[1] is model.b and names(model) == ["a.weight", "b.weight"]
    del model[0]
    assert names(model) == ["b.weight"]


@pytest.mark.parametrize("make", [lambda *m: nn.Sequential(*m), lambda *m: nn.ModuleList(m)])
def test_lists_of_modules(make: Any) -> None:
    model = make(Add(1), Add(2), Add(3), Add(4))
    part = model[1:3]
    assert type(part) is type(model) and numbers(part) == [2, 3] and part[0] is model[1]
    assert names(part) == ["1.weight", "2.weight"]
    assert numbers(part.append(Add(6))) == [2, 3, 6] and numbers(part.insert(0, Add(5))) == [5, 2, 3, 6]
    assert names(part) == ["0.weight", "1.weight", "2.weight", "3.weight"] and numbers(model) == [1, 2, 3, 4]
    assert model.append(Add(5)) is model and numbers(model) == [1, 2, 3, 4, 5]
    model.insert(1, Add(9))
    assert numbers(model) == [1, 9, 2, 3, 4, 5] and names(model)[-1] == "5.weight"
    model.insert(-1, Add(8)).extend([Add(6), Add(7)])
    assert numbers(model) == [1, 9, 2, 3, 4, 8, 5, 6, 7]
    del model[1], model[4], model[-2:]
    assert numbers(model) == [1, 2, 3, 4, 5] and names(model) == [f"{i}.weight" for i in range(5)]
    model[1] = Add(7)
    model[-1] = Add(0)
    assert numbers(model) == [1, 7, 3, 4, 0]
    for i in (5, -6):
        with pytest.raises(IndexError, match=f"{type(model).__name__}: no module {i}; it has 5"):
            model[i]
        with pytest.raises(IndexError):
            del model[i]
    with pytest.raises(TypeError, match="must be a Module, got the function"):
        model.append(lambda x: x)
    with pytest.raises(TypeError, match="must be a Module, got a int"):
        model.insert(0, 3)
    assert len(model) == 5


def test_sequential_refuses_what_is_no_module() -> None:
    with pytest.raises(
        TypeError, match=r"Sequential: '1' must be a Module, got the class ReLU itself; did you mean ReLU"
    ):
        nn.Sequential(Add(1), nn.ReLU)
    with pytest.raises(TypeError, match=r"Sequential: '0' must be a Module, got a list"):
        nn.Sequential([Add(1), Add(2)])


def small_network() -> nn.Sequential:
    parts = [nn.Flatten(), nn.Dropout(0.5), nn.Linear(12, 7), nn.ReLU(), nn.Dropout(0.5), nn.Linear(7, 5, bias=False)]
    return nn.Sequential(*parts, nn.ReLU(), nn.Flatten(), nn.Tanh(), nn.Linear(5, 2), nn.Dropout(0.5)).eval()


@pytest.mark.parametrize("shape", [(1, 3, 2, 2), (4, 12), (0, 12)], ids=str)
def test_evaluation_gives_the_same_where_nothing_is_recorded(shape: tuple[int, ...]) -> None:
    model, x = small_network(), gn.random.normal(shape)
    recorded = model(x)
    with gn.no_grad():
        y = model(x)
    assert not y.requires_grad and recorded.requires_grad
    np.testing.assert_array_equal(y.numpy(), recorded.detach().numpy())


def test_what_nothing_is_recorded_of_still_drops_and_calls_hooks() -> None:
    model, x = small_network(), gn.ones((3, 12))
    seen: list[tuple[int, ...]] = []
    model[3].register_forward_hook(lambda module, args, y: seen.append(y.shape))
    with gn.no_grad():
        model(x)
        assert seen == [(3, 7)]
        assert len({float(model.train()(x).sum()) for _ in range(5)}) > 1


@pytest.mark.parametrize("wrong", [gn.ones((3, 11)), gn.ones((3, 12), dtype="float64")], ids=["width", "dtype"])
def test_errors_name_the_layer_where_nothing_is_recorded(wrong: gn.Tensor) -> None:
    with gn.no_grad(), pytest.raises((ShapeError, DTypeError), match=r"model\.2 \(Linear"):
        small_network()(wrong)


def test_a_result_has_memory_of_its_own_unless_it_is_a_view() -> None:
    x = gn.ones((2, 3, 2))
    with gn.no_grad():
        y = nn.Sequential(nn.Flatten())(x)
        y += 1
        z = nn.Sequential(nn.Flatten(), nn.ReLU())(x)
        z += 1
    assert x.tolist() == [[[2.0, 2.0]] * 3] * 2


def test_module_dict() -> None:
    d = nn.ModuleDict({"a": Add(1)})
    d["b"] = Add(2)
    d.update({"a": Add(3), "c": Add(4)})
    assert list(d) == list(d.keys()) == ["a", "b", "c"] and numbers(d.values()) == [3, 2, 4] and len(d) == 3
    assert [name for name, _m in d.items()] == ["a", "b", "c"] and "b" in d and "x" not in d
    assert names(d) == ["a.weight", "b.weight", "c.weight"]
    assert d.pop("b").n == 2 and list(d) == ["a", "c"]
    del d["a"]
    with pytest.raises(KeyError):
        d["a"]
    with pytest.raises(ValueError, match="the name 'keys' is taken by an attribute"):
        d["keys"] = Add(1)


def test_parameter_list() -> None:
    ps = nn.ParameterList([gn.ones(2), nn.Parameter([1.0])])
    ps.append([3.0, 4.0, 5.0])
    assert len(ps) == 3 and [p.size for p in ps] == [2, 1, 3] and ps[-1].tolist() == [3.0, 4.0, 5.0]
    assert names(ps) == ["0", "1", "2"] and all(isinstance(p, nn.Parameter) for p in ps)
    assert repr(ps) == "ParameterList(0: (2,) float32, 1: (1,) float32, 2: (3,) float32)"
