import contextlib
import gc
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import gpunet as gn
from gpunet.data import DataLoader, Dataset, TensorDataset
from gpunet.errors import ShapeError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="workers fork on Linux only")


class Calls(Dataset):
    """Sample i is function(i)."""

    def __init__(self, function, count=12):
        self.function = function
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return self.function(index)


def no_children(within=5.0):
    end = time.monotonic() + within
    while multiprocessing.active_children() and time.monotonic() < end:
        time.sleep(0.01)
    return multiprocessing.active_children() == []


def test_work_is_done_elsewhere_and_the_processes_end():
    pids = np.concatenate([b.numpy() for b in DataLoader(Calls(lambda i: os.getpid()), num_workers=2)])
    assert os.getpid() not in pids and len(set(pids.tolist())) == 2
    assert no_children(0)


def test_persistent_workers_stay_and_end_with_the_loader():
    loader = DataLoader(Calls(lambda i: os.getpid()), 3, num_workers=1, persistent_workers=True)
    first, second = ({int(b.numpy()[0]) for b in loader} for _ in range(2))
    assert first == second and len(multiprocessing.active_children()) == 1
    del loader
    gc.collect()
    assert no_children()


def test_abandoned_iterators_leave_no_process():
    loader = DataLoader(Calls(lambda i: time.sleep(0.01) or i), num_workers=2, persistent_workers=True)
    for _ in loader:
        break
    assert no_children()
    batches = iter(loader)
    next(batches)
    del batches
    assert no_children()


def fail(index):
    if index == 7:
        raise KeyError(f"no sample {index}")
    return index


def test_an_exception_arrives_in_its_turn_with_type_and_traceback():
    seen = []
    with pytest.raises(KeyError, match="no sample 7") as caught:
        for batch in DataLoader(Calls(fail), 2, num_workers=2):
            seen.append(batch.numpy().tolist())
    assert seen == [[0, 1], [2, 3], [4, 5]]
    text = str(caught.value.__cause__)
    assert "In DataLoader worker process" in text and "in fail" in text and 'raise KeyError(f"no sample' in text
    assert no_children()


class Awkward(Exception):
    def __init__(self, a, b):
        super().__init__(f"{a} and {b}")


def awkward(index):
    raise Awkward(1, 2)


def test_an_exception_that_cannot_be_pickled():
    with pytest.raises(RuntimeError, match="Awkward: 1 and 2") as caught:
        list(DataLoader(Calls(awkward), num_workers=1))
    assert "in awkward" in str(caught.value.__cause__)


def test_a_batch_that_cannot_be_pickled():
    loader = DataLoader(Calls(lambda i: i), num_workers=1, collate_fn=lambda samples: lambda: samples)
    with pytest.raises(Exception, match="pickle"):
        list(loader)


def test_collation_errors_name_samples():
    with pytest.raises(ShapeError, match=r"sample 4 has shape \(4,\), sample 5 has shape \(5,\)"):
        list(DataLoader(Calls(lambda i: np.zeros(max(i, 4))), 4, num_workers=2))


def test_killed_worker():
    def die(index):
        if index == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return index

    with pytest.raises(
        RuntimeError, match=r"worker [01] \(pid \d+\) was killed by SIGKILL, as the kernel does when mem"
    ):
        list(DataLoader(Calls(die), num_workers=2))
    assert no_children()


def test_ctrl_c_is_for_the_main_process_alone():
    """A terminal sends it to all; a worker that died of it would add its own traceback to the main one's."""
    loader = DataLoader(list(range(40)), batch_size=2, num_workers=2)
    batches = iter(loader)
    next(batches), next(batches)  # one from each worker: both have begun
    for process in multiprocessing.active_children():
        os.kill(process.pid, signal.SIGINT)
    assert len(list(batches)) == 18


def test_worker_that_exits():
    def leave(index):
        sys.exit(3)

    with pytest.raises(RuntimeError, match=r"worker 0 \(pid \d+\) ended with exit code 3; num_workers=0 runs"):
        list(DataLoader(Calls(leave), num_workers=1))


