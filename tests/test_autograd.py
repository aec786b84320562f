"""The tape: recording, backward, higher orders, in-place writes, and the errors of each."""

from __future__ import annotations

import gc
import operator
import sys
import threading
import weakref

import numpy as np
import pytest

import gpunet as gn
from gpunet.errors import DeviceError, DTypeError, GradientError, ShapeError
from gpunet.ops.op import op
from tests.gradcheck import check_gradients


def leaf(values, device="cpu") -> gn.Tensor:
    return gn.tensor(np.asarray(values, np.float64), device=device, requires_grad=True)


def test_gradients_of_a_formula(device: str) -> None:
    x, y = leaf([1.0, 2.0, 3.0], device), leaf(4.0, device)
    (x * x * y + gn.exp(y)).sum().backward()
    np.testing.assert_allclose(x.grad.cpu().numpy(), [8.0, 16.0, 24.0])
    np.testing.assert_allclose(y.grad.cpu().numpy(), 14.0 + 3 * np.exp(4.0))
    assert y.grad.shape == () and x.grad.device == device


def test_backward_adds_to_what_is_there() -> None:
    x = leaf([1.0, 2.0])
    (x * 3.0).sum().backward()
    (x * x).sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), [5.0, 7.0])
    x.grad = None
    (x * 2.0).backward(gn.asarray(np.array([1.0, 10.0])))
    np.testing.assert_array_equal(x.grad.numpy(), [2.0, 20.0])


def test_broadcasting_is_undone() -> None:
    a, b, c = leaf(np.ones((2, 3))), leaf(np.ones((3, 1, 3))), leaf(2.0)
    ((a + b) * c).sum().backward()
    np.testing.assert_array_equal(a.grad.numpy(), np.full((2, 3), 6.0))
    np.testing.assert_array_equal(b.grad.numpy(), np.full((3, 1, 3), 4.0))
    assert c.grad.item() == 36.0


def test_a_tensor_used_many_times() -> None:
    x = leaf([2.0])
    y = x
    for _ in range(10):
        y = y + x * x
    y.backward()
    assert x.grad.item() == 1.0 + 10 * 2 * 2.0


def test_gradients_of_leaves_do_not_share_memory() -> None:
    a, b, seed = leaf([1.0]), leaf([1.0]), gn.asarray(np.array([1.0]))
    (a + b).backward(seed)
    a.grad += 5.0
    assert b.grad.item() == 1.0 and seed.item() == 1.0
    x = leaf(np.ones((2, 2)))
    x.sum().backward()
    x.grad[0, 0] = 7.0  # the gradient is no read-only broadcast view
    assert x.grad.numpy().sum() == 10.0


def test_mixed_types_give_each_leaf_its_own() -> None:
    a = gn.tensor(np.ones(3, np.float32), requires_grad=True)
    b = gn.tensor(np.ones(3, np.float64), requires_grad=True)
    (a * b).sum().backward()
    assert a.grad.dtype == gn.float32 and b.grad.dtype == gn.float64


def test_deep_graphs_need_no_recursion() -> None:
    x = leaf(1.0)
    y = x
    for _ in range(20_000):
        y = y * 1.0
    y.backward()
    assert x.grad.item() == 1.0


def test_no_grad_and_enable_grad() -> None:
    x = leaf(1.0)
    with gn.no_grad():
        assert not (x * 2).requires_grad and not gn.is_grad_enabled()
        with gn.enable_grad():
            assert (x * 2).requires_grad
    assert (x * 2).requires_grad

    @gn.no_grad()
    def f(n: int) -> bool:
        return (x * 2).requires_grad or (n > 0 and f(n - 1))

    assert not f(3) and gn.is_grad_enabled()


def test_recording_is_a_matter_of_the_thread() -> None:
    seen = []
    with gn.no_grad():
        thread = threading.Thread(target=lambda: seen.append(gn.is_grad_enabled()))
        thread.start()
        thread.join()
    assert seen == [True]


def test_what_cannot_be_differentiated_is_not_recorded() -> None:
    x = leaf([1.0, 2.0])
    assert not (x > 1).requires_grad
    assert not x.argmax().requires_grad
    assert not x.astype(gn.int64).requires_grad
    assert not x.detach().requires_grad


