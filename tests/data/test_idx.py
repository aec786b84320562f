import gzip
import struct

import numpy as np
import pytest

from gpunet.data import read_idx, write_idx
from gpunet.errors import FileFormatError

ARRAY = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
CONTENT = bytes([0, 0, 8, 3]) + struct.pack(">III", 2, 3, 4) + ARRAY.tobytes()


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "int32", "float32", "float64"])
@pytest.mark.parametrize("name", ["a-idx", "a-idx.gz"])
def test_what_is_written_is_read(tmp_path, dtype, name):
    array = (np.arange(24).reshape(4, 6) - 12 * (dtype != "uint8")).astype(dtype)
    write_idx(tmp_path / name, array)
    got = read_idx(tmp_path / name)
    assert got.dtype == array.dtype and got.dtype.isnative
    np.testing.assert_array_equal(got, array)


def test_bytes_are_those_of_the_format(tmp_path):
    write_idx(tmp_path / "a", ARRAY)
    assert (tmp_path / "a").read_bytes() == CONTENT
    write_idx(tmp_path / "f", np.array([1.5], np.float32))
    assert (tmp_path / "f").read_bytes() == bytes([0, 0, 0x0D, 1, 0, 0, 0, 1]) + struct.pack(">f", 1.5)


def test_same_array_gives_same_gzip_bytes(tmp_path):
    write_idx(tmp_path / "a.gz", ARRAY)
    write_idx(tmp_path / "b.gz", ARRAY)
    assert (tmp_path / "a.gz").read_bytes() == (tmp_path / "b.gz").read_bytes()


def test_gzip_is_told_by_content_not_by_name(tmp_path):
    (tmp_path / "plain.gz").write_bytes(CONTENT)
    (tmp_path / "zipped").write_bytes(gzip.compress(CONTENT))
    np.testing.assert_array_equal(read_idx(tmp_path / "plain.gz"), ARRAY)
    np.testing.assert_array_equal(read_idx(tmp_path / "zipped"), ARRAY)


def test_empty_axis(tmp_path):
    write_idx(tmp_path / "e", np.empty((0, 28, 28), np.uint8))
    assert read_idx(tmp_path / "e").shape == (0, 28, 28)


@pytest.mark.parametrize("length", range(len(CONTENT)))
@pytest.mark.parametrize("zipped", [False, True])
def test_truncated_at_every_length(tmp_path, length, zipped):
    path = tmp_path / "cut"
    path.write_bytes(gzip.compress(CONTENT[:length]) if zipped else CONTENT[:length])
    with pytest.raises(FileFormatError, match=r"cut: truncated"):
        read_idx(path)


def test_truncated_gzip_at_every_length(tmp_path):
    whole = gzip.compress(CONTENT, mtime=0)
    path = tmp_path / "cut.gz"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(FileFormatError, match=r"cut\.gz: "):
            read_idx(path)


def test_flipped_byte_in_gzip(tmp_path):
    whole = bytearray(gzip.compress(CONTENT))
    whole[len(whole) // 2] ^= 0xFF
    (tmp_path / "bad.gz").write_bytes(whole)
    with pytest.raises(FileFormatError, match=r"bad\.gz"):
        read_idx(tmp_path / "bad.gz")


@pytest.mark.parametrize("zipped", [False, True])
def test_trailing_junk(tmp_path, zipped):
    content = CONTENT + b"x"
    (tmp_path / "long").write_bytes(gzip.compress(content) if zipped else content)
    with pytest.raises(FileFormatError, match=r"long: there is data after the end of the array of shape \(2, 3, 4\)"):
        read_idx(tmp_path / "long")


@pytest.mark.parametrize("magic", ["00000703", "01000803", "00000800", "000008ff", "89504e47"])
def test_wrong_magic(tmp_path, magic):
    (tmp_path / "no").write_bytes(bytes.fromhex(magic) + CONTENT[4:])
    with pytest.raises(FileFormatError, match=r"no: not an IDX file: it starts with"):
        read_idx(tmp_path / "no")


@pytest.mark.parametrize("zipped", [False, True])
def test_absurd_size_is_refused_before_it_is_allocated(tmp_path, zipped):
    content = bytes([0, 0, 8, 3]) + struct.pack(">III", 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFF) + b"0" * 100
    (tmp_path / "huge").write_bytes(gzip.compress(content) if zipped else content)
    with pytest.raises(FileFormatError, match=r"announces an array of shape \(4294967295, .* holds at most"):
        read_idx(tmp_path / "huge")


def test_gzip_bomb_is_read_only_as_far_as_its_header_says(tmp_path):
    content = bytes([0, 0, 8, 1]) + struct.pack(">I", 10) + bytes(50_000_000)
    (tmp_path / "bomb.gz").write_bytes(gzip.compress(content))
    with pytest.raises(FileFormatError, match="data after the end"):
        read_idx(tmp_path / "bomb.gz")


def test_writing_a_dtype_that_idx_lacks(tmp_path):
    with pytest.raises(FileFormatError, match=r"write_idx: IDX files hold uint8, int8, .*; got int64"):
        write_idx(tmp_path / "a", np.zeros(3, np.int64))


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_idx(tmp_path / "none")
