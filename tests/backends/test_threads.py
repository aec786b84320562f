"""Products on several threads."""

from __future__ import annotations

import os
import threading
import time
import weakref
from functools import partial

import numpy as np
import pytest

import gpunet as gn
from gpunet.backends import threads
from gpunet.backends.native import library

rng = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def two_threads():
    before = gn.get_num_threads()
    gn.set_num_threads(2)
    yield
    gn.set_num_threads(before)


SHAPES = {
    "tall": ((4001, 63), (63, 65)),
    "wide": ((64, 300), (300, 1001)),
    "batch": ((7, 128, 128), (7, 128, 128)),
    "one matrix for a batch": ((5, 200, 200), (200, 200)),
    "vector": ((3000, 3000), (3000,)),
    "small": ((3, 4), (4, 5)),
}


@pytest.mark.parametrize("name", SHAPES)
def test_products_are_numpys(name: str) -> None:
    a, b = (rng.standard_normal(s) for s in SHAPES[name])
    np.testing.assert_allclose(threads.matmul(a, b), np.matmul(a, b), rtol=1e-10, atol=1e-12)


def test_transposed_views_and_out() -> None:
    a, b = rng.standard_normal((300, 2000)).T, rng.standard_normal((100, 300)).T
    out = np.full((2000, 200), np.nan)
    got = threads.matmul(a, b, out=out[:, ::2])
    np.testing.assert_allclose(out[:, ::2], a @ b, rtol=1e-10, atol=1e-12)
    assert np.shares_memory(got, out) and np.isnan(out[:, 1::2]).all()


def test_large_products_are_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = set()
    real = np.matmul

    def spy(a, b, out=None):
        seen.add(threading.current_thread().name)
        return real(a, b, out=out)

    waiting = threading.Barrier(2, timeout=10)

    def meet(*args, **kwargs):
        waiting.wait()  # passes only if two threads are in a product at the same time
        return spy(*args, **kwargs)

    monkeypatch.setattr(threads.np, "matmul", meet)
    threads.matmul(np.ones((1000, 100)), np.ones((100, 100)))
    assert len(seen) == 2


def test_errors_come_back_from_the_threads() -> None:
    def fail() -> None:
        raise ZeroDivisionError("part")

    for parts in ([fail, lambda: None], [lambda: None, fail]):
        with pytest.raises(ZeroDivisionError, match="part"):
            threads.pool().run(parts)
    with pytest.raises(ValueError, match="matmul"):
        threads.matmul(np.ones((5000, 50)), np.ones((51, 50)))


def test_a_part_may_have_parts() -> None:
    done: list[int] = []
    inner = [lambda: done.append(1)] * 3
    threads.pool().run([lambda: threads.pool().run(inner)] * 4)
    assert len(done) == 12


