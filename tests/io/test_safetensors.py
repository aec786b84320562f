import json
import tracemalloc

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import gpunet as gn
from gpunet import io, nn
from gpunet.errors import DTypeError, FileFormatError
from gpunet.io.safetensors import DTYPES

NUMPY_DTYPES = [name for name in DTYPES.values() if name != "bfloat16"]


def example():
    rng = np.random.default_rng(0)
    arrays = {f"layer.{name}": (rng.standard_normal((3, 4)) * 50).astype(name) for name in NUMPY_DTYPES}
    arrays |= {"scalar": np.array(2.5), "empty": np.zeros((0, 3), np.float32), "übung": np.arange(5)}
    return arrays


@pytest.fixture
def good(tmp_path):
    path = tmp_path / "good.safetensors"
    io.save(path, {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(5, np.uint8)}, metadata={"k": "v"})
    return path


def raw(path, header, body=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)
    return path


def assert_same(a, b):
    assert a.dtype == b.dtype and a.shape == b.shape
    np.testing.assert_array_equal(a, b)


def test_round_trip_of_every_dtype(tmp_path):
    path = tmp_path / "x.safetensors"
    io.save(path, example())
    loaded = io.load(path)
    assert loaded.keys() == example().keys()
    for name, array in example().items():
        assert isinstance(loaded[name], gn.Tensor)
        assert_same(loaded[name].numpy(), array)


def test_library_reads_our_files_and_we_read_its(tmp_path):
    io.save(tmp_path / "ours", example(), metadata={"format": "np"})
    save_file(example(), tmp_path / "theirs", metadata={"format": "np"})
    theirs, ours = load_file(tmp_path / "ours"), io.load(tmp_path / "theirs")
    for name, array in example().items():
        assert_same(theirs[name], array)
        assert_same(ours[name].numpy(), array)
    assert io.load_metadata(tmp_path / "theirs") == {"format": "np"}


def test_interchange_with_torch(tmp_path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file as torch_load
    from safetensors.torch import save_file as torch_save

    arrays = {name: array for name, array in example().items() if array.dtype.name[:4] != "uint"}
    torch_save({name: torch.from_numpy(array.copy()) for name, array in arrays.items()}, tmp_path / "torch")
    io.save(tmp_path / "ours", arrays)
    for name, array in arrays.items():
        assert_same(io.load(tmp_path / "torch")[name].numpy(), array)
        assert_same(torch_load(tmp_path / "ours")[name].numpy(), array)


def test_arrays_of_any_memory_layout(tmp_path):
    base = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    arrays = {
        "t": base.T,
        "step": base[:, ::2],
        "reversed": base[::-1],
        "big": base.astype(">f4"),
        "zero_d": base[1, 2, 3],
    }
    io.save(tmp_path / "x", arrays)
    for name, array in io.load(tmp_path / "x").items():
        np.testing.assert_array_equal(array.numpy(), arrays[name])
        assert array.numpy().flags.c_contiguous and array.dtype == np.float32


def test_tensors_that_require_gradients_are_saved(tmp_path):
    io.save(tmp_path / "x", {"w": gn.tensor([1.0, 2.0], requires_grad=True)})
    assert io.load(tmp_path / "x")["w"].tolist() == [1.0, 2.0]


def test_loaded_arrays_are_writable_and_own_their_memory(good):
    loaded = io.load(good)["a"]
    good.write_bytes(b"\0" * good.stat().st_size)
    loaded.data[0, 0] = 7
    assert loaded.tolist() == [[7, 1, 2], [3, 4, 5]]


def test_files_are_reproducible_and_arrays_aligned(tmp_path):
    arrays = {"a": np.ones(3, np.int8), "b": np.ones(3, np.float64), "c": np.ones(3, np.float16)}
    io.save(tmp_path / "1", arrays, metadata={"x": "1", "y": "2"})
    io.save(tmp_path / "2", dict(reversed(arrays.items())), metadata={"x": "1", "y": "2"})
    content = (tmp_path / "1").read_bytes()
    assert content == (tmp_path / "2").read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    for name, array in arrays.items():
        assert (8 + size + header[name]["data_offsets"][0]) % array.itemsize == 0


def test_bfloat16_needs_ml_dtypes(tmp_path):
    path = raw(tmp_path / "x", {"h": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}, b"\x80\x3f\x00\x40")
    try:
        import ml_dtypes  # noqa: F401
    except ImportError:
        with pytest.raises(FileFormatError, match=r"'h' is bfloat16, .*pip install ml_dtypes"):
            io.load(path)
    else:
        array = io.load(path)["h"]
        assert array.data.astype(np.float32).tolist() == [1.0, 2.0]
        io.save(tmp_path / "y", {"h": array})
        assert (tmp_path / "y").read_bytes()[-4:] == b"\x80\x3f\x00\x40"


def test_every_truncation_is_refused(good):
    content = good.read_bytes()
    for size in range(len(content)):
        good.write_bytes(content[:size])
        with pytest.raises(
            FileFormatError, match=rf"good.safetensors' \({size} bytes\) is not a whole safetensors file"
        ):
            io.load(good)


def test_bytes_after_the_end_are_refused(good):
    good.write_bytes(good.read_bytes() + b"\0")
    with pytest.raises(FileFormatError, match="not a whole safetensors file"):
        io.load(good)


F32 = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}


