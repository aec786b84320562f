"""What all optimizers share: groups, steps on the tape, state, and errors."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gpunet as gn
from gpunet import nn, optim
from gpunet.errors import DeviceError, DTypeError, GradientError, ShapeError

rng = np.random.default_rng(3)

MAKERS: dict[str, Callable[[Any], optim.Optimizer]] = {
    "sgd": lambda p: optim.SGD(p, lr=0.1),
    "momentum": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.5),
    "adam": lambda p: optim.Adam(p, lr=0.1),
    "amsgrad": lambda p: optim.AdamW(p, lr=0.1, amsgrad=True),
    "rmsprop": lambda p: optim.RMSprop(p, lr=0.1, momentum=0.5, centered=True),
    "adagrad": lambda p: optim.Adagrad(p, lr=0.5, lr_decay=1e-3, initial_accumulator_value=0.2),
}
every_optimizer = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())


def parameter(*shape: int, dtype: str = "float32", device: str = "cpu") -> gn.Tensor:
    return gn.tensor(rng.standard_normal(shape).astype(dtype), device=device, requires_grad=True)


def set_gradients(params: list[gn.Tensor], step: int) -> None:
    source = np.random.default_rng(step)
    for p in params:
        p.grad = gn.tensor(source.standard_normal(p.shape).astype(p.dtype), device=p.device)


def numpy(x: gn.Tensor) -> np.ndarray:
    return x.detach().cpu().numpy()


# --- steps


@every_optimizer
def test_minimizes_a_quadratic(make: Callable[[Any], optim.Optimizer], device: str) -> None:
    target = gn.tensor([1.0, -2.0, 0.5], device=device)
    x = gn.zeros(3, device=device).requires_grad_()
    optimizer = make([x])
    for _ in range(400):
        optimizer.zero_grad()
        gn.sum((x - target) ** 2).backward()
        optimizer.step()
    np.testing.assert_allclose(numpy(x), numpy(target), atol=0.06)


@every_optimizer
def test_updates_the_memory_that_the_parameter_has(make: Callable[[Any], optim.Optimizer]) -> None:
    p = parameter(3, 2)
    memory, before = p.data, p.data.copy()
    optimizer = make([p])
    set_gradients([p], 0)
    gradient = p.grad.numpy().copy()
    optimizer.step()
    assert p.data is memory and not np.array_equal(memory, before)
    np.testing.assert_array_equal(p.grad.numpy(), gradient)


@every_optimizer
def test_backward_through_a_graph_from_before_the_step_fails(make: Callable[[Any], optim.Optimizer]) -> None:
    w, x = parameter(3), parameter(3)
    optimizer = make([w])
    set_gradients([w], 0)
    loss = gn.sum(w * x)
    optimizer.step()
    with pytest.raises(GradientError, match=r"'multiply'.*was changed in place after it was used"):
        loss.backward()
    gn.sum(w * x).backward()  # recorded afterwards


def test_backward_through_a_view_from_before_the_step_fails() -> None:
    w, x = parameter(4), parameter(2)
    loss = gn.sum(w[:2] * x)
    set_gradients([w], 0)
    optim.SGD([w]).step()
    with pytest.raises(GradientError, match="was changed in place"):
        loss.backward()


@every_optimizer
def test_parameters_without_gradient_are_left_alone(make: Callable[[Any], optim.Optimizer]) -> None:
    """Parameters that miss some steps end up where they would with an optimizer of their own."""
    gets_one = [lambda step: True, lambda step: step % 2 == 1, lambda step: True, lambda step: step % 3 == 0]
    values = [rng.standard_normal(n).astype("float32") for n in (2, 3, 4, 5)]
    together = [gn.tensor(v, requires_grad=True) for v in values]
    alone = [gn.tensor(v, requires_grad=True) for v in values]
    optimizer, single = make(together), [make([p]) for p in alone]
    for step in range(12):
        set_gradients(together, step)
        set_gradients(alone, step)
        for p, q, has in zip(together, alone, gets_one):
            if not has(step):
                p.grad = q.grad = None
        before = [numpy(p).copy() for p in together]
        optimizer.step()
        for own in single:
            own.step()
        for p, q, b, has in zip(together, alone, before, gets_one):
            assert np.array_equal(numpy(p), b) != has(step)
            np.testing.assert_array_equal(numpy(p), numpy(q))


def test_frozen_parameter_is_left_alone() -> None:
    p, q = parameter(2), parameter(2)
    optimizer = optim.SGD([p, q], lr=1.0)
    set_gradients([p, q], 0)
    p.requires_grad = False
    before = p.data.copy()
    optimizer.step()
    np.testing.assert_array_equal(p.data, before)


@every_optimizer
def test_memory_order_does_not_matter(make: Callable[[Any], optim.Optimizer], device: str) -> None:
    """Parameters stored transposed, and ones that are every other element of something, train as any other."""
    values = rng.standard_normal((4, 3, 2)).astype("float32")
    plain = gn.tensor(values, device=device, requires_grad=True)
    backend = plain._backend()
    transposed = gn.Tensor(
        backend.from_numpy(values.transpose(2, 0, 1).copy(), plain.device).transpose(1, 2, 0), requires_grad=True
    )
    strided = gn.Tensor(backend.from_numpy(np.repeat(values, 2, axis=1), plain.device)[:, ::2], requires_grad=True)
    assert not transposed.data.flags.c_contiguous and not strided.data.flags.c_contiguous
    params = [plain, transposed, strided]
    optimizers = [make([p]) for p in params]
    for step in range(5):
        for p, optimizer in zip(params, optimizers):
            set_gradients([p], step)
            optimizer.step()
    for p, optimizer in zip(params[1:], optimizers[1:]):
        np.testing.assert_array_equal(numpy(p), numpy(plain))
        saved, expected = optimizer.state_dict()["state"], optimizers[0].state_dict()["state"]
        for name, value in expected.get(0, {}).items():
            np.testing.assert_array_equal(np.asarray(gn.asarray(saved[0][name]).cpu()), gn.asarray(value).cpu())


def test_gradient_in_another_memory_order() -> None:
    values = rng.standard_normal((3, 4)).astype("float32")
    p, q = gn.tensor(values, requires_grad=True), gn.tensor(values, requires_grad=True)
    p.grad = gn.asarray(np.asfortranarray(values))
    q.grad = gn.tensor(values)
    for x in (p, q):
        optim.Adam([x]).step()
    np.testing.assert_array_equal(numpy(p), numpy(q))


@every_optimizer
def test_state_follows_a_parameter_that_moves(make: Callable[[Any], optim.Optimizer]) -> None:
    """To another memory order, another device, and other memory of the same kind, with the same result."""
    model, still = nn.Linear(3, 2), nn.Linear(3, 2)
    still.load_state_dict(model.state_dict())
    optimizer, other = make(model.parameters()), make(still.parameters())
    for step in range(8):
        if step == 2:
            model.weight.data = np.asfortranarray(model.weight.data)
        elif step == 4:
            model.to("strict")
        elif step == 6:
            model.to("cpu")
        elif step == 7:
            model.weight.data = model.weight.data.copy()
        for m, o in ((model, optimizer), (still, other)):
            set_gradients(list(m.parameters()), step)
            with gn.kernels("off"):  # of which one of the devices has none, and which round differently
                o.step()
    for p, q in zip(model.parameters(), still.parameters()):
        np.testing.assert_array_equal(numpy(p), numpy(q))


def test_float64_beside_float32() -> None:
    p, q = parameter(3), parameter(3, dtype="float64")
    optimizer = optim.Adam([p, q])
    set_gradients([p, q], 0)
    optimizer.step()
    assert {x: s["exp_avg"].dtype.name for x, s in optimizer.state.items()} == {p: "float32", q: "float64"}


def test_closure() -> None:
    x = parameter(2)
    optimizer = optim.SGD([x], lr=0.5)
    target = numpy(x).copy() / 2

    def closure() -> gn.Tensor:
        optimizer.zero_grad()
        loss = gn.sum(x * x) / 2
        loss.backward()
        return loss

    with gn.no_grad():  # the closure records all the same
        loss = optimizer.step(closure)
    assert loss.item() == pytest.approx(float(2 * (target**2).sum()))
    np.testing.assert_allclose(numpy(x), target, rtol=1e-6)
    assert optimizer.step() is None


def test_zero_grad(device: str) -> None:
    p, q = parameter(2, device=device), parameter(3, device=device)
    optimizer = optim.SGD([p, q])
    set_gradients([p], 0)
    optimizer.zero_grad(set_to_none=False)
    assert numpy(p.grad).tolist() == [0, 0] and q.grad is None
    optimizer.zero_grad()
    assert p.grad is None


def test_an_optimizer_of_ones_own() -> None:
    class SignSGD(optim.Optimizer):
        def __init__(self, params: Any, lr: float = 1e-3) -> None:
            super().__init__(params, {"lr": lr})

        def update(self, group: Any, step: int, params: Any, grads: Any, state: Any) -> None:
            for p, g in zip(params, grads):
                p -= group["lr"] * np.sign(g)

    p = gn.zeros(2).requires_grad_()
    p.grad = gn.tensor([3.0, -0.1])
    optimizer = SignSGD([p], lr=0.25)
    optimizer.step()
    assert numpy(p).tolist() == [-0.25, 0.25]
    optimizer.load_state_dict(optimizer.state_dict())


# --- groups


def test_groups_with_options_of_their_own() -> None:
    values = [rng.standard_normal(3) for _ in range(3)]
    params = [gn.tensor(v, requires_grad=True) for v in values]
    optimizer = optim.SGD([{"params": params[:1], "name": "body"}, {"params": params[1], "lr": 0.5}], lr=0.1)
    optimizer.add_param_group({"params": params[2:], "weight_decay": 1.0})
    for p in params:
        p.grad = gn.ones(3, dtype="float64")
    optimizer.step()
    for p, expected in zip(params, [values[0] - 0.1, values[1] - 0.5, values[2] - 0.1 * (1 + values[2])]):
        np.testing.assert_allclose(numpy(p), expected, rtol=1e-12)
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.5, 0.1]
    assert str(optimizer).splitlines() == [
        "SGD(",
        "  body: 3 elements in 1 Tensor, lr=0.1, momentum=0.0, dampening=0.0, weight_decay=0.0, nesterov=False, "
        "maximize=False",
        "  group 1: 3 elements in 1 Tensor, lr=0.5, momentum=0.0, dampening=0.0, weight_decay=0.0, nesterov=False, "
        "maximize=False",
        "  group 2: 3 elements in 1 Tensor, lr=0.1, momentum=0.0, dampening=0.0, weight_decay=1.0, nesterov=False, "
        "maximize=False",
        ")",
    ]


def test_options_may_change_between_steps() -> None:
    p = gn.zeros(1).requires_grad_()
    optimizer = optim.SGD([p], lr=1.0)
    for lr, momentum in ((1.0, 0.0), (0.5, 0.0), (1.0, 0.5), (1.0, 0.5)):
        optimizer.param_groups[0].update(lr=lr, momentum=momentum)
        p.grad = gn.ones(1)
        optimizer.step()
    assert p.item() == -(1 + 0.5 + 1 + 1.5)


# --- state


@every_optimizer
def test_state_dict_continues_bit_for_bit(make: Callable[[Any], optim.Optimizer], device: str) -> None:
    first = [parameter(3, 2, device=device), parameter(4, device=device), parameter(1, device=device)]
    optimizer = make([{"params": first[:1]}, {"params": first[1:], "lr": 0.01}])
    for step in range(7):
        set_gradients(first, step)
        if step < 3:
            first[1].grad = None
        first[2].grad = None  # never updated: it has no state
        optimizer.step()
    second = [gn.tensor(numpy(p), device=device, requires_grad=True) for p in first]
    resumed = make([{"params": second[:1]}, {"params": second[1:]}])
    for step in range(2):  # what it has done before must not matter
        set_gradients(second, step + 50)
        resumed.step()
    with gn.no_grad():
        for p, q in zip(first, second):
            q.copy_(p)
    state = copy.deepcopy(optimizer.state_dict())
    assert set(state["state"]) <= {0, 1} and [g["params"] for g in state["param_groups"]] == [[0], [1, 2]]
    resumed.load_state_dict(state)
    for step in range(7, 60):
        for params, opt in ((first, optimizer), (second, resumed)):
            set_gradients(params, step)
            opt.step()
    for p, q in zip(first, second):
        np.testing.assert_array_equal(numpy(p), numpy(q))
    assert resumed.param_groups[1]["lr"] == 0.01


def test_state_dict_has_the_form_of_torchs() -> None:
    p = parameter(2, 3)
    optimizer = optim.Adam([p], betas=(0.8, 0.9))
    assert optimizer.state_dict()["state"] == {}
    set_gradients([p], 0)
    optimizer.step()
    state = optimizer.state_dict()
    entry = state["state"][0]
    assert set(entry) == {"step", "exp_avg", "exp_avg_sq"} and entry["step"] == 1
    np.testing.assert_allclose(numpy(entry["exp_avg"]), 0.2 * numpy(p.grad), rtol=1e-6)
    np.testing.assert_allclose(numpy(entry["exp_avg_sq"]), 0.1 * numpy(p.grad) ** 2, rtol=1e-5)
    assert state["param_groups"] == [
        {
            "lr": 1e-3, "betas": (0.8, 0.9), "eps": 1e-8, "weight_decay": 0.0, "amsgrad": False, "maximize": False,
            "decoupled_weight_decay": False, "params": [0],
        }
    ]  # fmt: skip
    assert optimizer.state[p]["exp_avg"].shape == (2, 3)


@pytest.mark.parametrize("kind", ["SGD", "Adam", "AdamW", "RMSprop", "Adagrad"])
def test_goes_on_from_torchs_state_and_back(kind: str) -> None:
    torch = pytest.importorskip("torch")
    options = {"SGD": {"momentum": 0.9}, "RMSprop": {"centered": True}, "Adam": {"amsgrad": True}}.get(kind, {})
    values = [rng.standard_normal((3, 2)), rng.standard_normal(4)]
    theirs = [torch.nn.Parameter(torch.tensor(v)) for v in values]
    ours = [gn.tensor(v, requires_grad=True) for v in values]
    their_optimizer = getattr(torch.optim, kind)(theirs, lr=0.02, **options)
    our_optimizer = getattr(optim, kind)(ours, **options)

    def both(steps: range) -> None:
        for step in steps:
            set_gradients(ours, step)
            for p, q in zip(theirs, ours):
                p.grad = torch.tensor(q.grad.numpy())
            their_optimizer.step()
            our_optimizer.step()

    def check() -> None:
        for p, q in zip(theirs, ours):
            np.testing.assert_allclose(numpy(q), p.detach().numpy(), rtol=1e-9, atol=1e-12)

    for step in range(5):
        for p in theirs:
            p.grad = torch.tensor(np.random.default_rng(step + 100).standard_normal(p.shape))
        their_optimizer.step()
    for p, q in zip(theirs, ours):
        q.data[...] = p.detach().numpy()
    our_optimizer.load_state_dict(their_optimizer.state_dict())
    both(range(5))
    check()
    saved = our_optimizer.state_dict()
    for entry in saved["state"].values():
        for name, value in entry.items():
            entry[name] = torch.tensor(float(value)) if name == "step" else torch.tensor(np.array(value))
    their_optimizer.load_state_dict(saved)
    both(range(5, 10))
    check()


@pytest.mark.parametrize("named", [False, True])
def test_the_list_of_parameters_may_be_changed(named: bool) -> None:
    """A head that is replaced, a layer that is added: as PyTorch's users do it, without making a new optimizer."""
    a, b, c = (nn.Parameter(gn.ones(2)) for _ in range(3))
    optimizer = optim.SGD([("a", a)] if named else [a], lr=1.0, momentum=0.5)
    params = optimizer.param_groups[0]["params"]
    for p in (a, b, c):
        p.grad = gn.ones(2)
    optimizer.step()  # a: 1 - 1
    params.append(b)
    optimizer.step()  # a keeps its momentum: 0 - 1.5; b: 1 - 1
    params[0] = c
    optimizer.step()  # b: 0 - 1.5; c: 1 - 1
    assert [p.detach().numpy().tolist() for p in (a, b, c)] == [[-1.5, -1.5], [-1.5, -1.5], [0.0, 0.0]]