def test_grad_leaves_the_tensors_alone() -> None:
    x, y = leaf(3.0), leaf(2.0)
    z = x * x * y
    gx, gy = gn.grad(z, [x, y])
    assert (gx.item(), gy.item()) == (12.0, 9.0)
    assert x.grad is None and y.grad is None


def test_grad_of_an_intermediate_result() -> None:
    x = leaf(3.0)
    y = x * x
    z = y * y
    assert gn.grad(z, y, retain_graph=True).item() == 18.0
    assert gn.grad(z, x).item() == 4 * 27.0


def test_higher_orders() -> None:
    x = leaf(2.0)
    y = x**4
    for expected in (32.0, 48.0, 48.0, 24.0, 0.0):
        y = gn.grad(y, x, create_graph=True)
        assert y.item() == pytest.approx(expected)


def test_backward_with_create_graph() -> None:
    x = leaf(3.0)
    (x**3).backward(create_graph=True)
    first, x.grad = x.grad, None
    first.backward()
    assert first.item() == 27.0 and x.grad.item() == 18.0


def test_gradient_penalty() -> None:
    rng = np.random.default_rng(0)

    def penalty(x, w):
        y = gn.tanh(x @ w).sum()
        (g,) = gn.grad(y, [x], create_graph=True)
        return ((g * g).sum(axis=1) ** 0.5 - 1.0) ** 2

    check_gradients(penalty, [rng.standard_normal((3, 4)), rng.standard_normal((4, 2))], order=1)


def test_retain_grad() -> None:
    x = leaf(3.0)
    y = x * x
    y.retain_grad()
    (y * 2.0).backward()
    assert y.grad.item() == 2.0 and x.grad.item() == 12.0


def test_graphs_are_freed_without_the_garbage_collector() -> None:
    gc.disable()
    try:
        x = leaf(np.ones(4))
        y = gn.exp(x) * x
        alive = weakref.ref(y)
        z = y.sum()
        z.backward()
        del y, z
        assert alive() is None
    finally:
        gc.enable()


def test_several_outputs() -> None:
    @op
    def halves(xp, x):
        return x * 0.5, x * x

    @halves.vjp
    def _(xp, g, _y, x):
        first, second = g
        return (0.0 if first is None else first * 0.5) + (0.0 if second is None else second * 2.0 * x)

    check_gradients(lambda x: halves(x), [np.array([1.0, -2.0])])
    check_gradients(lambda x: halves(x)[1], [np.array([1.0, -2.0])])


# --- errors


def test_backward_twice() -> None:
    x = leaf(2.0)
    y = (x * x) * x
    y.backward()
    with pytest.raises(GradientError, match="a second time through the same graph.*retain_graph=True"):
        y.backward()
    z = x * x
    z.backward(retain_graph=True)
    z.backward()


def test_backward_of_a_non_scalar() -> None:
    y = leaf([1.0, 2.0]) * 2.0
    with pytest.raises(GradientError, match=r"only a scalar .* shape \(2,\).*loss.mean"):
        y.backward()
    with pytest.raises(ShapeError, match=r"must have the tensor's shape \(2,\), got \(3,\)"):
        y.backward(gn.ones(3))


def test_backward_without_gradients() -> None:
    with pytest.raises(GradientError, match="does not require gradients: .* under no_grad"):
        gn.ones(()).backward()
    with pytest.raises(GradientError, match=r"grad: input 0, of shape \(\), does not require gradients"):
        gn.grad(leaf(1.0) * 2.0, gn.ones(()))
    x, unused = leaf(1.0), leaf(1.0)
    with pytest.raises(GradientError, match="do not depend on input 1"):
        gn.grad(x * x, [x, unused])
    assert gn.grad(x * x, [x, unused], allow_unused=True)[1] is None


def test_integers_cannot_require_gradients() -> None:
    with pytest.raises(DTypeError, match="only floating-point tensors can require gradients, and this one is int64"):
        gn.tensor([1, 2, 3], requires_grad=True)
    with pytest.raises(DTypeError, match="int64"):
        gn.arange(3).requires_grad = True


