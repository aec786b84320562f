"""The random streams: reproducible, the same on each device, of the right distributions, and really Philox."""

from __future__ import annotations

import copy
import pickle
import threading

import numpy as np
import pytest

import gpunet as gn
from gpunet.errors import DTypeError
from gpunet.ops import random as draw
from gpunet.random import Generator, derive

MASK = 2**64 - 1


def philox(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x64-10 in Python integers, from the paper's definition."""
    for r in range(10):
        if r:
            key = [(key[0] + 0x9E3779B97F4A7C15) & MASK, (key[1] + 0xBB67AE8584CAA73B) & MASK]
        a, b = counter[0] * 0xD2E7470EE14C6C93, counter[2] * 0xCA5A826395121157
        counter = [(b >> 64) ^ counter[1] ^ key[0], b & MASK, (a >> 64) ^ counter[3] ^ key[1], a & MASK]
    return counter


def test_numbers_are_those_of_the_definition() -> None:
    key = draw.Key(seed=12345, stream=(7, 8, 9), offset=1000)
    words = [w for i in range(3) for w in philox([1001 + i, 7, 8, 9], [12345, 0])]
    np.testing.assert_array_equal(draw.host_uniform(key, (12,), "float64"), [(w >> 11) * 2.0**-53 for w in words])
    halves = [h for w in words for h in (w & 0xFFFFFFFF, w >> 32)]
    expected = np.array([(h >> 8) * 2.0**-24 for h in halves], np.float32)
    np.testing.assert_array_equal(draw.host_uniform(key, (3, 8), "float32").ravel(), expected)


def test_known_answer() -> None:
    """The vector that the authors publish for Philox4x64-10 with counter and key of all ones bits."""
    assert philox([MASK] * 4, [MASK] * 2) == [
        0x87B092C3013FE90B, 0x438C3C67BE8D0224, 0x9CC7D7C69CD777B6, 0xA09CAEBF594F0BA0,
    ]  # fmt: skip


DRAWS = {
    "uniform": lambda g, device: g.uniform((3, 5), -1.0, 2.0, device=device),
    "uniform float64": lambda g, device: g.uniform(7, dtype=gn.float64, device=device),
    "uniform float16": lambda g, device: g.uniform(7, dtype=gn.float16, device=device),
    "normal": lambda g, device: g.normal((3, 3), 1.0, 2.0, device=device),
    "normal 0-d": lambda g, device: g.normal(device=device),
    "randint": lambda g, device: g.randint(-3, 4, (10,), device=device),
    "permutation": lambda g, device: g.permutation(11, device=device),
    "bernoulli": lambda g, device: g.bernoulli(0.3, (4, 4), device=device),
}


@pytest.mark.parametrize("name", DRAWS)
def test_same_seed_same_numbers_on_each_device(name: str, device: str) -> None:
    first, second = Generator(5), Generator(5)
    for _ in range(2):
        x, y = DRAWS[name](first, device), DRAWS[name](second, "cpu")
        assert x.device == device and x.dtype == y.dtype
        np.testing.assert_array_equal(x.cpu().numpy(), y.numpy())
    assert not np.array_equal(DRAWS[name](first, "cpu").numpy(), y.numpy())


def test_streams_do_not_overlap() -> None:
    g = Generator(1)
    parts = [g.uniform(n).numpy() for n in (1, 8, 9, 3)]
    assert g.offset == 1 + 1 + 2 + 1
    assert len(np.unique(np.concatenate(parts))) == 21
    draws = [tuple(derive(1, *n).uniform(4).numpy()) for n in [(), (0,), (0, 0), (1,), (1, 0), (0, 1), (0, 0, 1)]]
    assert len({*draws, tuple(Generator(1).uniform(4).numpy())}) == 7  # no numbers is the plain stream


def test_distributions() -> None:
    g = Generator(3)
    n = 200_000
    u = g.uniform(n, -1.0, 3.0).numpy()
    assert u.min() >= -1.0 and u.max() < 3.0 and abs(u.mean() - 1.0) < 0.01 and abs(u.std() - 4 / 12**0.5) < 0.01
    z = g.normal(n, 2.0, 3.0).numpy()
    assert abs(z.mean() - 2.0) < 0.03 and abs(z.std() - 3.0) < 0.03
    assert abs((((z - 2.0) / 3.0) ** 4).mean() - 3.0) < 0.1
    k = g.randint(6, shape=n).numpy()
    assert k.dtype == np.int64 and np.abs(np.bincount(k, minlength=6) / n - 1 / 6).max() < 0.005
    assert abs(g.bernoulli(0.25, n).numpy().mean() - 0.25) < 0.005
    assert sorted(g.permutation(1000).numpy()) == list(range(1000))
    half = g.uniform(n, dtype=gn.float16).numpy()
    assert half.max() < 1.0 and abs(half.mean() - 0.5) < 0.01


def test_manual_seed_and_state() -> None:
    gn.manual_seed(11)
    a = gn.random.normal(5).numpy()
    state = gn.random.generator().state_dict()
    b = gn.random.uniform(5).numpy()
    gn.random.generator().load_state_dict(state)
    np.testing.assert_array_equal(gn.random.uniform(5).numpy(), b)
    gn.manual_seed(11)
    np.testing.assert_array_equal(gn.random.normal(5).numpy(), a)
    assert gn.random.seed() != gn.random.seed()


def test_using_another_stream_in_this_thread() -> None:
    source = Generator(9)
    seen = []
    with gn.random.using(source):
        assert gn.random.generator() is source
        thread = threading.Thread(target=lambda: seen.append(gn.random.generator()))
        thread.start()
        thread.join()
        inner = gn.random.uniform(3).numpy()
    assert gn.random.generator() is not source and seen[0] is not source
    np.testing.assert_array_equal(inner, Generator(9).uniform(3).numpy())


def test_dropout_drops_and_scales(device: str) -> None:
    x = gn.ones((100, 100), device=device)
    y = draw.dropout(x, p=0.25, key=Generator(0).key(x.shape, "float32")).cpu().numpy()
    np.testing.assert_allclose(np.unique(y), [0.0, 1 / 0.75], rtol=1e-6)
    assert abs((y == 0).mean() - 0.25) < 0.02


def test_errors() -> None:
    for bad in (-1, 2**64, 1.5, "x"):
        with pytest.raises(ValueError, match=r"seed: expected an int from 0 to 2\*\*64 - 1"):
            gn.manual_seed(bad)
    with pytest.raises(ValueError, match=r"1 to 2\*\*53 integers from 3"):
        gn.random.randint(3, 3)
    with pytest.raises(DTypeError, match="expected a floating-point dtype, got int64"):
        gn.random.uniform(3, dtype=gn.int64)
    with pytest.raises(ValueError, match="derive: expected up to three ints"):
        derive(0, 1, 2, 3, 4)
    with pytest.raises(ValueError, match="derive"):
        derive(0, -1)


def test_uniform_never_reaches_its_upper_bound() -> None:
    x = gn.random.Generator(0).uniform((100_000,), 1.0, 2.0, dtype=gn.float16)
    assert x.max().item() < 2.0 and x.min().item() >= 1.0


def test_bounds_that_make_no_sense() -> None:
    for call, kind, text in [
        (lambda: gn.random.randint(0, 300, (3,), dtype=gn.uint8), ValueError, "uint8 cannot hold the integers from 0"),
        (lambda: gn.random.randint(0, 2**60), ValueError, r"1 to 2\*\*53 integers"),
        (lambda: gn.random.randint(0, 2.5), TypeError, "integer"),
        (lambda: gn.random.bernoulli(1.5), ValueError, "bernoulli: expected a probability from 0 to 1, got 1.5"),
        (lambda: gn.random.bernoulli(float("nan")), ValueError, "got nan"),
    ]:
        with pytest.raises(kind, match=text):
            call()
    assert gn.random.randint(0, 256, (1000,), dtype=gn.uint8).max().item() > 200


def test_generators_can_be_copied_and_pickled() -> None:
    g = gn.random.derive(np.int64(3), 1, 2)
    g.uniform(np.int64(5))
    for twin in (copy.deepcopy(g), pickle.loads(pickle.dumps(g))):
        assert twin.state_dict() == g.state_dict() and twin.uniform().item() == copy.copy(g).uniform().item()