def test_names_of_parameters_and_groups_are_saved() -> None:
    model = nn.Linear(2, 1)
    optimizer = optim.SGD(model.named_parameters())
    assert optimizer.state_dict()["param_groups"][0]["param_names"] == ["weight", "bias"]
    other = optim.SGD([("bias", model.bias), ("weight", model.weight)])
    with pytest.raises(ValueError, match=r"group 0: its parameter 0 is 'weight', this optimizer's is 'bias'"):
        other.load_state_dict(optimizer.state_dict())
    with pytest.raises(ValueError, match=r"got 1 param_names for 2 parameters"):
        optim.SGD([{"params": model.parameters(), "param_names": ["a"]}])


# --- errors


@pytest.mark.parametrize(
    "make, error, text",
    [
        (lambda: optim.SGD([]), ValueError, "SGD: group 0: got an empty parameter list (was the generator alr"),
        (lambda: optim.SGD([{"params": []}]), ValueError, "SGD: group 0: got an empty parameter list"),
        (lambda: optim.Adam(parameter(2)), TypeError, "Adam: expected a list of Tensors or of groups, got a single T"),
        (lambda: optim.Adam({"params": []}), TypeError, "Adam: expected a list of Tensors or of groups, got a single"),
        (lambda: optim.SGD(nn.Linear(2, 2)), TypeError, "of groups, got a single Linear; pass its parameters()"),
        (lambda: optim.SGD(0.1), TypeError, "SGD: expected a list of Tensors or of groups, got a single float"),
        (lambda: optim.SGD([np.ones(2)]), TypeError, "SGD: group 0: parameter 0 is ndarray array([1., 1.]), expect"),
        (lambda: optim.SGD([("w", 3)]), TypeError, "SGD: group 0: parameter 'w' is int 3, expected a Tensor"),
        (lambda: optim.SGD([parameter(2) * 2]), ValueError, "parameter 0, of shape (2,), was computed by an op"),
        (lambda: optim.SGD([gn.arange(3)]), DTypeError, "parameter 0, of shape (3,), is int64; only floating-point"),
        (lambda: optim.SGD([parameter(2)] * 2), ValueError, "parameter 1, of shape (2,), is there already"),
        (lambda: optim.SGD([parameter(2)], lr=-1.0), ValueError, "SGD: group 0: lr must be a number of at least 0"),
        (lambda: optim.SGD([parameter(2)], lr=float("nan")), ValueError, "lr must be a number of at least 0, got nan"),
        (lambda: optim.SGD([parameter(2)], lr="1"), ValueError, "lr must be a number of at least 0, got '1'"),
        (lambda: optim.SGD([parameter(2)], momentum=-0.1), ValueError, "momentum must be a number of at least 0"),
        (lambda: optim.SGD([parameter(2)], nesterov=True), ValueError, "momentum must be above 0 for Nesterov's"),
        (
            lambda: optim.SGD([parameter(2)], momentum=0.9, dampening=0.1, nesterov=True),
            ValueError,
            "dampening must be 0 for Nesterov's momentum, got 0.1",
        ),
        (lambda: optim.Adam([parameter(2)], betas=(0.9, 1.0)), ValueError, "betas must be two numbers in [0, 1), got"),
        (lambda: optim.Adam([parameter(2)], betas=0.9), ValueError, "betas must be two numbers in [0, 1), got 0.9"),
        (lambda: optim.AdamW([parameter(2)], eps=-1), ValueError, "AdamW: group 0: eps must be a number of at least 0"),
        (lambda: optim.RMSprop([parameter(2)], alpha=-1), ValueError, "alpha must be a number of at least 0"),
        (lambda: optim.Adagrad([parameter(2)], lr_decay=-1), ValueError, "lr_decay must be a number of at least 0"),
        (
            lambda: optim.SGD([{"params": [parameter(2)], "learning_rate": 0.1}]),
            ValueError,
            "SGD: group 0: unknown option 'learning_rate'; the options of SGD are lr, momentum, dampening, weight_",
        ),
        (
            lambda: optim.SGD([{"params": [parameter(2)]}, {"params": [parameter(2)], "lr": -2}]),
            ValueError,
            "SGD: group 1: lr must be a number of at least 0, got -2",
        ),
        (
            lambda: optim.SGD([{"lr": 0.1}]),
            TypeError,
            'SGD: group 0: expected a dict with the key "params", got dict',
        ),
    ],
)  # fmt: skip
def test_errors_of_the_constructor(make: Callable[[], Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=re.escape(text)):
        make()


def test_parameter_in_two_groups() -> None:
    p = parameter(2)
    optimizer = optim.SGD([p])
    with pytest.raises(ValueError, match=r"SGD: group 1: parameter 0, of shape \(2,\), is there already"):
        optimizer.add_param_group({"params": [p]})
    assert len(optimizer.param_groups) == 1


def test_errors_of_a_step_change_nothing() -> None:
    p, q = parameter(2), parameter(3, 2)
    optimizer = optim.SGD([("head.bias", p), ("head.weight", q)], lr=0.1)
    before = [p.data.copy(), q.data.copy()]
    cases: list[tuple[Any, type[Exception], str]] = [
        (gn.ones((2, 3)), GradientError, "SGD: parameter 'head.weight': its shape is (3, 2), but that of its grad"),
        (gn.ones((3, 2), dtype="float64"), DTypeError, "'head.weight', of shape (3, 2), is float32, but its gradient"),
        (gn.ones((3, 2), device="strict"), DeviceError, "is on cpu, but its gradient is on strict"),
    ]  # fmt: skip
    for grad, error, text in cases:
        set_gradients([p], 0)
        q._node.grad = grad
        with pytest.raises(error, match=re.escape(text)):
            optimizer.step()
    assert optimizer.steps == 0
    np.testing.assert_array_equal(p.data, before[0])
    np.testing.assert_array_equal(q.data, before[1])


def test_read_only_memory() -> None:
    p = gn.asarray(np.broadcast_to(np.float32(1), (3,))).requires_grad_()
    p.grad = gn.ones(3)
    with pytest.raises(ValueError, match=r"SGD: parameter 0, of shape \(3,\), is a read-only array"):
        optim.SGD([p]).step()


def test_errors_of_load_state_dict_change_nothing() -> None:
    def saved(optimizer: optim.Optimizer, /, **changes: Any) -> dict[str, Any]:
        params = [p for group in optimizer.param_groups for p in group["params"]]
        set_gradients(params, 0)
        optimizer.step()
        return {**copy.deepcopy(optimizer.state_dict()), **changes}

    p, q = parameter(3), parameter(2)
    optimizer = optim.Adam([p, q], lr=0.3)
    saved(optimizer)
    before = copy.deepcopy(optimizer.state_dict())
    good = saved(optim.Adam([parameter(3), parameter(2)]))
    entry = good["state"][0]
    cases: list[tuple[Any, type[Exception], str]] = [
        (None, ValueError, 'Adam.load_state_dict: expected a dict with "state" and "param_groups"'),
        (saved(optim.AdamW([parameter(3), parameter(2)])), ValueError, "this is the state of AdamW, not of Adam"),
        (
            saved(optim.SGD([parameter(3), parameter(2)]), optimizer="Adam"),
            ValueError,
            "group 0: it is of another kind of optimizer (missing options: betas, eps, amsgrad, "
            "decoupled_weight_decay; unknown options: momentum, dampening, nesterov)",
        ),
        (
            saved(optim.Adam([{"params": [parameter(3)]}, {"params": [parameter(2)]}])),
            ValueError,
            "it has 2 parameter groups, this optimizer 1",
        ),
        (saved(optim.Adam([parameter(3)])), ValueError, "group 0: it has 1 parameters, this optimizer's has 2"),
        (
            saved(optim.Adam([parameter(2), parameter(3)])),
            ShapeError,
            "state of parameter 0: 'exp_avg' has shape (2,), the parameter has (3,)",
        ),
        ({**good, "state": {5: entry}}, ValueError, "state for parameter 5, of which no group knows"),
        ({**good, "state": {0: {}}}, ValueError, 'state of parameter 0: it has no "step"; it has nothing'),
        (
            {**good, "state": {0: {**entry, "sum": entry["exp_avg"]}}},
            ValueError,
            "'sum' is unknown to this optimizer, which has exp_avg, exp_avg_sq, max_exp_avg_sq",
        ),
        (
            {**good, "param_groups": [{**good["param_groups"][0], "lr": -1}]},
            ValueError,
            "Adam.load_state_dict: group 0: lr must be a number of at least 0, got -1",
        ),
    ]
    for state, error, text in cases:
        with pytest.raises(error, match=re.escape(text)):
            optimizer.load_state_dict(state)
    after = optimizer.state_dict()
    assert after["param_groups"] == before["param_groups"]
    for i, values in before["state"].items():
        for name, value in values.items():
            np.testing.assert_array_equal(after["state"][i][name], value)
    optimizer.load_state_dict(good)
    assert optimizer.param_groups[0]["lr"] == 1e-3


def test_adamw_does_not_turn_into_adam() -> None:
    state = optim.Adam([parameter(2)]).state_dict()
    del state["optimizer"]  # as in a state_dict of torch's
    with pytest.raises(ValueError, match="decoupled_weight_decay must be True in AdamW; without it, use Adam"):
        optim.AdamW([parameter(2)]).load_state_dict(state)