def test_mixed_devices() -> None:
    with pytest.raises(DeviceError, match="add: its arrays are on different devices: cpu, strict"):
        gn.ones(3) + gn.ones(3, device="strict")
    with pytest.raises(DeviceError, match="matmul: its arrays are on different devices"):
        gn.ones((3, 3), device="strict") @ gn.ones((3, 3))


def test_shapes_that_do_not_broadcast() -> None:
    with pytest.raises(ShapeError, match=r"add: these shapes do not broadcast .* \(3, 4\) float32 and \(5,\) float32"):
        gn.ones((3, 4)) + gn.ones(5)
    with pytest.raises(ShapeError, match=r"matmul: the inner dimensions of \(3, 4\) and \(3, 4\) differ"):
        gn.ones((3, 4)) @ gn.ones((3, 4))


# --- in place


def test_in_place_on_a_value_that_backward_needs() -> None:
    x = leaf([1.0, 2.0])
    y = x * 2.0
    z = y * y
    y += 1.0
    with pytest.raises(
        GradientError, match=r"derivative of 'multiply' needs \(an input, of shape \(2,\)\) was changed"
    ):
        z.sum().backward()


def test_in_place_on_an_output_that_backward_needs() -> None:
    x = leaf([1.0, 2.0])
    y = gn.exp(x)
    with gn.no_grad():
        y += 1.0
    with pytest.raises(GradientError, match="derivative of 'exp' needs .its output"):
        y.sum().backward()


def test_in_place_on_a_parameter_after_the_forward_pass() -> None:
    w, x = leaf([2.0]), gn.ones(1)
    y = x * w * w
    with gn.no_grad():
        w -= 0.1
    with pytest.raises(GradientError, match="changed in place after it was used"):
        y.sum().backward()


def test_in_place_through_a_view() -> None:
    x, c = leaf(np.ones(4)), gn.ones(4)
    y = x * c
    c.reshape(2, 2)[0] = 5.0
    with pytest.raises(GradientError, match="changed in place"):
        y.sum().backward()


def test_in_place_on_a_value_that_backward_does_not_need() -> None:
    x = leaf([1.0, 2.0])
    y = x + 1.0
    z = y + 1.0
    y *= 2.0
    (z + y).sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), [3.0, 3.0])


def test_in_place_results_are_recorded() -> None:
    x, v = leaf([1.0, 2.0, 3.0]), leaf(10.0)
    y = x * 1.0
    y *= x
    y[1] = v
    np.testing.assert_array_equal(y.detach().numpy(), [1.0, 10.0, 9.0])
    y.sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), [2.0, 0.0, 6.0])
    assert v.grad.item() == 1.0


def test_in_place_on_a_leaf() -> None:
    x = leaf([1.0])
    with pytest.raises(GradientError, match=r"in place on a leaf .* gpunet.no_grad\(\)"):
        x += 1.0
    with pytest.raises(GradientError, match="setitem in place on a leaf"):
        x[0] = 1.0
    with gn.no_grad():
        x += 1.0
    assert x.item() == 2.0 and x.requires_grad


def test_elements_may_be_written_once_no_view_is_left(device: str) -> None:
    x = gn.tensor(np.array([1.0, 2.0, 3.0]), device=device, requires_grad=True)
    y = gn.zeros(3, dtype=gn.float64, device=device)
    y[0] = x[0]
    for i in (1, 2):
        y[i : i + 1] = x[i] + y[i - 1 : i]
    y.sum().backward()
    assert x.grad is not None and x.grad.tolist() == [3.0, 2.0, 1.0]
    y = gn.zeros(3, dtype=gn.float64, device=device)
    views = [y[i:] for i in range(100)]
    del views[1:]
    with pytest.raises(GradientError, match="shares memory with another one"):
        y[1] = x[1]
    views.clear()
    y[1] = x[1]
    assert y.tolist() == [0.0, 2.0, 0.0]


