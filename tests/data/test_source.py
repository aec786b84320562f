import pytest

from gpunet.data import data_root
from gpunet.data.source import RemoteFile, Source


def test_data_root(monkeypatch, tmp_path):
    monkeypatch.setenv("GPUNET_DATA", str(tmp_path / "here"))
    assert data_root() == tmp_path / "here"
    monkeypatch.delenv("GPUNET_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert data_root() == tmp_path / "gpunet" / "data"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert data_root() == tmp_path / ".cache" / "gpunet" / "data"


def test_source_prefers_its_own_folder(tmp_path):
    source = Source("Name", [RemoteFile("a.gz", 1, "0", ["http://127.0.0.1:9/a.gz"])])
    (tmp_path / "a").write_bytes(b"")
    assert source.find(["a"], tmp_path, False) == [tmp_path / "a"]
    (tmp_path / "Name").mkdir()
    (tmp_path / "Name" / "a.gz").write_bytes(b"")
    assert source.find(["a"], tmp_path, False) == [tmp_path / "Name" / "a.gz"]


def test_source_says_what_a_folder_has_only(tmp_path):
    (tmp_path / "b").write_bytes(b"")
    source = Source("Name", [RemoteFile("a.gz", 1, "0", ["http://127.0.0.1:9/a.gz"])])
    with pytest.raises(
        FileNotFoundError, match=rf"did not find a, b \(gzipped or not\)(.|\n)*{tmp_path} \(has only b\)"
    ):
        source.find(["a", "b"], tmp_path, False)
