"""The emulated device: its arrays, what kernels see, what it refuses."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gpunet as gn
from gpunet.backends import Device, get_backend, host_compiler
from gpunet.backends.emulated import EmulatedArray, EmulatedLauncher, compiler, emulation, prebuild
from gpunet.backends.kernel import Variant
from gpunet.errors import DeviceError, KernelError

FOLDER = Path(__file__).parent / "right"
EMULATED = Device("emulated")
LAUNCHER = EmulatedLauncher()
THREADS = {"indices": 64, "sums<64>": 64, "sums<1024>": 1024, "votes": 40, "atomics": 64, "chain": 128, "state": 64}
THREADS |= {
    "addresses": 32,
    "conversions": 256,
    "functions": 1,
    "order": 4,
    "large_locals": 64,
    "parameters": 1,
    "stop": 32,
}


@pytest.fixture(scope="module", autouse=True)
def built() -> None:
    prebuild([Variant("cuda", name, 1) for name in THREADS], folder=FOLDER)


def on_device(array: Any) -> Any:
    return get_backend(EMULATED).from_numpy(np.asarray(array), EMULATED)


def launch(
    name: str, *parameters: Any, grid: tuple[int, int, int] = (1, 1, 1), shared: int = 0, **options: Any
) -> None:
    """Launch a kernel of right/cuda.cu; arrays are passed as pointers, NumPy's scalars as what they are."""
    raw = [np.uintp(LAUNCHER.pointer(p)) if isinstance(p, EmulatedArray) else p for p in parameters]
    with emulation(folder=FOLDER, **options):
        LAUNCHER.launch(Variant("cuda", name, THREADS[name], shared), grid, *(p.tobytes() for p in raw))


# --- arrays


def test_arrays_are_of_a_class_of_their_own_and_copied() -> None:
    backend = get_backend(EMULATED)
    host = np.arange(6.0).reshape(2, 3).T
    x = backend.from_numpy(host, EMULATED)
    assert type(x) is EmulatedArray and backend.device_of(x) == EMULATED
    assert x.strides == host.strides and LAUNCHER.pointer(x) % 64 == 0  # layouts survive
    host[0, 0] = 99
    back = backend.to_numpy(x)
    assert type(back) is np.ndarray and back[0, 0] == 0
    back[0, 0] = 98
    assert x[0, 0] == 0


def test_new_arrays_are_poisoned_and_aligned() -> None:
    for dtype in (np.float16, np.float32, np.float64):
        x = LAUNCHER.empty((3, 5), dtype)
        assert np.isnan(x).all() and x.flags.c_contiguous and LAUNCHER.pointer(x) % 64 == 0
    assert LAUNCHER.empty((0, 3), np.float32).shape == (0, 3)
    assert LAUNCHER.empty((), np.int32) == -1


def test_what_ops_return_is_on_the_device() -> None:
    x = gn.asarray(np.arange(6.0).reshape(2, 3), device="emulated")
    for y in (x + 1, x.sum(), x[0], x[0, 1], gn.exp(x), gn.unstack(x)[1], gn.zeros((2,), device="emulated"), x.T):
        assert y.device == EMULATED and type(y.data) is EmulatedArray
    assert type(gn.matmul(x, x.T).numpy()) is np.ndarray
    assert (x * x).sum().item() == 55


def test_moving_between_devices() -> None:
    x = gn.asarray(np.arange(3.0))
    there = x.to("emulated")
    assert there.device == EMULATED and there.cpu().device == "cpu" and type(there.cpu().data) is np.ndarray
    assert gn.asarray(there, device="cpu").tolist() == [0, 1, 2]


def test_views_are_told_from_copies() -> None:
    x = on_device(np.arange(6.0))
    assert x.base is None and (x + 1).base is None and x[[0, 1]].base is None and x.copy().base is None
    assert x[1:].base is x and x.reshape(2, 3).T.base is x


def test_gradients() -> None:
    def loss(device: str) -> np.ndarray:
        w = gn.asarray(np.arange(6, dtype=np.float32).reshape(2, 3), device=device).requires_grad_()
        x = gn.asarray(np.ones((4, 2), dtype=np.float32), device=device)
        (gn.matmul(x, w) ** 2).sum().backward()
        assert w.grad is not None
        return w.grad.numpy()

    np.testing.assert_array_equal(loss("emulated"), loss("cpu"))


def test_numpy_arrays_do_not_mix_in() -> None:
    x = gn.asarray(np.ones(3), device="emulated")
    with pytest.raises(DeviceError, match=r"a NumPy array of shape \(3,\) met arrays on the emulated device"):
        gn.add(x.data, np.ones(3))
    with pytest.raises(DeviceError):
        x + gn.ones(3, device="cpu")


