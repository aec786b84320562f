import hashlib
import io
import tarfile
import threading

import numpy as np
import pytest

from gpunet.data import download
from gpunet.data.download import check, extract, fetch
from gpunet.data.source import RemoteFile
from gpunet.errors import FileFormatError

CONTENT = np.random.default_rng(0).bytes(600_000)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(download.time, "sleep", lambda seconds: None)


def remote(*urls, content=CONTENT):
    return RemoteFile("a.bin", len(content), hashlib.sha256(content).hexdigest(), urls)


@pytest.fixture
def file(site):
    site.files["/a.bin"] = CONTENT
    return remote(site.url + "/a.bin")


def test_download(site, file, tmp_path):
    path = fetch(file, tmp_path / "new" / "folder")
    assert path == tmp_path / "new" / "folder" / "a.bin"
    assert path.read_bytes() == CONTENT
    assert [p.name for p in path.parent.iterdir()] == ["a.bin"]
    fetch(file, path.parent)
    assert len(site.requests) == 1  # the good copy is kept


def test_damaged_copy_is_replaced(site, file, tmp_path):
    (tmp_path / "a.bin").write_bytes(CONTENT[:1000])
    assert fetch(file, tmp_path).read_bytes() == CONTENT


def test_resumes_where_an_earlier_run_stopped(site, file, tmp_path):
    (tmp_path / "a.bin.part").write_bytes(CONTENT[:250_000])
    assert fetch(file, tmp_path).read_bytes() == CONTENT
    assert site.requests == [("/a.bin", "bytes=250000-")]


def test_complete_part_needs_no_request(site, file, tmp_path):
    (tmp_path / "a.bin.part").write_bytes(CONTENT)
    assert fetch(file, tmp_path).read_bytes() == CONTENT
    assert site.requests == []


def test_server_without_ranges_sends_all_again(site, file, tmp_path):
    site.ranges = False
    (tmp_path / "a.bin.part").write_bytes(CONTENT[:250_000])
    assert fetch(file, tmp_path).read_bytes() == CONTENT


def test_broken_connection_is_continued(site, file, tmp_path):
    site.breaks, site.break_after = 2, 100_000
    assert fetch(file, tmp_path).read_bytes() == CONTENT
    assert [wanted for _, wanted in site.requests] == [None, "bytes=100000-", "bytes=200000-"]


def test_connection_that_keeps_breaking(site, file, tmp_path):
    site.breaks, site.break_after = 99, 1000
    with pytest.raises(
        OSError, match=r"could not download a\.bin:\n .*the connection ended after 3000 of 600000 bytes"
    ):
        fetch(file, tmp_path)
    assert (tmp_path / "a.bin.part").read_bytes() == CONTENT[:3000]  # for the next time
    assert not (tmp_path / "a.bin").exists()


def test_broken_connection_without_a_length(site, file, tmp_path):
    site.length = False
    site.breaks, site.break_after = 1, 1000
    assert fetch(file, tmp_path).read_bytes() == CONTENT