@pytest.mark.parametrize(
    "header",
    [
        b"\x80\x02}q\x00",  # a pickle
        b"not json at all",
        b"[1, 2]",
        b"{" * 1000,
        {"a": F32, "b": F32},  # overlapping
        {"a": {**F32, "data_offsets": [0, 32]}},  # beyond the end
        {"a": {**F32, "data_offsets": [16, 0]}},
        {"a": {**F32, "data_offsets": [-16, 0]}},
        {"a": {**F32, "data_offsets": [0]}},
        {"a": {**F32, "shape": [5]}},  # not the length of its bytes
        {"a": {**F32, "shape": [-4]}},
        {"a": {**F32, "shape": [2**62, 2**62]}},
        {"a": {**F32, "shape": [2**40], "data_offsets": [0, 2**42]}},
        {"a": {**F32, "shape": [4] + [1] * 80}},  # more axes than NumPy has
        {"a": {"dtype": "U8", "shape": [0, 2**62, 2**62], "data_offsets": [0, 0]}, "b": F32},
        {"a": {**F32, "dtype": "F33"}},
        {"a": {**F32, "dtype": "O"}},
        {"a": {"shape": [4], "data_offsets": [0, 16]}},
        {"__metadata__": {"k": 1}, "a": F32},
    ],
)
def test_hostile_headers_are_refused_without_allocating(tmp_path, header):
    path = raw(tmp_path / "bad", header, b"\0" * 16)
    tracemalloc.start()
    try:
        with pytest.raises(FileFormatError, match=r"bad' .*is not a whole safetensors file"):
            io.load(path)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("length", [2**63 - 1, 2**64 - 1, 2**40, 100_000_001, 10_000, 0, 1])
def test_absurd_header_length_is_refused(tmp_path, length):
    path = tmp_path / "bad"
    path.write_bytes(length.to_bytes(8, "little") + b"{}" + b" " * 100)
    with pytest.raises(FileFormatError, match="bad"):
        io.load(path)


def test_dtypes_that_numpy_lacks_are_named(tmp_path):
    path = raw(tmp_path / "x", {"q": {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]}}, b"\0\0")
    with pytest.raises(FileFormatError, match="tensor 'q' has dtype F8_E4M3, which NumPy arrays cannot hold"):
        io.load(path)


def test_booleans_are_zero_or_one_whatever_the_file_says(tmp_path):
    path = raw(tmp_path / "x", {"m": {"dtype": "BOOL", "shape": [4], "data_offsets": [0, 4]}}, b"\0\1\2\xff")
    assert io.load(path)["m"].numpy().view(np.uint8).tolist() == [0, 1, 1, 1]


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no file '.*nothing'"):
        io.load(tmp_path / "nothing")
    with pytest.raises(IsADirectoryError, match="is a folder, a safetensors file is expected"):
        io.load(tmp_path)


def test_what_cannot_be_saved_is_named(tmp_path):
    path = tmp_path / "x"
    with pytest.raises(
        DTypeError, match=r"'z' has dtype complex128, which the safetensors format does not have; it has"
    ):
        io.save(path, {"z": np.zeros(2, np.complex128)})
    with pytest.raises(DTypeError, match="'o' has dtype object"):
        io.save(path, {"o": np.array([None])})
    with pytest.raises(DTypeError, match=r"'w': expected a Tensor or an array, got an object of type list"):
        io.save(path, {"w": [1, 2]})
    with pytest.raises(TypeError, match=r"expected a dict of names and arrays, got a Linear; pass its state_dict\(\)"):
        io.save(path, nn.Linear(2, 2))
    with pytest.raises(TypeError, match="expected a dict of names and arrays, got a list$"):
        io.save(path, [np.zeros(2)])
    with pytest.raises(TypeError, match="the name of a tensor must be a string, got 3"):
        io.save(path, {3: np.zeros(2)})
    with pytest.raises(TypeError, match=r"metadata\['epoch'\] must be a string, got 3"):
        io.save(path, {}, metadata={"epoch": 3})
    with pytest.raises(ValueError, match="reserves the name"):
        io.save(path, {"__metadata__": np.zeros(2)})
    assert not path.exists()


def test_a_failed_save_leaves_the_old_file(good, monkeypatch):
    content = good.read_bytes()
    monkeypatch.setattr("os.fsync", lambda fd: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        io.save(good, {"a": np.zeros(3)})
    assert good.read_bytes() == content
    assert [p.name for p in good.parent.iterdir()] == [good.name]