def test_it_is_not_offered() -> None:
    assert "emulated" not in " ".join(gn.available_devices())


def test_importing_gpunet_does_not_import_it() -> None:
    code = "import sys, gpunet; sys.exit(any(name.startswith('gpunet.backends.emulated') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# --- what kernels see


def orders() -> list[dict[str, Any]]:
    return [{"order": "forward"}, {"order": "reverse"}, *({"order": "random", "seed": seed} for seed in range(3))]


def test_indices() -> None:
    y = LAUNCHER.empty((12, 64), np.int32)
    launch("indices", y, grid=(3, 2, 2))
    np.testing.assert_array_equal(y, np.arange(12)[:, None] * 1000 + np.arange(64) + 10000)


@pytest.mark.parametrize("options", orders(), ids=str)
@pytest.mark.parametrize("threads", [64, 1024])
def test_shared_memory_barriers_and_shuffles(threads: int, options: dict[str, Any]) -> None:
    x = np.random.default_rng(0).integers(0, 100, (5, threads - 7)).astype(np.float32)
    y = LAUNCHER.empty((5,), np.float32)
    launch(f"sums<{threads}>", y, on_device(x), np.int32(threads - 7), grid=(5, 1, 1), shared=4 * threads, **options)
    np.testing.assert_array_equal(y, x.sum(1))