def test_a_view_that_the_tape_needs_stands_in_the_way_of_a_write() -> None:
    x = gn.tensor([1.0, 2.0], requires_grad=True)
    y = gn.zeros(2)
    y[0] = x[0]
    z = y[:1] * x[1:]  # whose derivative needs y[:1]
    with pytest.raises(GradientError, match="shares memory with another one"):
        y[1:] = z


def test_in_place_on_shared_memory_is_refused() -> None:
    x = leaf(np.ones(4))
    y = x * 2.0
    view = y.reshape(2, 2)
    with pytest.raises(GradientError, match="shares memory with another"):
        y += 1.0
    with pytest.raises(GradientError, match="shares memory with another"):
        view += 1.0


def test_in_place_off_the_tape_writes_to_the_memory() -> None:
    a = np.zeros((2, 3))
    x = gn.asarray(a)
    x += 1.0
    x[0] = gn.asarray(np.array([5.0, 6.0, 7.0]))
    x[:, gn.asarray([2, 0])] *= 2.0
    np.testing.assert_array_equal(a, [[10.0, 6.0, 14.0], [2.0, 1.0, 2.0]])
    with pytest.raises(DTypeError, match="add"):
        y = gn.arange(3)
        y += 0.5
    with pytest.raises(ShapeError, match="add"):
        x += gn.ones((4, 2, 3))
    with pytest.raises(DeviceError, match="different devices"):
        x += gn.ones(3, device="strict")


def test_truncated_backpropagation_through_time_keeps_no_past() -> None:
    gc.disable()
    try:
        w = leaf(0.5)
        state = gn.zeros((), dtype=gn.float64)
        states = []
        for _ in range(3):
            state = gn.tanh(state.detach() * w + 1.0)
            states.append(weakref.ref(state))
        assert [s() is None for s in states] == [True, True, False]
    finally:
        gc.enable()


def test_in_place_results_may_be_written_to_again() -> None:
    x = leaf([1.0, 2.0])
    y = gn.exp(x)
    y += 1.0
    y *= y
    gn.log(y).sum().backward()
    a = np.exp([1.0, 2.0])
    np.testing.assert_allclose(x.grad.numpy(), 2 * a / (a + 1))
    v = x * 1.0
    v += 1.0
    s = (v * v).sum()
    v.detach()[0] = 5.0
    with pytest.raises(GradientError, match="changed in place"):
        s.backward()


def test_results_that_share_memory_are_known_to() -> None:
    """NumPy returns views from these, or the array itself."""
    for view in (gn.real, gn.linalg.diagonal, lambda c: gn.Tensor(c)):
        c, w = gn.ones((2, 2)), gn.tensor(1.0, requires_grad=True)
        y = view(c) * w
        c += 5.0
        with pytest.raises(GradientError, match="changed in place"):
            y.sum().backward()
    c = gn.ones((2, 2))
    copied = gn.einsum("ij->ji", c)
    c += 5.0
    assert copied.numpy().tolist() == [[1.0, 1.0], [1.0, 1.0]]


def test_what_was_read_as_a_copy_does_not_forbid_writing() -> None:
    x = leaf(np.ones(3))
    y = x * 1.0
    for i in (1, 2):
        y[i] = y[i - 1] * 2.0
    y[[0, 1]] += x[:2]
    y.sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), [8.0, 1.0, 0.0])


def test_indices_may_be_changed_after_they_were_used() -> None:
    for i in (gn.asarray([0, 1]), np.array([0, 1])):
        x = leaf(np.zeros(3))
        y, z = x[i], x * 1.0
        z[i] = 0.0
        i += 1
        (y.sum() + z.sum()).backward()
        np.testing.assert_array_equal(x.grad.numpy(), [1.0, 1.0, 1.0])


def test_equal_indices() -> None:
    x = leaf(np.zeros((2, 2)))
    x[(0, 0), (1, 1)].sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), [[0.0, 2.0], [0.0, 0.0]])
    y, v = leaf(np.zeros(3)) * 1.0, leaf([1.0, 2.0])
    y[[0, 0]] = v
    (y * y).sum().backward()
    np.testing.assert_array_equal(v.grad.numpy(), [0.0, 4.0])  # the first was overwritten


