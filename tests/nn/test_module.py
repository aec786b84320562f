"""Module: parts, names, modes, moves, state, hooks, repr."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

import gpunet as gn
from gpunet import nn
from gpunet.nn import functional as F
from tests.nn.layers import close


class Affine(nn.Module):
    def __init__(self, n: int) -> None:
        self.weight = nn.Parameter(gn.ones((n,)))
        self.register_buffer("seen", gn.zeros((), dtype="int64"))
        self.register_buffer("scratch", gn.zeros(n), persistent=False)

    def forward(self, x: Any) -> Any:
        return x * self.weight


class Net(nn.Module):
    def __init__(self) -> None:
        self.bias = nn.Parameter(gn.zeros(3))
        self.first = Affine(3)
        self.blocks = nn.ModuleList([Affine(3), nn.Sequential(nn.Linear(3, 2), nn.ReLU())])

    def forward(self, x: Any) -> Any:
        return self.blocks[1](self.blocks[0](self.first(x)) + self.bias)


def test_names() -> None:
    net = Net()
    assert [name for name, _ in net.named_parameters()] == [
        "bias",
        "first.weight",
        "blocks.0.weight",
        "blocks.1.0.weight",
        "blocks.1.0.bias",
    ]
    assert [n for n, _ in net.named_modules()] == [
        "", "first", "blocks", "blocks.0", "blocks.1", "blocks.1.0", "blocks.1.1",
    ]  # fmt: skip
    assert [n for n, _ in net.named_children()] == ["first", "blocks"]
    assert [n for n, _ in net.named_buffers()] == ["first.seen", "first.scratch", "blocks.0.seen", "blocks.0.scratch"]
    assert [n for n, _ in net.named_parameters(recurse=False)] == ["bias"]
    assert [n for n, _ in net.first.named_parameters(prefix="p")] == ["p.weight"]
    assert len(list(net.parameters())) == 5 and len(list(net.modules())) == 7 and len(list(net.buffers())) == 4


def test_shared_parts_are_listed_once_but_saved_under_each_name() -> None:
    layer = nn.Linear(2, 2)
    model = nn.Sequential(layer, nn.ReLU(), layer)
    model.tied = nn.Identity()
    model.tied.weight = layer.weight
    assert [n for n, _ in model.named_parameters()] == ["0.weight", "0.bias"]
    assert [n for n, _ in model.named_modules()] == ["", "0", "1", "tied"]
    assert list(model.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias", "tied.weight"]
    assert len(list(model.children())) == 3 and len(model) == 4


def test_an_attribute_that_is_a_part_keeps_its_kind() -> None:
    net = Affine(2)
    with pytest.raises(TypeError, match=r"Affine.weight is a Parameter and cannot become a Tensor; assign an nn.Param"):
        net.weight = gn.zeros(2)
    with pytest.raises(TypeError, match=r"Affine.seen is a buffer and cannot become a int; assign a Tensor"):
        net.seen = 3
    net.weight = nn.Parameter(gn.zeros(2))
    net.seen = gn.ones((), dtype="int64")
    assert net.state_dict()["seen"].item() == 1
    net.weight = None  # there is none any more
    assert list(net.parameters()) == []
    del net.seen
    assert list(net.state_dict()) == []


def test_registering_by_name() -> None:
    net = nn.Module()
    net.register_parameter("w", nn.Parameter(gn.ones(1)))
    net.register_parameter("absent", None)
    net.add_module("part", nn.Linear(1, 1))
    net.register_buffer("later", None)
    assert [n for n, _ in net.named_parameters()] == ["w", "part.weight", "part.bias"] and net.absent is None
    net.later = gn.zeros(1)
    assert [n for n, _ in net.named_buffers()] == ["later"]
    with pytest.raises(TypeError, match=r"register_parameter\('x'\): expected a Parameter or None, got a Tensor"):
        net.register_parameter("x", gn.ones(1))
    with pytest.raises(TypeError, match=r"register_buffer\('x'\): expected a Tensor or None, got a Parameter"):
        net.register_buffer("x", nn.Parameter(gn.ones(1)))
    with pytest.raises(TypeError, match=r"Module: 'x' must be a Module, got the function relu; a layer, or a Module"):
        net.add_module("x", F.relu)
    with pytest.raises(TypeError, match=r"got the class ReLU itself; did you mean ReLU\(\)\?"):
        net.add_module("x", nn.ReLU)
    with pytest.raises(ValueError, match=r"a part's name must be a string without dots, got 'a.b'"):
        net.add_module("a.b", nn.ReLU())
    with pytest.raises(ValueError, match=r"the name 'forward' is taken by an attribute"):
        net.register_buffer("forward", gn.ones(1))


def test_parameter() -> None:
    p = nn.Parameter(gn.ones(2))
    assert p.requires_grad and p.is_leaf and isinstance(p, gn.Tensor)
    assert repr(p) == "Parameter containing:\ntensor([1., 1.], requires_grad=True)"
    assert not nn.Parameter([1, 2], requires_grad=False).requires_grad
    with pytest.raises(TypeError, match="only floating-point"):
        nn.Parameter([1, 2])
    (p * 3.0).sum().backward()
    q = copy.deepcopy(p)
    assert type(q) is nn.Parameter and q.requires_grad and q.data is not p.data and q.grad is None


def test_modes_and_gradients() -> None:
    net = Net()
    assert net.training and net.eval() is net
    assert not any(m.training for m in net.modules())
    assert all(m.training for m in net.train().modules())
    net(gn.ones((2, 3))).sum().backward()
    assert all(p.grad is not None for p in net.parameters())
    net.zero_grad()
    assert all(p.grad is None for p in net.parameters())
    net.first.requires_grad_(False)
    assert [p.requires_grad for p in net.parameters()] == [True, False, True, True, True]


def test_apply_goes_inside_out() -> None:
    seen: list[str] = []
    net = Net()
    assert net.apply(lambda m: seen.append(type(m).__name__)) is net
    assert seen == ["Affine", "Affine", "Linear", "ReLU", "Sequential", "ModuleList", "Net"]


def test_to_keeps_the_parameters(device: str) -> None:
    net = Net()
    before = list(net.parameters())
    buffers = list(net.buffers())
    net(gn.ones((2, 3))).sum().backward()
    old = before[0].grad.numpy()
    assert net.to(device) is net and net.to("float64") is net
    assert all(a is b for a, b in zip(before, net.parameters())) and len(before) == 5
    assert all(a is b for a, b in zip(buffers, net.buffers()))
    assert all(p.dtype == "float64" and p.device == device and p.requires_grad and p.is_leaf for p in before)
    assert net.first.seen.dtype == "int64" and net.first.seen.device == device and net.first.scratch.dtype == "float64"
    assert before[0].grad.dtype == "float64" and before[0].grad.device == device
    np.testing.assert_array_equal(before[0].grad.cpu().numpy(), old)
    net.zero_grad()
    net(gn.ones((2, 3), dtype="float64", device=device)).sum().backward()
    assert before[0].grad.dtype == "float64"
    assert net.cpu().bias.device == "cpu"
    net.to("float32").to(device, gn.float64).to(None)
    assert net.bias.device == device and net.bias.dtype == "float64"


def test_a_graph_recorded_before_a_move_cannot_be_used_after_it() -> None:
    layer = nn.Linear(3, 2)
    loss = layer(gn.ones((1, 3)).requires_grad_()).sum()
    layer.to("float64")
    with pytest.raises(gn.errors.GradientError, match="changed in place"):
        loss.backward()


def test_to_refuses_what_it_cannot_do() -> None:
    with pytest.raises(TypeError, match=r"Net.to: expected a device or a floating-point dtype, got int64"):
        Net().to(gn.int64)
    with pytest.raises(TypeError, match=r"to: expected a device or a dtype, got 3.5"):
        Net().to(3.5)
    with pytest.raises(gn.errors.DeviceError, match="unknown device type 'tpu'"):
        Net().to("tpu")


# --- state


def test_state_dict_shares_memory_and_leaves_out_what_is_not_persistent() -> None:
    net = Affine(2)
    state = net.state_dict()
    assert list(state) == ["weight", "seen"] and not state["weight"].requires_grad
    assert type(state["weight"]) is gn.Tensor
    with gn.no_grad():
        net.weight += 1.0
    assert state["weight"].tolist() == [2.0, 2.0]


@pytest.mark.parametrize("as_numpy", [False, True])
def test_loading_copies_into_the_same_parameters(as_numpy: bool, device: str) -> None:
    source, target = Net(), Net().to(device)
    state = {
        n: v.numpy().astype("float64") if v.dtype.kind == "f" else v.numpy() for n, v in source.state_dict().items()
    }
    before = list(target.parameters())
    keys = target.load_state_dict(state if as_numpy else source.state_dict())
    assert keys.missing_keys == [] == keys.unexpected_keys
    assert all(a is b for a, b in zip(before, target.parameters()))
    for (name, a), b in zip(source.state_dict().items(), target.state_dict().values()):
        assert b.dtype == a.dtype and b.device == device, name
        np.testing.assert_array_equal(a.numpy(), b.cpu().numpy())
    assert all(p.requires_grad for p in target.parameters())


def test_loading_what_does_not_fit_lists_everything_and_changes_nothing() -> None:
    net = Net()
    state: dict[str, Any] = {name: v.numpy() + 1 for name, v in net.state_dict().items()}
    del state["blocks.1.0.bias"], state["bias"]
    state["extra.weight"] = np.zeros((4, 1))
    state["blocks.1.0.weight"] = np.zeros((3, 2))
    state["blocks.0.seen"] = np.zeros((), dtype="float32")
    before = {name: v.numpy().copy() for name, v in net.state_dict().items()}
    with pytest.raises(ValueError) as caught:
        net.load_state_dict(state)
    assert str(caught.value).split("\n") == [
        "Net: the state does not fit the model:",
        "  missing: bias (3,)",
        "  missing: blocks.1.0.bias (2,)",
        "  unexpected: extra.weight (4, 1)",
        "  wrong dtype: blocks.0.seen is int64, the state has float32",
        "  wrong shape: blocks.1.0.weight is (2, 3), the state has (3, 2)",
    ]
    with pytest.raises(ValueError, match="wrong shape: blocks.1.0.weight") as caught:
        net.load_state_dict(state, strict=False)
    assert "missing" not in str(caught.value) and "unexpected" not in str(caught.value)
    for name, value in net.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), before[name])
    del state["blocks.1.0.weight"], state["blocks.0.seen"]
    keys = net.load_state_dict(state, strict=False)
    assert keys.missing_keys == ["bias", "blocks.0.seen", "blocks.1.0.weight", "blocks.1.0.bias"]
    assert keys.unexpected_keys == ["extra.weight"]
    assert net.first.weight.detach().tolist() == [2.0, 2.0, 2.0] and net.bias.detach().tolist() == [0.0, 0.0, 0.0]


def test_state_goes_to_torch_and_back() -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    sizes = [3, 16, 32, 64]

    def build(n: Any) -> Any:
        convs = []
        for a, b in pairwise(sizes):
            convs += [n.Conv2d(a, b, 3, padding=1), n.BatchNorm2d(b), n.ReLU(), n.MaxPool2d(2)]
        return n.Sequential(n.Sequential(*convs), n.Flatten(), n.Linear(64, 10), n.LayerNorm(10))

    ours, theirs = build(nn), build(torch.nn)
    x = np.random.default_rng(0).standard_normal((5, 3, 8, 8)).astype("float32")
    theirs(torch.tensor(x))  # so that the running statistics are something
    ours.load_state_dict({name: v.numpy() for name, v in theirs.state_dict().items()})
    close(ours.eval()(gn.tensor(x)), theirs.eval()(torch.tensor(x)))
    fresh = build(torch.nn)
    fresh.load_state_dict({name: torch.tensor(v.numpy()) for name, v in ours.state_dict().items()})
    close(ours(gn.tensor(x)), fresh.eval()(torch.tensor(x)))


def test_deepcopy() -> None:
    net = Net()
    net.blocks[0].weight = net.first.weight  # shared
    twin = copy.deepcopy(net)
    assert twin.blocks[0].weight is twin.first.weight and twin.first.weight is not net.first.weight
    x = gn.ones((2, 3))
    np.testing.assert_array_equal(net(x).detach().numpy(), twin(x).detach().numpy())
    twin(x).sum().backward()
    assert twin.bias.grad is not None and net.bias.grad is None
    with gn.no_grad():
        twin.bias += 5.0
    assert net.bias.detach().tolist() == [0.0, 0.0, 0.0]


# --- calls and hooks


def test_hooks() -> None:
    net = Affine(2)
    calls: list[Any] = []
    pre = net.register_forward_pre_hook(lambda m, args: calls.append(("pre", m, args)))
    post = net.register_forward_hook(lambda m, args, y: calls.append(("post", m, y.tolist())))
    x = gn.ones((1, 2))
    net(x)
    assert [c[0] for c in calls] == ["pre", "post"] and calls[0][1] is net and calls[0][2] == (x,)
    assert calls[1][2] == [[1.0, 1.0]]
    pre.remove()
    post.remove()
    post.remove()
    net(x)
    assert len(calls) == 2
    with net.register_forward_pre_hook(lambda m, args: args[0] * 2.0):
        with net.register_forward_hook(lambda m, args, y: y + 1.0):
            assert net(x).tolist() == [[3.0, 3.0]]
        assert net(x).tolist() == [[2.0, 2.0]]
    assert net(x).tolist() == [[1.0, 1.0]]


def test_a_hook_may_be_registered_twice_and_remove_itself() -> None:
    net = nn.Identity()
    calls: list[int] = []
    a = net.register_forward_hook(lambda m, args, y: calls.append(1))
    b = net.register_forward_hook(lambda m, args, y: (calls.append(2), a.remove())[1])
    net(0)
    net(0)
    assert calls == [1, 2, 2]
    b.remove()
    assert nn.Identity()._hooks is None  # instances do not share them


def test_keyword_arguments_reach_forward() -> None:
    class Scale(nn.Module):
        def forward(self, x: Any, *, by: float = 1.0) -> Any:
            return x * by

    net = Scale()
    assert net(2.0, by=3.0) == 6.0
    net.register_forward_hook(lambda m, args, y: y + 1.0)
    assert net(2.0, by=3.0) == 7.0


def test_without_forward() -> None:
    with pytest.raises(NotImplementedError, match=r"ModuleList does not define forward\(\)"):
        nn.ModuleList([nn.ReLU()])(1)


# --- what it looks like


def test_repr() -> None:
    assert repr(Net()) == "\n".join(
        [
            "Net(",
            "  (first): Affine()",
            "  (blocks): ModuleList(",
            "    (0): Affine()",
            "    (1): Sequential(",
            "      (0): Linear(in_features=3, out_features=2, bias=True)",
            "      (1): ReLU()",
            "    )",
            "  )",
            ")",
        ]
    )

    class Scaled(Net):
        def extra_repr(self) -> str:
            return "scale=2"

    assert repr(Scaled()).startswith("Scaled(\n  scale=2\n  (first): Affine()\n")


def test_repr_is_torchs() -> None:
    torch = pytest.importorskip("torch")

    def build(n: Any) -> Any:
        return n.Sequential(
            n.Conv2d(3, 8, (3, 1), stride=2, padding=1, dilation=2, bias=False),
            n.Conv1d(4, 8, 3, padding="same", groups=2, padding_mode="circular"),
            n.ConvTranspose2d(3, 6, 3, 2, 1, output_padding=1),
            n.Sequential(n.MaxPool2d(2), n.Dropout(0.25), n.Linear(3, 4, bias=False)),
            n.Embedding(5, 3, padding_idx=1),
            n.AvgPool2d(3, 2, 1),
            n.AdaptiveAvgPool2d((1, 2)),
            n.Identity(),
        )

    assert repr(build(nn)) == repr(build(torch.nn))