def test_idle_persistent_worker_that_was_killed():
    loader = DataLoader(Calls(lambda i: i), num_workers=1, persistent_workers=True)
    list(loader)
    (child,) = multiprocessing.active_children()
    child.kill()
    child.join()
    with pytest.raises(RuntimeError, match="was killed by SIGKILL"):
        list(loader)
    assert len(list(loader)) == 12  # and after that with new ones


def test_timeout():
    loader = DataLoader(Calls(lambda i: time.sleep(60)), num_workers=1, timeout=0.2)
    start = time.monotonic()
    with pytest.raises(TimeoutError, match=r"DataLoader: no batch within the timeout of 0\.2 s"):
        list(loader)
    assert time.monotonic() - start < 5 and no_children()


def test_a_slow_sample_does_not_change_the_order():
    def slow(index):
        time.sleep(0.15 if index == 0 else 0)
        return index

    batches = [b.numpy().tolist() for b in DataLoader(Calls(slow), num_workers=3)]
    assert batches == [[i] for i in range(12)]


def test_batches_that_are_kept_keep_their_values():
    dataset = Calls(lambda i: (np.full((64, 64), i), np.float32(i)), count=40)
    batches = list(DataLoader(dataset, 2, num_workers=2))
    gc.collect()
    for number, (x, y) in enumerate(batches):
        assert y.numpy().tolist() == [2 * number, 2 * number + 1]
        assert np.all(x.numpy() == y.numpy()[:, None, None])


def test_batches_can_be_written_to():
    for x in DataLoader(TensorDataset(np.zeros((8, 3))), 4, num_workers=1):
        x[0].numpy()[...] += 1
        assert x[0].numpy().sum() == 12


def mapped_blocks():
    with open("/proc/self/maps") as maps:
        return sum("gpunet-batch" in line for line in maps)


def test_shared_memory_is_reused_and_given_back():
    loader = DataLoader(TensorDataset(np.zeros((400, 1000))), 4, num_workers=2)
    descriptors = len(os.listdir("/proc/self/fd"))
    most = 0
    for _batch in loader:
        most = max(most, mapped_blocks())
    # At most, each of the 2 workers has made all of the 4 batches under way and the 2 that the loop holds and gets.
    assert 0 < most <= 2 * (4 + 2)
    del _batch
    gc.collect()
    assert mapped_blocks() == 0
    assert len(os.listdir("/proc/self/fd")) <= descriptors


def test_batches_of_varying_size():
    def collate(samples):
        return np.arange(1000 * samples[0])

    batches = list(DataLoader(Calls(lambda i: (i * 7) % 12), num_workers=2, collate_fn=collate))
    assert [len(b) for b in batches] == [1000 * ((i * 7) % 12) for i in range(12)]
    assert all(np.array_equal(b.numpy(), np.arange(len(b))) for b in batches)


def test_blocks_of_batches_without_arrays_are_used_again():
    def collate(samples):
        return np.zeros(10_000) if samples[0] % 2 else ["text"]

    most = 0
    for batch in DataLoader(Calls(lambda i: i, count=200), num_workers=1, collate_fn=collate):
        most = max(most, mapped_blocks())
        assert isinstance(batch, list) or batch.shape == (10_000,)
    assert 0 < most <= 4


def test_without_anonymous_shared_memory(monkeypatch):
    monkeypatch.delattr(os, "memfd_create")
    x = np.random.default_rng(0).random((50, 1000))
    loader = DataLoader(TensorDataset(x, np.arange(50)), 10, num_workers=2)
    batches = list(loader)
    assert mapped_blocks() == 0
    np.testing.assert_array_equal(np.concatenate([a.numpy() for a, _ in batches]), x)
    batches[0][0].numpy()[0] = 0  # writable