def test_many_callers_share_the_threads() -> None:
    a, b = rng.standard_normal((2000, 70)), rng.standard_normal((70, 70))
    expected = threads.matmul(a, b)
    wrong = []

    def work() -> None:
        for _ in range(20):
            if not np.array_equal(threads.matmul(a, b), expected):
                wrong.append(1)

    callers = [threading.Thread(target=work) for _ in range(4)]
    for c in callers:
        c.start()
    for c in callers:
        c.join()
    assert not wrong


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_works_alone() -> None:
    threads.matmul(np.ones((1000, 100)), np.ones((100, 100)))
    child = os.fork()
    if child == 0:
        right = gn.get_num_threads() == 1 and threads.matmul(np.ones((1000, 100)), np.ones((100, 100))).sum() == 1e7
        os._exit(0 if right else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_set_num_threads() -> None:
    gn.set_num_threads(3)
    assert gn.get_num_threads() == 3
    for bad in (0, -1, 1.5, "two"):
        with pytest.raises(ValueError, match="set_num_threads: expected a positive int"):
            gn.set_num_threads(bad)


def test_a_closed_pool_still_runs_its_parts() -> None:
    """Another thread may change the number of threads between getting the pool and using it."""
    pool, done = threads.Pool(3), []
    pool.close()
    runner = threading.Thread(target=pool.run, args=([lambda i=i: done.append(i) for i in range(4)],), daemon=True)
    runner.start()
    runner.join(5)
    assert done == [0, 1, 2, 3]


def test_shares_are_consecutive_and_their_results_in_order() -> None:
    gn.set_num_threads(3)
    assert threads.spread(list, range(8)) == [[0, 1], [2, 3, 4], [5, 6, 7]]
    assert threads.spread(list, [5]) == [[5]] and threads.spread(list, []) == [[]]
    nested = threads.spread(lambda share: threads.spread(sum, share), range(6))
    assert nested == [[0 + 1], [2 + 3], [4 + 5]]  # a share is done on one thread


def test_convolution_is_the_same_at_every_run_and_nearly_on_any_number_of_threads() -> None:
    x, w = (gn.asarray(rng.standard_normal(s)) for s in ((40, 8, 32, 32), (16, 8, 3, 3)))
    results = []
    for n in (1, 2, 2, 3):
        gn.set_num_threads(n)
        a, b = gn.tensor(x, requires_grad=True), gn.tensor(w, requires_grad=True)
        y = gn.nn.functional.conv2d(a, b, padding=1)
        (y * y).sum().backward()
        results.append([y.detach().numpy(), a.grad.numpy(), b.grad.numpy()])
    for one, two, again, three in zip(*results):
        np.testing.assert_array_equal(two, again)
        np.testing.assert_allclose(two, one, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(three, one, rtol=1e-9, atol=1e-9)


# --- the crew: threads without Python

with_kernels = pytest.mark.skipif(not library("elementwise").usable(), reason="needs a C++ compiler")


def negate_some(n: int, parts: int) -> np.ndarray:
    """relu of n numbers, by so many parts."""
    x = np.where(np.arange(n) % 2, -1.0, np.arange(n)).astype(np.float32)
    y = np.full_like(x, np.nan)
    library("elementwise").relu.divided(x, y, n, parts, True)
    np.testing.assert_array_equal(y, np.maximum(x, 0))
    return y


@with_kernels
@pytest.mark.parametrize("members", [0, 1, 3])
def test_the_crew_does_every_part_once(members: int) -> None:
    threads._enlist(members)
    for n, parts in [(0, 1), (1, 1), (5, 3), (1000, 7), (100_000, 2), (100_000, 1000)] * 5:
        negate_some(n, parts)


@with_kernels
def test_the_crew_changes_its_size_and_wakes_up() -> None:
    for members in (2, 0, 4, 1, 3, 0, 1):
        threads._enlist(members)
        negate_some(200_000, 8)
        time.sleep(0.002)  # they fall asleep
        negate_some(200_000, 8)


@with_kernels
def test_many_callers_of_the_crew() -> None:
    threads._enlist(2)
    errors: list[BaseException] = []

    def call() -> None:
        try:
            for _ in range(50):
                negate_some(20_000, 4)
        except BaseException as error:
            errors.append(error)

    callers = [threading.Thread(target=call) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not errors


@with_kernels
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_forked_child_has_a_crew_of_its_own() -> None:
    threads._enlist(1)
    negate_some(200_000, 4)
    child = os.fork()
    if child == 0:
        negate_some(200_000, 4)  # alone
        threads._enlist(2)
        negate_some(200_000, 8)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    negate_some(200_000, 4)


@with_kernels
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_middle_products_are_divided_too(dtype: type) -> None:
    for m, k, n in [(64, 784, 128), (784, 64, 130), (333, 129, 77)]:
        a, b = rng.standard_normal((m, k)).astype(dtype), rng.standard_normal((k, n)).astype(dtype)
        expected = a.astype(np.float64) @ b
        for left in (a, np.asfortranarray(a), np.repeat(a, 2, axis=1)[:, ::2]):
            for right in (b, np.asfortranarray(b)):
                np.testing.assert_allclose(threads.matmul(left, right), expected, rtol=0, atol=2e-4)
                out = np.empty((m, n), dtype)
                assert threads.matmul(left, right, out=out) is out
                np.testing.assert_allclose(out, expected, rtol=0, atol=2e-4)


def test_idle_threads_hold_no_arrays() -> None:
    pool = threads.Pool(2)
    array = np.ones(3)
    held = weakref.ref(array)
    pool.run([partial(np.sum, array), partial(np.sum, array)])
    del array
    deadline = time.monotonic() + 5
    while held() is not None and time.monotonic() < deadline:
        time.sleep(0.01)  # the other thread may be about to let go of it
    assert held() is None
    pool.close()