def test_wrong_content_of_the_right_size(site, file, tmp_path):
    site.files["/a.bin"] = CONTENT[:-1] + b"?"
    with pytest.raises(
        FileFormatError, match=r"the file's SHA-256 is [0-9a-f]{64}, and that of the published a\.bin is"
    ):
        fetch(file, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_beginning_from_an_earlier_run_is_thrown_away(site, file, tmp_path):
    (tmp_path / "a.bin.part").write_bytes(b"?" * 1000)
    assert fetch(file, tmp_path).read_bytes() == CONTENT
    assert [wanted for _, wanted in site.requests] == ["bytes=1000-", None]


def test_file_of_another_size(site, file, tmp_path):
    site.files["/a.bin"] = b"<html>not here</html>"
    with pytest.raises(FileFormatError, match=r"offers 21 bytes; the published a\.bin has 600000"):
        fetch(file, tmp_path)


def test_endless_answer_is_cut_off(site, file, tmp_path):
    site.files["/a.bin"], site.length = CONTENT + b"x" * 500_000, False
    with pytest.raises(FileFormatError, match="sends more than the 600000 bytes"):
        fetch(file, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_next_address_when_one_fails(site, tmp_path):
    site.files["/good"] = CONTENT
    site.files["/changed"] = CONTENT[::-1]
    addresses = (site.url + name for name in ("/missing", "/changed", "/good"))
    assert fetch(remote(*addresses), tmp_path).read_bytes() == CONTENT


def test_missing_everywhere(site, tmp_path):
    with pytest.raises(OSError, match=r"could not download a\.bin:\n  .*/one: .*404.*\n  .*/two: .*404"):
        fetch(remote(site.url + "/one", site.url + "/two"), tmp_path)
    assert len(site.requests) == 2  # a 404 is not asked again


def test_server_error_is_tried_again(site, file, tmp_path):
    site.status = 503
    with pytest.raises(OSError, match="503"):
        fetch(file, tmp_path)
    assert len(site.requests) == 3


def test_no_server(tmp_path):
    with pytest.raises(OSError, match=r"could not download a\.bin:\n  http://127\.0\.0\.1:9/a: .*refused"):
        fetch(remote("http://127.0.0.1:9/a"), tmp_path)


def test_several_at_once_download_once(site, file, tmp_path):
    threads = [threading.Thread(target=fetch, args=(file, tmp_path)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "a.bin").read_bytes() == CONTENT
    assert len(site.requests) == 1


def test_check(tmp_path):
    (tmp_path / "a.bin").write_bytes(CONTENT)
    check(remote(), tmp_path / "a.bin")
    (tmp_path / "a.bin").write_bytes(CONTENT[:-1])
    with pytest.raises(
        FileFormatError, match=r"not the published a\.bin but a truncated or changed one: it has 599999"
    ):
        check(remote(), tmp_path / "a.bin")


def archive(path, entries):
    with tarfile.open(path, "w:gz") as tar:
        for name, content in entries.items():
            info = tarfile.TarInfo(name)
            if content is None:
                info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
                tar.addfile(info)
            else:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return path


def test_extract_takes_the_expected_members_only(tmp_path):
    tar = archive(tmp_path / "t.tar.gz", {"d/a": b"aa", "../evil": b"x", "/abs": b"x", "d/other": b"x", "d/b": b"bbb"})
    extract(tar, tmp_path / "out", {"d/a": 2, "d/b": 3})
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == {"a": b"aa", "b": b"bbb"}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "t.tar.gz"]


def test_extract_refuses_links_in_place_of_files(tmp_path):
    tar = archive(tmp_path / "t.tar.gz", {"d/a": None})
    with pytest.raises(FileFormatError, match="d/a is not an ordinary file"):
        extract(tar, tmp_path / "out", {"d/a": 100})


def test_extract_bounds_the_size(tmp_path):
    tar = archive(tmp_path / "t.tar.gz", {"d/a": b"x" * 1000})
    with pytest.raises(FileFormatError, match="d/a has 1000 bytes; expected at most 999"):
        extract(tar, tmp_path / "out", {"d/a": 999})
    assert list((tmp_path / "out").iterdir()) == []


def test_extract_names_what_is_missing(tmp_path):
    tar = archive(tmp_path / "t.tar.gz", {"d/a": b"x"})
    with pytest.raises(FileFormatError, match=r"t\.tar\.gz: the archive has no d/b, d/c"):
        extract(tar, tmp_path / "out", {"d/a": 1, "d/b": 1, "d/c": 1})


def test_extract_truncated_archive(tmp_path):
    tar = archive(tmp_path / "t.tar.gz", {"d/a": CONTENT})
    whole = tar.read_bytes()
    for length in (0, 1, 10, 500, len(whole) // 2, len(whole) - 300):
        tar.write_bytes(whole[:length])
        with pytest.raises(FileFormatError, match=r"t\.tar\.gz: "):
            extract(tar, tmp_path / "out", {"d/a": len(CONTENT)})
        assert not (tmp_path / "out" / "a").exists()