def test_big_results_and_big_tasks_do_not_block_each_other():
    text = "x" * 100_000  # in the pickled part, more than a pipe holds
    loader = DataLoader(
        Calls(lambda i: i, count=400_000), 100_000, num_workers=2, collate_fn=lambda samples: [text] * 10
    )
    assert len(list(loader)) == 4


def test_spawn():
    x = np.random.default_rng(0).random((20, 3))
    loader = DataLoader(TensorDataset(x), 5, num_workers=1, start_method="spawn")
    np.testing.assert_array_equal(np.concatenate([a.numpy() for (a,) in loader]), x)


def test_other_generators_differ_between_batches_and_not_with_the_number_of_workers():
    dataset = Calls(lambda i: (random.random(), np.random.random()))
    first, second = (
        [leaf.numpy()[0] for batch in DataLoader(dataset, num_workers=n, seed=5) for leaf in batch] for n in (1, 3)
    )
    assert first == second and len(set(first)) == 24


def test_workers_start_from_any_thread():
    with ThreadPoolExecutor(1) as threads:
        assert len(threads.submit(list, DataLoader(Calls(lambda i: i), num_workers=2)).result()) == 12


def test_workers_leave_the_threads_of_blas_unused():
    threadpoolctl = pytest.importorskip("threadpoolctl")

    def threads(index):
        libraries = [x for x in threadpoolctl.threadpool_info() if x["internal_api"] == "openblas"]
        return max([library["num_threads"] for library in libraries], default=1)

    assert {int(b.numpy()[0]) for b in DataLoader(Calls(threads, 2), num_workers=1)} == {1}


def test_workers_see_no_gpu_and_have_a_stream_per_sample():
    def look(index):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
        return gn.random.uniform((1,)).numpy()

    assert len(list(DataLoader(Calls(look), num_workers=1))) == 12
    assert os.environ.get("CUDA_VISIBLE_DEVICES") != ""


PROGRAM = """
import os, signal, sys, time
from gpunet.data import DataLoader

signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background job would ignore

class Slow:
    def __len__(self): return 1000
    def __getitem__(self, index):
        os.write(1, b"worker %d\\n" % os.getpid())
        time.sleep(0.05)
        return index

loader = DataLoader(Slow(), num_workers=2, persistent_workers={persistent})
for batch in loader:
    os.write(1, b"training\\n")
    {body}
"""


def alive(pid):
    with contextlib.suppress(OSError, IndexError), open(f"/proc/{pid}/stat") as stat:
        return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    return False


@pytest.mark.parametrize(
    ("how", "group", "body", "persistent"),
    [
        (signal.SIGINT, False, "pass", False),  # as from kill -INT
        (signal.SIGINT, True, "pass", True),  # as from a terminal, to all processes
        (signal.SIGINT, True, "time.sleep(60)", False),  # while the loop's body runs
        (signal.SIGTERM, False, "pass", False),
        (signal.SIGKILL, False, "pass", False),
        (None, False, "sys.exit()", True),
        (None, False, "os._exit(0)", False),
    ],
)
def test_no_process_is_left_behind(tmp_path, how, group, body, persistent):
    program = tmp_path / "train.py"
    program.write_text(PROGRAM.format(body=body, persistent=persistent))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        [sys.executable, program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env=environment,
    )  # fmt: skip
    workers = set()
    for line in process.stdout:
        if line.startswith("worker"):
            workers.add(int(line.split()[1]))
        elif how is not None and len(workers) == 2:
            (os.killpg if group else os.kill)(process.pid, how)
            break
    _, errors = process.communicate(timeout=10)
    assert len(workers) == 2
    if how == signal.SIGINT:
        assert errors.count("Traceback") == 1 and errors.rstrip().endswith("KeyboardInterrupt"), errors
    end = time.monotonic() + 10
    while any(map(alive, workers)) and time.monotonic() < end:
        time.sleep(0.02)
    left = [pid for pid in workers if alive(pid)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert left == []