@pytest.mark.parametrize("create_graph", [False, True])
def test_gradients_have_memory_of_their_own(create_graph: bool) -> None:
    for seed in (np.array([1.0, 1.0]), gn.asarray(np.array([1.0, 1.0]))):
        a, b, c = leaf([1.0, 2.0]), leaf([1.0, 2.0]), leaf(3.0)
        y = a + b + c
        y.backward(seed, create_graph=create_graph)
        (c * 1.0).backward(create_graph=create_graph)  # adds up a 0-d gradient
        for t in (a, b, c):
            with gn.no_grad():
                t.grad += 5.0
        assert a.grad.numpy().tolist() == b.grad.numpy().tolist() == [6.0, 6.0] and c.grad.item() == 8.0
        assert np.asarray(seed).tolist() == [1.0, 1.0]
        a, b = leaf([1.0]), leaf([1.0])
        ga, gb = gn.grad((a + b).sum(), [a, b], create_graph=create_graph)
        ga += 1.0
        assert gb.item() == 1.0


def test_grad_does_not_use_up_what_its_inputs_came_from() -> None:
    x = leaf(3.0)
    y = x * x
    z = y * y
    assert gn.grad(z, y).item() == 18.0
    y.backward()
    assert x.grad.item() == 6.0


def test_float16_gradients_are_added_up_in_float32() -> None:
    ones = gn.ones((5000, 2), dtype=gn.float16)
    a, b, c = (gn.tensor(np.zeros(s, np.float16), requires_grad=True) for s in (2, 2, (5000, 2)))
    y = gn.nn.functional.linear(ones, gn.ones((2, 2), dtype=gn.float16), b) + a + c
    y.backward(ones)
    assert a.grad.numpy().tolist() == b.grad.numpy().tolist() == [5000.0, 5000.0]


@op
def _both(xp, x):
    return xp.exp(x), xp.sin(x)


@_both.vjp
def _(xp, g, y, x):
    return (0.0 if g[0] is None else g[0] * y[0]) + (0.0 if g[1] is None else g[1] * xp.cos(x) + 0.0 * y[1])


def test_several_outputs_that_the_derivative_needs() -> None:
    check_gradients(lambda x: _both(x), [np.array([0.3, -0.2])])
    x = leaf([1.0])
    y, z = _both(x)
    with gn.no_grad():
        y += 1.0
    with pytest.raises(GradientError, match="its output.*changed in place"):
        z.sum().backward()


def test_one_no_grad_in_several_threads() -> None:
    inside, leave = threading.Event(), threading.Event()
    seen = []

    @gn.no_grad()
    def f(depth: int) -> None:
        if depth:
            f(depth - 1)
            seen.append(gn.is_grad_enabled())
        else:
            inside.set()
            leave.wait(5)

    thread = threading.Thread(target=f, args=(1,))
    thread.start()
    inside.wait(5)

    worker = threading.Thread(target=f, args=(0,))  # enters after the other thread, and leaves at any time
    worker.start()
    worker.join(0.05)
    leave.set()
    thread.join()
    worker.join()
    assert seen == [False] and gn.is_grad_enabled()


def test_threads_that_share_a_leaf_lose_no_gradient() -> None:
    x = leaf(np.zeros(30_000))

    def work() -> None:
        for _ in range(200):
            (x * 1.0).sum().backward()

    threads = [threading.Thread(target=work) for _ in range(4)]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for t in threads:
            t.start()
        for t in threads:
            t.join()
    finally:
        sys.setswitchinterval(before)
    np.testing.assert_array_equal(x.grad.numpy(), np.full(30_000, 800.0))


def test_gradients_that_no_one_else_holds_are_not_copied() -> None:
    x, w = gn.ones((4, 3)), gn.asarray(np.ones((3, 2)).T).requires_grad_()
    assert w.data.flags.f_contiguous
    gn.nn.functional.linear(x.astype("float64"), w).sum().backward()
    gradient = w.grad.data
    assert gradient.base is not None and gradient.base.base is None  # a view of the product that made it
    assert gradient.strides == w.data.strides
    np.testing.assert_array_equal(gradient, np.full((2, 3), 4.0))