@pytest.mark.parametrize("options", orders(), ids=str)
def test_votes(options: dict[str, Any]) -> None:
    y = LAUNCHER.empty((10, 40), np.int32)
    launch("votes", y, **options)
    t = np.arange(40)
    lane, whole = t % 32, t < 32
    first = t - lane
    threes = [sum(1 << i for i in range(n) if i % 3 == 0) for n in (32, 8)]
    fours = (15 << lane // 4 * 4).astype(np.uint32).astype(np.int32)
    down = np.where(lane % 8 < 6, t + 2, t)
    expected = [
        np.where(whole, threes[0], threes[1]),
        np.ones(40),
        np.where(whole, 0, 1),
        first + 3,
        np.where(lane >= 2, t - 2, t),
        down,
        fours,
        np.full(40, 16),
        np.full(40, 3),
        np.where(lane < np.where(whole, 16, 4), t ^ 3, t ^ 1),
    ]
    np.testing.assert_array_equal(y.view(np.uint32), np.array(expected, dtype=np.int64).astype(np.uint32))


@pytest.mark.parametrize("options", orders(), ids=str)
def test_atomics(options: dict[str, Any]) -> None:
    i, f = on_device(np.array([0, 0, 0, 0, -1, 0, 0, 0, 0], np.int32)), on_device(np.zeros(1, np.float32))
    u = on_device(np.zeros(1, np.uint64))
    launch("atomics", i, f, u, grid=(3, 1, 1), **options)
    everyone = np.arange(192)
    assert i.tolist() == [everyone.sum(), 191, -191, -1, ~31, np.bitwise_xor.reduce(everyone), 384, 0, 192]
    assert f.item() == 96 and u.item() == 192 << 40


@pytest.mark.parametrize("options", orders(), ids=str)
def test_named_barriers(options: dict[str, Any]) -> None:
    y = LAUNCHER.empty((128,), np.int32)
    launch("chain", y, **options)
    assert (y == 1234).all()


def test_state_of_threads_and_blocks() -> None:
    y = LAUNCHER.empty((3, 2, 64), np.int32)
    launch("state", y, grid=(3, 1, 1))
    assert (y[:, 0] == 164).all() and (y[:, 1] == 100 + np.arange(64)).all()


def test_shared_addresses() -> None:
    y = LAUNCHER.empty((32,), np.int32)
    launch("addresses", y, shared=128)
    np.testing.assert_array_equal(y, 2 * np.arange(32) + 4)


def test_conversions_of_half() -> None:
    wide, back = LAUNCHER.empty((65536,), np.float32), LAUNCHER.empty((65536,), np.uint16)
    narrow = LAUNCHER.empty((65536,), np.uint16)
    bits = np.random.default_rng(0).integers(0, 1 << 32, 65536, dtype=np.uint32)
    near = np.nan_to_num(np.arange(65536, dtype=np.uint16).view(np.float16).astype(np.float32), posinf=7e4, neginf=-7e4)
    x = np.where(np.arange(65536) % 2, bits.view(np.float32), near * np.float32(1 + 2**-11))
    launch("conversions", wide, back, narrow, on_device(x), grid=(256, 1, 1))
    halves = np.arange(65536, dtype=np.uint16)
    np.testing.assert_array_equal(wide, halves.view(np.float16).astype(np.float32))
    numbers = ~np.isnan(halves.view(np.float16))
    np.testing.assert_array_equal(back[numbers], halves[numbers])
    assert (back[~numbers] == 0x7FFF).all()
    with np.errstate(over="ignore", invalid="ignore"):
        expected = x.astype(np.float16)
    np.testing.assert_array_equal(narrow[~np.isnan(x)], expected.view(np.uint16)[~np.isnan(x)])


def test_functions() -> None:
    y, f = LAUNCHER.empty((10,), np.uint32), LAUNCHER.empty((7,), np.float32)
    launch("functions", y, f, architecture="sm_86")
    assert y.tolist() == [8, 31, 4, 1 << 31, 15, 0x07060100, 3, 0x3F800000, 1616, 860]
    assert f.tolist() == [0.5, 10, 2.5, 3, 1, 5, 0.5]


def test_parameters_are_checked() -> None:
    y = LAUNCHER.empty((1,), np.float64)
    launch("parameters", y, np.int8(1), np.float64(0.25), np.int16(-3))
    assert y.item() == -1.75
    with pytest.raises(KernelError, match=r"parameters: launched with 3 parameters; it takes 4"):
        launch("parameters", y, np.int8(1), np.float64(0.25))
    with pytest.raises(KernelError, match=r"parameter 2 \(counted from 0\) was given as 4 bytes; it has 8"):
        launch("parameters", y, np.int8(1), np.float32(0.25), np.int16(-3))


def test_kernels_may_have_large_arrays_of_their_own() -> None:
    y = LAUNCHER.empty((64,), np.float32)
    launch("large_locals", y)
    assert y[0] == np.arange(4096, dtype=np.float32).sum()


# --- options


def test_orders() -> None:
    def ran(**options: Any) -> list[int]:
        y = on_device(np.zeros(101, np.int32))
        launch("order", y, grid=(3, 1, 1), **options)
        assert y[100] == options.get("late", False)
        return y[1:13].tolist()

    forward = [block * 10 + thread for block in range(3) for thread in range(4)]
    assert ran() == forward
    assert ran(order="reverse", late=True) == forward[::-1]
    assert ran(order="random", seed=1) == ran(order="random", seed=1) != ran(order="random", seed=2)
    assert sorted(ran(order="random", seed=1)) == forward


def test_emulation_nests_and_ends() -> None:
    log: list[Any] = []
    assert LAUNCHER.architecture == "sm_90a" and LAUNCHER.processors == 4
    with emulation(architecture="sm_80", processors=2):
        assert LAUNCHER.architecture == "sm_80" and LAUNCHER.processors == 2
        with emulation(), pytest.raises(ZeroDivisionError):
            assert LAUNCHER.architecture == "sm_90a"
            raise ZeroDivisionError
        assert LAUNCHER.architecture == "sm_80"
    y = LAUNCHER.empty((12, 64), np.int32)
    launch("indices", y, grid=(3, 2, 2), log=log)
    assert log == [("indices", (3, 2, 2))]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"architecture": "sm_60"}, "unknown architecture 'sm_60'; known: sm_70, "),
        ({"order": "sideways"}, "expected an order of 'forward', 'reverse', 'random', got 'sideways'"),
    ],
)
def test_emulation_refuses_what_it_does_not_know(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message), emulation(**options):
        pass


# --- errors


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (0, "this is a message"),
        (1, "assertion failed: how > 1"),
        (2, r"__trap\(\)"),
        (3, "a pointer that is none to shared memory is used as one"),
    ],
)
def test_traps(how: int, message: str) -> None:
    y = LAUNCHER.empty((32,), np.float32)
    with pytest.raises(
        KernelError, match=rf"^stop: block \(0, 0, 0\), thread \(7, 0, 0\): {message} \(\w+\.\w+:\d+\)$"
    ):
        launch("stop", y, np.int32(how))
    launch("stop", y, np.int32(9))  # and the device works on
    assert (y == 1).all()


@pytest.mark.parametrize(
    ("variant", "grid", "message"),
    [
        (Variant("cuda", "order", 1025), (1, 1, 1), "1025 threads in a block; a GPU takes 1 to 1024"),
        (Variant("cuda", "order", 4), (1, 65536, 1), r"a grid of \(1, 65536, 1\) blocks"),
        (Variant("cuda", "order", 4), (0, 1, 1), r"a grid of \(0, 1, 1\) blocks"),
        (Variant("cuda", "order", 4, 100 << 10), (1, 1, 1), "102400 bytes of dynamic shared memory; a block of sm_86"),
        (Variant("cuda", "order", 4, requires="sm_90a"), (1, 1, 1), "needs sm_90a; the emulated device is sm_86"),
    ],
)
def test_launches_that_a_gpu_refuses(variant: Variant, grid: tuple[int, int, int], message: str) -> None:
    with emulation(folder=FOLDER, architecture="sm_86"), pytest.raises(KernelError, match=message):
        LAUNCHER.launch(variant, grid)


