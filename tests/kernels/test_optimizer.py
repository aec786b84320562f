"""The update rules of optimizers, and what is done to all gradients at once, on a device with kernels."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import product
from typing import Any

import numpy as np
import pytest

import gpunet as gn
from gpunet import nn, optim
from gpunet.backends import Backend, Device
from gpunet.backends.emulated import emulation, prebuild
from gpunet.errors import DeviceError
from gpunet.nn.utils import clip_grad_norm_, clip_grad_value_
from gpunet.ops import optimizer as rules

rng = np.random.default_rng(0)
# A chunk of float32 has 4096 elements, of float16 8192.
SIZES = [5, 4100, 64, 1, 0, 37]
TOLERANCE = {"float64": 1e-12, "float32": 2e-6, "float16": 2e-3, "bfloat16": 2e-2}


@pytest.fixture(scope="module", autouse=True)
def built(kernel_device: Backend) -> None:
    """What most tests launch."""
    if kernel_device.name == "emulated":
        prebuild([v for v in rules._variants() if "bfloat16" not in v.expression])


def on(backend: Backend, a: Any) -> Any:
    return backend.from_numpy(np.asarray(a), Device(backend.name))


def numpy(backend: Backend, arrays: Iterable[Any]) -> list[np.ndarray]:
    return [np.array(backend.to_numpy(a)) for a in arrays]


def run(rule: Any, *args: Any, **numbers: Any) -> Any:
    """A rule, whose kernel must apply."""
    with gn.kernels("force"):
        return rule.implementation(type(args[0][0] if isinstance(args[0], list) else args[0]))(*args, **numbers)


def dtype_of(name: str) -> np.dtype:
    if name != "bfloat16":
        return np.dtype(name)
    return np.dtype(pytest.importorskip("ml_dtypes", reason="gives NumPy bfloat16").bfloat16)


# Each rule with its states, and the options to be combined.
COMMON = {"lr": [0.1], "weight_decay": [0.0, 0.1], "maximize": [False, True]}
RULES: list[tuple[Any, int, list[bool], dict[str, list[Any]]]] = [
    (rules.sgd, 1, [False], {"momentum": [0.9], "dampening": [0.0], "nesterov": [False], "first": [True]}),
    (rules.sgd, 1, [True], {"momentum": [0.9], "dampening": [0.3], "nesterov": [False], "first": [False, True]}),
    (rules.sgd, 1, [True], {"momentum": [0.9], "dampening": [0.0], "nesterov": [True], "first": [False]}),
    *[
        (rules.adam, 3, [True, True, amsgrad], {"step": [1, 7], "beta1": [0.9], "beta2": [0.99], "eps": [1e-3],
         "decoupled": [False, True]})
        for amsgrad in (False, True)
    ],
    *[
        (rules.rmsprop, 3, [True, centered, momentum > 0], {"alpha": [0.9], "eps": [1e-3], "momentum": [momentum]})
        for centered, momentum in product((False, True), (0.0, 0.8))
    ],
    (rules.adagrad, 1, [True], {"step": [1, 4], "lr_decay": [0.0, 0.1], "eps": [1e-3]}),
]  # fmt: skip


def arguments(kinds: list[bool], dtype: str, sizes: list[int] = SIZES) -> tuple[Any, Any, Any]:
    number = dtype_of(dtype)
    params, grads = ([rng.standard_normal(n).astype(number) for n in sizes] for _ in range(2))
    wide = number if number.itemsize > 2 else np.dtype("float32")
    states = [rng.uniform(0.5, 2, sum(sizes)).astype(wide) if there else None for there in kinds]
    if len(kinds) > 1 and kinds[1]:
        states[1] *= 0.1  # a mean far below the root of the mean square
    return params, grads, states


def check(backend: Backend, rule: Any, kinds: list[bool], dtype: str, **numbers: Any) -> None:
    """A rule beside its reference in float64."""
    params, grads, states = arguments(kinds, dtype)
    exact_params, exact_grads = ([a.astype(np.float64) for a in arrays] for arrays in (params, grads))
    exact_states = [None if s is None else s.astype(np.float64) for s in states]
    rule.reference(np, exact_params, exact_grads, *exact_states, **numbers)

    ps, gs = ([on(backend, a) for a in arrays] for arrays in (params, grads))
    ss = [None if s is None else on(backend, s) for s in states]
    run(rule, ps, gs, *ss, **numbers)
    for got, exact in zip(numpy(backend, ps), exact_params):
        assert got.dtype == dtype_of(dtype)
        np.testing.assert_allclose(got.astype(np.float64), exact, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    for s, exact in zip(ss, exact_states):
        if s is not None:
            limit = TOLERANCE["float64" if dtype == "float64" else "float32"]
            np.testing.assert_allclose(backend.to_numpy(s), exact, rtol=limit, atol=limit)
    for got, given in zip(numpy(backend, gs), grads):
        np.testing.assert_array_equal(got.view(np.uint8), given.view(np.uint8))


@pytest.mark.parametrize("case", RULES, ids=lambda case: f"{case[0].name} {case[2]}")
def test_rules(case: Any, kernel_device: Backend) -> None:
    rule, count, kinds, options = case
    options = COMMON | options
    kinds = kinds + [False] * (count - len(kinds))
    for values in product(*options.values()):
        check(kernel_device, rule, kinds, "float32", **dict(zip(options, values)))


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
def test_rules_of_every_type(dtype: str, kernel_device: Backend) -> None:
    common = {"lr": 0.1, "weight_decay": 0.1, "maximize": True}
    sgd = {"momentum": 0.9, "dampening": 0.1, "nesterov": False, "first": False}
    check(kernel_device, rules.sgd, [True], dtype, **common, **sgd)
    adam = {"step": 3, "beta1": 0.9, "beta2": 0.99, "eps": 1e-3, "decoupled": True}
    check(kernel_device, rules.adam, [True, True, False], dtype, **common, **adam)
    if dtype == "float16":
        check(kernel_device, rules.rmsprop, [True, True, True], dtype, **common, alpha=0.9, eps=1e-3, momentum=0.8)
        check(kernel_device, rules.adagrad, [True], dtype, **common, step=2, lr_decay=0.1, eps=1e-3)


ADAM = {"step": 3, "lr": 0.1, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.1, "decoupled": True,
        "maximize": False}  # fmt: skip


def test_each_element_is_changed_alike_wherever_it_lies(kernel_device: Backend) -> None:
    """One by one, in vectors, or unaligned; in other orders of blocks, and on another number of processors."""
    params, grads, (m, v, _none) = arguments([True, True, False], "float32", [4097])
    results = []
    for shift in (0, 1):
        for settings in ({}, {"order": "reverse"}, {"order": "random", "seed": 1, "processors": 2}):
            arrays = []
            for a in (params[0], grads[0], m, v):
                padded = on(kernel_device, np.concatenate([np.zeros(shift, "float32"), a]))
                arrays.append(padded[shift:])
            with emulation(**settings):
                run(rules.adam, [arrays[0]], [arrays[1]], arrays[2], arrays[3], None, **ADAM)
            results.append(b"".join(a.tobytes() for a in numpy(kernel_device, arrays)))
    assert len(set(results)) == 1


def test_more_arrays_than_a_launch_takes(kernel_device: Backend) -> None:
    sizes = [1 + i % 3 for i in range(300)]
    params, grads, (m, v, _none) = arguments([True, True, False], "float32", sizes)
    ps, gs = ([on(kernel_device, a) for a in arrays] for arrays in (params, grads))
    states = [on(kernel_device, m), on(kernel_device, v)]
    log: list[Any] = []
    with emulation(log=log):
        run(rules.adam, ps, gs, *states, None, **ADAM)
        norm = run(rules.gradient_norm, gs)
        run(rules.clip_by_value, gs, limit=0.5)
    if kernel_device.name == "emulated":
        assert [name.split("<")[0] for name, _ in log] == (
            ["update"] * 3 + ["gradient_norm"] * 3 + ["finish_norm"] + ["change_gradients"] * 3
        )
    rules.adam.reference(np, params, grads, m, v, None, **ADAM)
    np.testing.assert_allclose(np.concatenate(numpy(kernel_device, ps)), np.concatenate(params), rtol=1e-5, atol=1e-6)
    assert float(norm) == pytest.approx(np.linalg.norm(np.concatenate(grads)), rel=1e-6)
    np.testing.assert_array_equal(np.concatenate(numpy(kernel_device, gs)), np.concatenate(grads).clip(-0.5, 0.5))


@pytest.mark.parametrize("rule", [rules.adam, rules.adagrad, rules.sgd, rules.rmsprop], ids=lambda rule: rule.name)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_learning_rate_and_step_in_device_memory(dtype: str, rule: Any, kernel_device: Backend) -> None:
    """A step that was recorded once is repeated with what is there then."""
    numbers = {
        rules.adam: {**ADAM, "eps": 1e-3},
        rules.adagrad: {"step": 3, "lr": 0.1, "lr_decay": 0.1, "eps": 1e-3, "weight_decay": 0.1, "maximize": False},
        rules.sgd: {"lr": 0.1, "momentum": 0.9, "dampening": 0.0, "nesterov": False, "weight_decay": 0.0,
                    "maximize": False, "first": False},
        rules.rmsprop: {"lr": 0.1, "alpha": 0.9, "eps": 1e-3, "weight_decay": 0.0, "momentum": 0.0, "maximize": False},
    }[rule]  # fmt: skip
    count = {rules.adam: 3, rules.rmsprop: 3}.get(rule, 1)
    kinds = [True, rule is rules.adam, False][:count]
    params, grads, states = arguments(kinds, "float32", [70])
    given = {name: numbers[name] for name in ("lr", "step") if name in numbers}
    there = {"lr": on(kernel_device, np.array(0.1, dtype)), "step": on(kernel_device, np.array(2))}
    run(rules.count_step, there["step"])
    results = []
    for source in (given, {name: there[name] for name in given}):
        ps, gs = [on(kernel_device, params[0])], [on(kernel_device, grads[0])]
        ss = [None if s is None else on(kernel_device, s) for s in states]
        run(rule, ps, gs, *ss, **{**numbers, **source})
        results.append(kernel_device.to_numpy(ps[0]))
        rule.reference(kernel_device.xp, ps, gs, *ss, **{**numbers, **source})  # takes them too
    np.testing.assert_allclose(results[1], results[0], rtol=1e-6)


def test_a_step_is_skipped_where_a_gradient_was_not_finite(kernel_device: Backend) -> None:
    params, grads, (m, v, _none) = arguments([True, True, False], "float16", [100, 30])
    step = on(kernel_device, np.array(4))
    for bad in (False, True):
        if bad:
            grads[1][7] = np.inf
        ps, gs = ([on(kernel_device, a) for a in arrays] for arrays in (params, grads))
        states = [on(kernel_device, m), on(kernel_device, v)]
        found, scale = on(kernel_device, np.array(0, np.int32)), on(kernel_device, np.array(4, np.float32))
        run(rules.unscale_and_check, gs, found, scale=scale)
        run(rules.count_step, step, skip=found)
        run(rules.adam, ps, gs, *states, None, **{**ADAM, "skip": found})
        assert int(found) == bad
        assert int(step) == 5
        np.testing.assert_array_equal(kernel_device.to_numpy(gs[0]), grads[0] / 4)
        changed = [bool((a != b).any()) for a, b in zip(numpy(kernel_device, ps), params)]
        assert changed == [not bad] * 2
    run(rules.unscale_and_check, gs, found, scale=2.0)
    np.testing.assert_array_equal(kernel_device.to_numpy(gs[0]), grads[0] / 8)


@pytest.mark.parametrize("order", [1, 2, 3.5, math.inf])
def test_norms(order: float, kernel_device: Backend) -> None:
    arrays = [rng.standard_normal(n).astype(np.float32) for n in (4100, 3)]
    arrays.append(rng.standard_normal((6, 5, 4)).astype(np.float32).transpose(2, 0, 1))
    grads = [on(kernel_device, a) for a in arrays]
    exact = np.linalg.norm(np.concatenate([a.ravel() for a in arrays]).astype(np.float64), order)
    found = []
    for settings in ({}, {"order": "reverse"}, {"order": "random", "seed": 3, "processors": 1}):
        with emulation(**settings):
            found.append(run(rules.gradient_norm, grads, ord=order))
    assert found[0].shape == () and found[0].dtype == np.float32
    assert float(found[0]) == pytest.approx(exact, rel=1e-6)
    assert len({f.tobytes() for f in numpy(kernel_device, found)}) == 1


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
def test_norms_of_every_type(dtype: str, kernel_device: Backend) -> None:
    a = (rng.standard_normal(500) * 100).astype(dtype_of(dtype))
    norm = run(rules.gradient_norm, [on(kernel_device, a), on(kernel_device, a[:3])])
    exact = np.linalg.norm(np.concatenate([a, a[:3]]).astype(np.float64))
    assert norm.dtype == (np.float64 if dtype == "float64" else np.float32)
    assert float(norm) == pytest.approx(exact, rel=1e-6)


def parameters(device: str, dtype: str = "float32") -> list[nn.Parameter]:
    found = []
    for a in ([[3.0, -4.0, 0.5], [0.5, 1.0, 2.0]], [12.0], -2.0):
        p = nn.Parameter(gn.zeros(np.shape(a), dtype=dtype, device=device))
        p.grad = gn.tensor(np.array(a), dtype=dtype, device=device)
        found.append(p)
    found[0].grad = gn.tensor(np.array(found[0].grad.cpu().numpy().T), dtype=dtype, device=device).T
    return found


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64"])
@pytest.mark.parametrize("limit", [0.0, 1.0, 1e3])
def test_clipping_by_norm_waits_for_nothing(limit: float, dtype: str, kernel_device: Backend) -> None:
    several, alike = parameters(kernel_device.name, dtype), parameters("cpu", dtype)
    host: list[str] = []
    with gn.kernels("force"), emulation(host=host):
        total = clip_grad_norm_(several, limit)
    assert host == []
    assert total.item() == pytest.approx(clip_grad_norm_(alike, limit).item(), rel=1e-6)
    for p, q in zip(several, alike):
        np.testing.assert_allclose(p.grad.cpu().numpy(), q.grad.numpy(), rtol=1e-3 if dtype == "float16" else 1e-6)


def test_clipping_by_value(kernel_device: Backend) -> None:
    several, alike = parameters(kernel_device.name), parameters("cpu")
    several[1].grad = gn.tensor([math.nan], device=kernel_device.name)
    alike[1].grad = gn.tensor([math.nan])
    host: list[str] = []
    with gn.kernels("force"), emulation(host=host):
        clip_grad_value_(several, 1.5)
    assert host == []
    clip_grad_value_(alike, 1.5)
    for p, q in zip(several, alike):
        np.testing.assert_array_equal(p.grad.cpu().numpy(), q.grad.numpy())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.filterwarnings("ignore:invalid value")
def test_norms_that_are_not_finite(bad: float, kernel_device: Backend) -> None:
    for order in (1, 2, 3.5, math.inf):
        several, alike = parameters(kernel_device.name), parameters("cpu")
        for ps in (several, alike):
            ps[1].grad = gn.tensor([bad], device=ps[1].device)
        with gn.kernels("force"):
            total = clip_grad_norm_(several, 1.0, order)
        np.testing.assert_array_equal(total.item(), bad)
        clip_grad_norm_(alike, 1.0, order)
        for p, q in zip(several, alike):
            np.testing.assert_array_equal(p.grad.cpu().numpy(), q.grad.numpy())


def test_clipping_gradients_with_gaps_or_of_two_types(kernel_device: Backend) -> None:
    several, alike = parameters(kernel_device.name), parameters("cpu")
    for ps in (several, alike):
        ps[1].grad = gn.tensor([12.0], dtype="float16", device=ps[1].device)
        ps[0].grad = gn.tensor(np.arange(12, dtype=np.float32).reshape(3, 4), device=ps[0].device)[:, 1:3].T
    assert clip_grad_norm_(several, 1.0).item() == pytest.approx(clip_grad_norm_(alike, 1.0).item(), rel=1e-6)
    for p, q in zip(several, alike):
        np.testing.assert_allclose(p.grad.cpu().numpy(), q.grad.numpy(), rtol=1e-3)


@pytest.mark.parametrize("kind", ["SGD", "Adam", "AdamW", "RMSprop", "Adagrad"])
def test_optimizers_launch_only_kernels(kind: str, kernel_device: Backend) -> None:
    """Parameters in any order of axes; states at multiples of 16 bytes but for those behind odd sizes."""
    options = {"SGD": {"momentum": 0.9, "nesterov": True}}.get(kind, {})
    found = []
    for device in (kernel_device.name, "cpu"):
        values = np.random.default_rng(1)
        shapes = [(7,), (4, 3, 3, 5), (16, 5), (10,), ()]
        params = [gn.tensor(values.standard_normal(s).astype("float32"), device=device) for s in shapes]
        params[1] = params[1].transpose(0, 3, 1, 2)
        params = [nn.Parameter(p) for p in params]
        optimizer = getattr(optim, kind)(params, lr=0.05, weight_decay=0.01, **options)
        for _ in range(3):
            for p in params:
                g = np.asarray(values.standard_normal(p.shape)).astype("float32")
                p.grad = gn.tensor(g, device=device)
            laid = np.ascontiguousarray(params[1].grad.cpu().numpy().transpose(0, 2, 3, 1))
            params[1].grad = gn.tensor(laid, device=device).transpose(0, 3, 1, 2)
            params[2].grad = gn.tensor(params[2].grad.cpu().numpy().T.copy(), device=device).T  # lies otherwise
            host: list[str] = []
            log: list[Any] = []
            if optimizer.steps == 0 or device == "cpu":
                optimizer.step()
                continue
            with gn.kernels("force"), emulation(host=host, log=log):
                optimizer.step()
            assert host == [] and [name.split("<")[0] for name, _ in log] == ["copy_turned", "update"]
        found.append([p.detach().cpu().numpy() for p in params])
    for got, expected in zip(*found):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_what_kernels_do_not_take(kernel_device: Backend) -> None:
    params, grads, (m, v, _none) = arguments([True, True, False], "float32", [10])
    ps, gs = ([on(kernel_device, a) for a in arrays] for arrays in (params, grads))
    states = [on(kernel_device, m), on(kernel_device, v)]
    with pytest.raises(DeviceError, match="adam: none of its kernels applies"):
        run(rules.adam, [ps[0][::2]], [gs[0][::2]], states[0][:5], states[1][:5], None, **ADAM)
    with pytest.raises(DeviceError, match="adam: none of its kernels applies"):
        run(rules.adam, ps, [gs[0].astype(np.float64)], *states, None, **ADAM)
    with pytest.raises(DeviceError, match="gradient_norm: none of its kernels applies"):
        run(rules.gradient_norm, [gs[0][::2]])
    with pytest.raises(DeviceError, match="count_step: none of its kernels applies"):
        run(rules.count_step, on(kernel_device, np.array(1.0)))


@pytest.mark.parametrize("kind", ["SGD", "Adam", "RMSprop", "Adagrad"])
def test_a_step_that_is_recorded_and_repeated(
    kind: str, kernel_device: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a CUDA graph does it: what is launched during the capture is not done then, but with each replay. The learning
    rate changes all the time."""
    if kernel_device.name != "emulated":
        pytest.skip("the emulated device plays a CUDA graph here")
    rates = [0.1, 0.05, 0.2, 0.025, 0.15]
    options = {"SGD": {"momentum": 0.9}, "Adagrad": {"lr_decay": 0.1}}.get(kind, {})
    launcher = kernel_device.launcher("optimizer")  # type: ignore[misc]
    launch, empty = launcher.launch, launcher.empty
    graph: list[Any] = []
    pool: list[Any] = []  # memory that is the graph's

    def keep(*args: Any) -> Any:
        pool.append(empty(*args))
        return pool[-1]

    found = []
    for captured in (False, True):
        params = [gn.tensor(np.linspace(-1, 1, n), dtype="float32", device="emulated") for n in (6, 3)]
        params = [nn.Parameter(p) for p in params]
        optimizer = getattr(optim, kind)(params, **options)
        optimizer.capturable = captured
        for p in params:
            p.grad = p.detach() * 2.0 + 1.0
        graph.clear()
        for number, rate in enumerate(rates):
            optimizer.param_groups[0]["lr"] = rate
            if captured and number == 2:
                with monkeypatch.context() as patch:
                    patch.setattr(type(launcher), "capturing", lambda self: True)
                    patch.setattr(type(launcher), "launch", lambda self, *args: graph.append(args))
                    patch.setattr(type(launcher), "empty", lambda self, *args: keep(*args))
                    optimizer.step()
                assert len(graph) == 3  # the count, what depends on it, and the parameters
            if graph:
                optimizer.before_replay()
                for args in graph:
                    launch(*args)
            else:
                optimizer.step()
        assert optimizer.steps == len(rates)
        steps = [entry.get("step") for entry in optimizer.state.values()]
        assert steps == [None if kind == "SGD" else len(rates)] * 2
        found.append([p.detach().cpu().numpy() for p in params])
    for got, expected in zip(found[1], found[0]):
        np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_a_capture_that_would_repeat_one_step_is_refused(
    kernel_device: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    p = nn.Parameter(gn.ones(3, device=kernel_device.name))
    p.grad = gn.ones(3, device=kernel_device.name)
    optimizer = optim.Adam([p])
    launcher = kernel_device.launcher("optimizer")  # type: ignore[misc]
    for capturable in (False, True):
        optimizer.capturable = capturable
        with monkeypatch.context() as patch:
            patch.setattr(type(launcher), "capturing", lambda self: True)
            with pytest.raises(
                DeviceError, match=r"Adam.step: a CUDA graph is being captured.*set `capturable` to True"
            ):
                optimizer.step()
    assert optimizer.steps == 0 and p.tolist() == [1, 1, 1]
