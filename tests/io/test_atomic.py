import os
import signal
import stat
import subprocess
import sys
import textwrap

import pytest

from gpunet.io.atomic import replacing


def leftovers(folder):
    return [p.name for p in folder.iterdir() if p.name.endswith(".tmp")]


def test_replaces_content(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with replacing(path) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert leftovers(tmp_path) == []


def test_error_leaves_the_old_file_and_no_temporary(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError), replacing(path) as file:
        file.write(b"half")
        raise RuntimeError
    assert path.read_bytes() == b"old"
    assert leftovers(tmp_path) == []


@pytest.mark.skipif(os.name != "posix", reason="permission bits are POSIX's")
def test_permissions_are_those_of_an_ordinary_new_file(tmp_path):
    with replacing(tmp_path / "a.bin") as file:
        file.write(b"x")
    (tmp_path / "ordinary").write_bytes(b"x")
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("a.bin", "ordinary")]
    assert modes[0] == modes[1]


@pytest.mark.skipif(os.name != "posix", reason="links need privileges elsewhere")
def test_symbolic_link_stays(tmp_path):
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with replacing(tmp_path / "link") as file:
        file.write(b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"new"


def test_missing_folder_and_folder_as_file_are_named(tmp_path):
    with (
        pytest.raises(FileNotFoundError, match=r"cannot write '.*x': there is no folder '.*nowhere'"),
        replacing(tmp_path / "nowhere" / "x"),
    ):
        pass
    with pytest.raises(IsADirectoryError, match="it is a folder, a file name is expected"), replacing(tmp_path):
        pass


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_a_device_or_a_pipe_is_not_replaced_by_a_file(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with (
        pytest.raises(OSError, match="pipe': it is not an ordinary file, and would be replaced by one"),
        replacing(path),
    ):
        pass
    assert stat.S_ISFIFO(path.stat().st_mode)


def test_a_folder_without_permission(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
    with (
        pytest.raises(PermissionError, match=r"file': no permission to write in the folder"),
        replacing(tmp_path / "file"),
    ):
        pass


def test_leftovers_of_a_killed_writer_go_those_of_a_living_one_stay(tmp_path):
    path = tmp_path / "a[1].bin"  # glob's special characters in the name
    script = textwrap.dedent(
        """
        import sys
        from gpunet.io.atomic import replacing
        with replacing(sys.argv[1]) as file:
            file.write(b"half")
            file.flush()
            print("writing", flush=True)
            sys.stdin.read()
        """
    )

    def start():
        child = subprocess.Popen(
            [sys.executable, "-c", script, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert child.stdout.readline() == "writing\n"
        return child

    killed = start()
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert len(leftovers(tmp_path)) == 1
    living = start()
    try:
        assert len(leftovers(tmp_path)) == 1  # the living one's: it removed the other
        with replacing(path) as file:
            file.write(b"whole")
            assert len(leftovers(tmp_path)) == 2
        assert len(leftovers(tmp_path)) == 1
        assert path.read_bytes() == b"whole"
    finally:
        living.communicate("")
    assert path.read_bytes() == b"half"  # it ended well, after the other
    assert leftovers(tmp_path) == []