def test_a_gradient_that_is_part_of_another_array_or_held_elsewhere_is_copied() -> None:
    held = np.ones((2, 3))

    @op
    def passing(xp, x, *, whole):
        return x + 0.0

    @passing.vjp
    def _(xp, g, _y, _x, *, whole):
        return held.T if whole else np.ones((6, 6))[:3, :2]

    for whole in (True, False):
        x = gn.tensor(np.ones((3, 2)), requires_grad=True)
        passing(x, whole=whole).sum().backward()
        assert x.grad.data.base is None and not np.shares_memory(x.grad.data, held)


@pytest.mark.parametrize("link", ["y * y", "gn.sin(y)", "gn.matmul(y, y)", "gn.nn.functional.linear(y, y)"])
def test_backward_lets_go_of_what_it_has_used(link: str) -> None:
    """While a node's gradients are computed, the values of the nodes made after it are gone."""
    made: list[weakref.ref] = []
    alive: list[int] = []

    @op
    def watch(xp, x):
        y = x + 0.0
        made.append(weakref.ref(y))
        return y

    @watch.vjp
    def _(xp, g, _y, _x):
        alive.append(sum(y() is not None for y in made))
        return g * 1.0

    y = gn.tensor(np.full((2, 2), 0.5), requires_grad=True)
    for _ in range(5):
        y = eval(link, {"gn": gn, "y": watch(y)})
    loss = y.sum()
    del y
    loss.backward()
    assert alive == [4, 3, 2, 1, 0]


def test_writes_before_the_forward_pass_do_not_matter_and_later_ones_do() -> None:
    x, y = leaf([1.0, 2.0]), leaf([3.0, 4.0])
    with gn.no_grad():
        y += 1.0
    (x * y).sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), [4.0, 5.0])
    for combine in (operator.mul, operator.truediv, gn.matmul):
        z = combine(x, y).sum()
        with gn.no_grad():
            y += 1.0
        with pytest.raises(GradientError, match="changed in place"):
            z.backward()


def test_operators_that_meet_numbers_and_arrays() -> None:
    x = leaf([2.0, 4.0])
    for result, expected in (
        (8.0 - x, [6.0, 4.0]), (8.0 / x, [4.0, 2.0]), (1 + x, [3.0, 5.0]), (2 * x, [4.0, 8.0]),
        (x - 1, [1.0, 3.0]), (np.array([1.0, 1.0]) + x, [3.0, 5.0]), (np.float64(3.0) * x, [6.0, 12.0]),
    ):  # fmt: skip
        assert isinstance(result, gn.Tensor) and result.requires_grad
        np.testing.assert_array_equal(result.detach().numpy(), expected)
    with pytest.raises(TypeError):
        x + "text"


def test_writing_in_place_keeps_the_type(device: str) -> None:
    x = gn.tensor(np.ones(3, np.float32), device=device, requires_grad=True)
    w = gn.tensor(np.full(3, 2.0), device=device, requires_grad=True)
    y = x * 1.0
    y *= w
    assert y.dtype == gn.float32
    y.sum().backward()
    assert x.grad is not None and x.grad.dtype == gn.float32 and x.grad.tolist() == [2.0] * 3
    assert w.grad is not None and w.grad.dtype == gn.float64 and w.grad.tolist() == [1.0] * 3
    z = x * 1.0
    with pytest.raises(DTypeError, match="multiply: cannot write a result of complex128 to an array of float32"):
        z *= gn.tensor(np.ones(3, complex), device=device, requires_grad=True)


def test_only_what_a_derivative_needs_is_kept(device: str) -> None:
    """x * c, with c a number or without a gradient, does not keep x."""
    x = gn.tensor(np.ones(4), device=device, requires_grad=True)
    for c in (2.0, gn.asarray(np.full(4, 2.0), device=device)):
        inner = x + 1.0
        kept = weakref.ref(inner)
        y = inner * c
        del inner
        assert kept() is None
        (g,) = gn.grad(y.sum(), [x], create_graph=True)
        assert g.tolist() == [2.0] * 4
    inner = x + 1.0
    kept = weakref.ref(inner)
    y = inner * x
    del inner
    assert kept() is not None