def test_errors_of_the_compiler_are_short(tmp_path: Path) -> None:
    (tmp_path / "wrong.cu").write_text("__global__ void wrong(int* y) {\n    y[0] = missing;\n}\n")
    with emulation(folder=tmp_path), pytest.raises(KernelError) as error:
        LAUNCHER.launch(Variant("wrong", "wrong", 1), (1, 1, 1), b"12345678")
    first, where, line = str(error.value).splitlines()
    assert "wrong.cu: wrong, for the emulated device, does not compile" in first
    assert where.startswith("  wrong.cu:2: ") and "missing" in where and line == "    y[0] = missing;"


def test_unknown_kernels() -> None:
    with pytest.raises(KernelError, match=r"there is no kernels/nothing\.cu"):
        LAUNCHER.launch(Variant("nothing", "nothing", 1), (1, 1, 1))
    with pytest.raises(KernelError, match=r"there is no nothing\.cu in .*right"), emulation(folder=FOLDER):
        LAUNCHER.launch(Variant("nothing", "nothing", 1), (1, 1, 1))


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch, fresh_compiler: None) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(DeviceError, match=r'device "emulated" needs a C\+\+ compiler, .*: install g\+\+'):
        compiler.require_compiler()


def test_a_named_compiler_comes_first(monkeypatch: pytest.MonkeyPatch, fresh_compiler: None) -> None:
    monkeypatch.setenv("CXX", "g++ -DNAMED")
    assert compiler.require_compiler().command == ("g++", "-DNAMED")


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    host_compiler.find_compiler.cache_clear()
    yield
    host_compiler.find_compiler.cache_clear()


def test_a_sanitizer_needs_its_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUNET_EMULATED_SANITIZE", "thread")
    with pytest.raises(DeviceError, match="LD_PRELOAD=.*libtsan"):
        compiler.sanitizer()
    monkeypatch.setenv("GPUNET_EMULATED_SANITIZE", "memory")
    with pytest.raises(DeviceError, match='expected "address" or "thread"'):
        compiler.sanitizer()


def test_tensor_maps() -> None:
    map = LAUNCHER.tensor_map(4096, 2, (100, 7, 3), (256, 1792), (64, 4, 1))
    assert len(map) == 128
    numbers = np.frombuffer(map, np.uint64)
    assert numbers[:1].tolist() == [4096] and numbers[2:12].tolist() == [100, 7, 3, 0, 0, 2, 256, 1792, 0, 0]
    assert np.frombuffer(map, np.uint32)[[2, 3, 24, 25, 26]].tolist() == [2, 3, 64, 4, 1]
    with pytest.raises(KernelError, match="multiples of 16"):
        LAUNCHER.tensor_map(4096, 2, (100, 7), (200,), (64, 4))
    with pytest.raises(KernelError, match="a box of"):
        LAUNCHER.tensor_map(4096, 2, (100, 7), (256,), (32, 4))


def test_threads_launch_one_after_another() -> None:
    results = [LAUNCHER.empty((5,), np.float32) for _ in range(8)]
    x = on_device(np.ones((5, 64), np.float32))
    with emulation(folder=FOLDER):
        parameters = [np.uintp(LAUNCHER.pointer(x)).tobytes(), np.int32(64).tobytes()]
        variant = Variant("cuda", "sums<64>", 64, 256)

        def work(y: Any) -> None:
            for _ in range(20):
                LAUNCHER.launch(variant, (5, 1, 1), np.uintp(LAUNCHER.pointer(y)).tobytes(), *parameters)

        threads = [threading.Thread(target=work, args=(y,)) for y in results]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert all((y == 64).all() for y in results)


def test_what_numpy_computes_is_written_down() -> None:
    x = gn.ones((4, 6), device="emulated").data
    host: list[str] = []
    with emulation(host=host):
        x.T.reshape(3, 8)[1:].transpose(1, 0)  # views are no work
    assert host == []
    with emulation(host=host):
        y = x + 1
        y[0] = 3.0
        y.sum()
        np.concatenate([x, x])
        with gn.kernels("off"):
            gn.zeros(3, device="emulated")
    assert [name for name in host if name != "copyto"] == ["add", "__setitem__", "add", "concatenate", "zeros"]
