"""Data sets of labelled images, and where their files are found or downloaded from."""

from __future__ import annotations

import operator
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gpunet.data.dataset import Dataset
from gpunet.data.download import RemoteFile, extract
from gpunet.data.transforms import is_batched, to_unit_interval
from gpunet.errors import ShapeError


class ImageDataset(Dataset):
    """Labelled images: sample i is (image, label), the image float32 (C, H, W) in 0..1, the label int64.

    images: uint8, (N, H, W) for grey or (N, C, H, W); kept as they are in `.images`.
    labels: integers (N,), kept in `.labels` as int64.
    classes: the classes' names, label by label.
    highest: the pixel value that becomes 1.
    transform: applied to the float image: by the DataLoader to a whole batch at once if it is a
        `transforms.Transform`, otherwise to one image at a time.
    """

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        classes: Sequence[str] = (),
        highest: int = 255,
        transform: Any = None,
    ):
        if images.ndim not in (3, 4) or labels.shape != images.shape[:1]:
            raise ShapeError(
                f"{type(self).__name__}: expected images (N, H, W) or (N, C, H, W) and labels (N,), "
                f"got {images.shape} and {labels.shape}"
            )
        self.images = images
        self.labels = labels.astype(np.int64)
        self.classes = tuple(classes)
        self.highest = highest
        self.transform = transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, np.int64]:
        i = operator.index(index)
        raw = self.images[i]
        x = to_unit_interval(raw[None] if raw.ndim == 2 else raw, self.highest)
        return (x if self.transform is None else self.transform(x)), self.labels[i]

    def get_batch(self, indices: np.ndarray) -> Any:
        if self.transform is not None and not is_batched(self.transform):
            return NotImplemented
        raw = self.images[indices]
        x = to_unit_interval(raw[:, None] if raw.ndim == 3 else raw, self.highest)
        return (x if self.transform is None else self.transform.batch(x)), self.labels[indices]

    def __repr__(self) -> str:
        shape = self.images.shape[1:] if self.images.ndim == 4 else (1, *self.images.shape[1:])
        transform = "" if self.transform is None else f", transform={self.transform!r}"
        return f"{type(self).__name__}({len(self)} images {shape}, {len(self.classes)} classes{transform})"


def data_root() -> Path:
    """The folder for data sets where no root is given: $GPUNET_DATA, or gpunet/data in the user's cache folder."""
    if root := os.environ.get("GPUNET_DATA"):
        return Path(root)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gpunet" / "data"


@dataclass(frozen=True)
class Source:
    """Where a data set's files are: below a root, in a system package's folder, or on the network.

    name: the data set's name, and that of its folder below a root.
    remote: what to download: the files themselves, gzipped, or the one archive that holds them.
    folder: a further folder that the archive's files are in.
    members: for an archive, its members that are wanted, with their greatest sizes.
    package: (what to type to install a system package, the folder it puts the files in).
    """

    name: str
    remote: Sequence[RemoteFile]
    folder: str = ""
    members: Mapping[str, int] = field(default_factory=dict)
    package: tuple[str, str] | None = None

    def find(self, names: Sequence[str], root: str | os.PathLike[str] | None, download: bool) -> list[Path]:
        """The paths of the files `names`, each as it is or with .gz behind its name.

        root: the folder that has them, or has a folder `name` that does; None for `data_root()` and system packages.
        download: fetch what is missing into the folder `name` below the root. Raises FileNotFoundError that says what
        to do when files are missing still, FileFormatError for an archive or a download that is not the published one.
        """
        base = data_root() if root is None else Path(root)
        home = base / self.name
        places = [home, home / "raw", base]  # the second: torchvision's layout
        folders = [place / self.folder for place in places] if self.folder else []
        folders += places
        if root is None and self.package is not None:
            folders.append(Path(self.package[1]))
        if found := _first_complete(folders, names):
            return found
        wanted = [file for file in self.remote if self.members or file.name.removesuffix(".gz") in names]
        trouble = ""
        try:
            for place in places:
                if self.members and (place / self.remote[0].name).is_file():
                    return self._unpack(place, names)
            if download:
                for file in wanted:
                    file.fetch(home)
                return self._unpack(home, names) if self.members else _first_complete([home], names)
        except OSError as error:
            trouble = f"\nWhat went wrong: {error}"
        raise FileNotFoundError(self._advice(names, wanted, folders, download) + trouble)

    def _unpack(self, place: Path, names: Sequence[str]) -> list[Path]:
        """Extract the archive that lies in `place`, once its SHA-256 is found right."""
        archive = self.remote[0].checked(place / self.remote[0].name)
        extract(archive, place / self.folder, self.members)
        return _first_complete([place / self.folder], names)

    def _advice(
        self, names: Sequence[str], wanted: Sequence[RemoteFile], folders: Sequence[Path], downloading: bool
    ) -> str:
        kind = f"or {self.remote[0].name}, which holds them" if self.members else "gzipped or not"
        lines = [f"{self.name}: did not find {', '.join(names)} ({kind}). Looked in:"]
        for folder in folders:
            there = [name for name in names if _variant(folder, name)]
            lines.append(f"  {folder}" + (f" (has only {', '.join(there)})" if there else ""))
        lines.append("Do one of these:")
        if not downloading:
            lines.append(f"  - pass download=True: it fetches {sum(file.size for file in wanted) / 1e6:.1f} MB")
        lines.append(f"  - put them into {folders[0]}, or pass root= the folder that has them; they come from")
        lines += [f"      {file.urls[0]}" for file in wanted]
        if self.package is not None:
            lines.append(f"  - install the system package: {self.package[0]}")
        return "\n".join(lines)


def _variant(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def _first_complete(folders: Sequence[Path], names: Sequence[str]) -> list[Path]:
    """The paths of `names` in the first folder that has them all; empty if none has."""
    for folder in folders:
        paths = [_variant(folder, name) for name in names]
        if all(paths):
            return [path for path in paths if path is not None]
    return []
