"""Where the files of a data set are found: in a folder, in a system package, or on the network."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class RemoteFile:
    """A published file: its name, exact size in bytes, SHA-256, and the addresses it can be had from, best first."""

    name: str
    size: int
    sha256: str
    urls: Sequence[str]


def data_root() -> Path:
    """The folder for data sets where no root is given: $GPUNET_DATA, or gpunet/data in the user's cache folder."""
    if root := os.environ.get("GPUNET_DATA"):
        return Path(root)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gpunet" / "data"


@dataclass(frozen=True)
class Source:
    """Where a data set's files are: below a root, in a system package's folder, or on the network.

    Attributes:
        name: the data set's name, and that of its folder below a root.
        remote: what to download: the files themselves, gzipped, or the one archive that holds them.
        folder: a further folder that the archive's files are in.
        members: for an archive, its members that are wanted, with their greatest sizes.
        package: what to type to install a system package, and the folder it puts the files in.
    """

    name: str
    remote: Sequence[RemoteFile]
    folder: str = ""
    members: Mapping[str, int] = field(default_factory=dict)
    package: tuple[str, str] | None = None

    def find(self, names: Sequence[str], root: str | os.PathLike[str] | None, download: bool) -> list[Path]:
        """The paths of the files `names`, each as it is or with .gz behind its name.

        Args:
            names: without .gz.
            root: the folder that has them, or has a folder `self.name` that does; None: `data_root()`, or else the
                system package's folder.
            download: whether to fetch what is missing, into the folder `self.name` below the root.

        Raises:
            FileNotFoundError: files are missing still; it says what to do.
            FileFormatError: an archive or a download that is not the published one.
        """
        base = data_root() if root is None else Path(root)
        home = base / self.name
        places = [home, home / "raw", base]  # the second: torchvision's layout
        folders = [place / self.folder for place in places] if self.folder else []
        folders += places
        if root is None and self.package is not None:
            folders.append(Path(self.package[1]))
        if found := self._first_complete(folders, names):
            return found
        from gpunet.data import download as net  # here, for it imports all of Python's networking

        wanted = [file for file in self.remote if self.members or file.name.removesuffix(".gz") in names]
        trouble = ""
        try:
            for place in places:
                if self.members and (place / self.remote[0].name).is_file():
                    return self._unpack(place, names)
            if download:
                for file in wanted:
                    net.fetch(file, home)
                return self._unpack(home, names) if self.members else self._first_complete([home], names)
        except OSError as error:
            trouble = f"\nWhat went wrong: {error}"
        raise FileNotFoundError(self._advice(names, wanted, folders, download) + trouble)

    def _unpack(self, place: Path, names: Sequence[str]) -> list[Path]:
        """Extract the archive that lies in `place`, once its SHA-256 is found right."""
        from gpunet.data import download as net

        archive = place / self.remote[0].name
        net.check(self.remote[0], archive)
        net.extract(archive, place / self.folder, self.members)
        return self._first_complete([place / self.folder], names)

    def _advice(
        self, names: Sequence[str], wanted: Sequence[RemoteFile], folders: Sequence[Path], downloading: bool
    ) -> str:
        kind = f"or {self.remote[0].name}, which holds them" if self.members else "gzipped or not"
        lines = [f"{self.name}: did not find {', '.join(names)} ({kind}). Looked in:"]
        for folder in folders:
            there = [name for name in names if self._variant(folder, name)]
            lines.append(f"  {folder}" + (f" (has only {', '.join(there)})" if there else ""))
        lines.append("Do one of these:")
        if not downloading:
            lines.append(f"  - pass download=True: it fetches {sum(file.size for file in wanted) / 1e6:.1f} MB")
        lines.append(f"  - put them into {folders[0]}, or pass root= the folder that has them; they come from")
        lines += [f"      {file.urls[0]}" for file in wanted]
        if self.package is not None:
            lines.append(f"  - install the system package: {self.package[0]}")
        return "\n".join(lines)

    def _variant(self, folder: Path, name: str) -> Path | None:
        """The file `name` in `folder`, or gzipped, where that is how it is published."""
        paths = [folder / name] if self.members else [folder / name, folder / f"{name}.gz"]
        return next((path for path in paths if path.is_file()), None)

    def _first_complete(self, folders: Sequence[Path], names: Sequence[str]) -> list[Path]:
        """The paths of `names` in the first folder that has them all; empty if none has."""
        for folder in folders:
            paths = [path for name in names if (path := self._variant(folder, name))]
            if len(paths) == len(names):
                return paths
        return []
