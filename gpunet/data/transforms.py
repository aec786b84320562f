"""Image transforms, in plain NumPy.

One rule of layout: an image is (C, H, W), uint8 in 0..255 or floating point in 0..1, and a batch is (N, C, H, W). Each
transform takes either. A random transform draws its parameters anew for each image, in a batch too, from gpunet.random:
inside a DataLoader that is a stream which depends on the seed, the epoch and the sample or batch, so results repeat
whatever the number of workers. `ToTensor` brings images of the other common layout, (H, W, C), into this one.

    augment = Compose([RandomCrop(32, padding=4), RandomHorizontalFlip(), Normalize(mean, std)])
    train = CIFAR10(root, transform=augment)                            # used on whole batches by the DataLoader
    DataLoader(TensorDataset(x, y), 64, batch_transform=augment)        # the same, on any dataset of (image, label)

A tuple such as (image, label) has its first element transformed. To write one: subclass Transform and define `apply`
on a batch; any other callable on one image can be used too, and stands in a Compose, but is then called image by image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import gpunet as gn
from gpunet.data import image
from gpunet.errors import DTypeError, ShapeError

__all__ = [
    "CenterCrop",
    "ColorJitter",
    "Compose",
    "Normalize",
    "RandomCrop",
    "RandomHorizontalFlip",
    "RandomRotation",
    "Resize",
    "ToTensor",
    "Transform",
]


class Transform:
    """Base class: subclasses define `apply(batch)` for (N, C, H, W) arrays, and get one image and tuples for free."""

    batched = True
    """Whether `batch` transforms a whole batch in one call."""

    def apply(self, x: np.ndarray) -> np.ndarray:
        raise NotImplementedError(f"{type(self).__name__} must define apply")

    def __call__(self, x: Any) -> Any:
        """One image (C, H, W) or a batch (N, C, H, W), or a tuple whose first element is that."""
        if isinstance(x, tuple):
            return (self(x[0]), *x[1:])
        self._check(x, (3, 4))
        return self.apply(x[None])[0] if x.ndim == 3 else self.apply(x)

    def batch(self, x: Any) -> Any:
        """A batch (N, C, H, W), or a tuple whose first element is that."""
        if isinstance(x, tuple):
            return (self.batch(x[0]), *x[1:])
        self._check(x, (4,))
        return self.apply(x)

    def _check(self, x: Any, axes: tuple[int, ...]) -> None:
        name = type(self).__name__
        if not isinstance(x, np.ndarray):
            raise TypeError(f"{name}: transforms take NumPy arrays, got a {type(x).__name__}")
        if x.ndim not in axes:
            wanted = "(N, C, H, W)" if axes == (4,) else "(C, H, W) or (N, C, H, W)"
            raise ShapeError(f"{name}: expected an image array {wanted}, got shape {x.shape}")
        if x.dtype != np.uint8 and x.dtype.kind != "f":
            raise DTypeError(f"{name}: expected uint8 in 0..255 or floating point in 0..1, got {x.dtype}")


class Compose:
    """Several transforms, one after the other: `Compose([RandomCrop(32, padding=4), RandomHorizontalFlip()])`."""

    def __init__(self, transforms: Sequence[Callable[[Any], Any]]):
        self.transforms = list(transforms)
        for transform in self.transforms:
            if not callable(transform):
                raise TypeError(f"Compose: expected callables, got {transform!r}")

    @property
    def batched(self) -> bool:
        return all(getattr(transform, "batched", False) for transform in self.transforms)

    def __call__(self, x: Any) -> Any:
        if isinstance(x, tuple):
            return (self(x[0]), *x[1:])
        for transform in self.transforms:
            x = transform(x)
        return x

    def batch(self, x: Any) -> Any:
        for transform in self.transforms:
            x = transform.batch(x)  # type: ignore[attr-defined]  # all have it where `batched`
        return x

    def __repr__(self) -> str:
        return f"Compose([{', '.join(map(repr, self.transforms))}])"


@dataclass
class ToTensor(Transform):
    """uint8 images (H, W) or (H, W, C), as image files give them, to float32 (C, H, W) in 0..1.

    Also a batch (N, H, W, C), and PIL images. Floating-point images are taken to be (C, H, W) in 0..1 already, as the
    datasets here give them, and pass as float32: a pipeline may start with ToTensor whatever its source.
    """

    def __call__(self, x: Any) -> Any:
        if isinstance(x, tuple):
            return (self(x[0]), *x[1:])
        x = np.asarray(x)
        if x.dtype.kind == "f":
            self._check(x, (3, 4))
            return self._pass(x)
        if x.ndim not in (2, 3, 4):
            raise ShapeError(f"ToTensor: expected uint8 images (H, W), (H, W, C) or (N, H, W, C), got shape {x.shape}")
        if x.ndim == 4:
            return self.batch(x)
        return self.batch(x[None])[0]

    def batch(self, x: Any) -> Any:
        """uint8 (N, H, W) or (N, H, W, C) to float32 (N, C, H, W)."""
        if isinstance(x, tuple):
            return (self.batch(x[0]), *x[1:])
        if x.dtype.kind == "f":
            self._check(x, (4,))
            return self._pass(x)
        if x.dtype != np.uint8:
            raise DTypeError(f"ToTensor: expected uint8 in 0..255 or floating point in 0..1, got {x.dtype}")
        if x.ndim not in (3, 4):
            raise ShapeError(
                f"ToTensor: expected a batch (N, H, W) or (N, H, W, C) of uint8 images, got shape {x.shape}"
            )
        channels_first = x[:, None] if x.ndim == 3 else x.transpose(0, 3, 1, 2)
        return to_unit_interval(channels_first, 255)

    def _pass(self, x: np.ndarray) -> np.ndarray:
        if x.shape[-3] not in (1, 3, 4) and x.shape[-1] in (1, 3, 4):
            raise ShapeError(
                f"ToTensor: a floating-point array of shape {x.shape} looks like (H, W, C); it must be (C, H, W), "
                "e.g. x.transpose(2, 0, 1)"
            )
        return x.astype(np.float32, copy=False)


@dataclass
class Normalize(Transform):
    """(x - mean) / std per channel, for floating-point images.

    Args:
        mean, std: one number, or one for each channel.

    Raises:
        ValueError: a std that is not above 0.
    """

    mean: float | Sequence[float]
    std: float | Sequence[float]

    def __post_init__(self) -> None:
        self._mean, self._std = (np.asarray(v, np.float64).reshape(-1, 1, 1) for v in (self.mean, self.std))
        if not np.all(self._std > 0):
            raise ValueError(f"Normalize: std must be above 0, got {self.std}")

    def apply(self, x: np.ndarray) -> np.ndarray:
        if x.dtype == np.uint8:
            raise DTypeError("Normalize: expected floating-point images, got uint8; put ToTensor() before it")
        for name, value in (("mean", self._mean), ("std", self._std)):
            if len(value) not in (1, x.shape[1]):
                raise ShapeError(f"Normalize: {name} has {len(value)} values and the images have {x.shape[1]} channels")
        out = x - self._mean.astype(x.dtype)
        out /= self._std.astype(x.dtype)
        return out


@dataclass
class Resize(Transform):
    """To another size by bilinear (or "nearest") interpolation.

    Args:
        size: (height, width), or one number for the shorter side, which keeps the proportions.
        interpolation: "bilinear" or "nearest".
        antialias: average over all pixels when shrinking (as PIL does), instead of skipping some.
    """

    size: int | tuple[int, int]
    interpolation: str = "bilinear"
    antialias: bool = True

    def __post_init__(self) -> None:
        _check_interpolation("Resize", self.interpolation)
        if not isinstance(self.size, int):
            self.size = _pair("Resize", self.size)
        elif self.size < 1:
            raise ValueError(f"Resize: size must be at least 1, got {self.size}")

    def apply(self, x: np.ndarray) -> np.ndarray:
        height, width = x.shape[2:]
        if isinstance(self.size, tuple):
            size = self.size
        elif height <= width:
            size = (self.size, int(self.size * width / height))
        else:
            size = (int(self.size * height / width), self.size)
        if size == (height, width):
            return x
        if self.interpolation == "nearest":
            return image.resize_nearest(x, size)
        return _as_before(image.resize_bilinear(_floats(x), size, self.antialias), x)


@dataclass
class CenterCrop(Transform):
    """The middle `size` (height and width, or one number for both) of the image. ShapeError if it is smaller."""

    size: int | tuple[int, int]

    def __post_init__(self) -> None:
        self.size = _pair("CenterCrop", self.size)

    def apply(self, x: np.ndarray) -> np.ndarray:
        height, width = _must_fit("CenterCrop", self.size, x)
        top, left = (x.shape[2] - height) // 2, (x.shape[3] - width) // 2
        return x[:, :, top : top + height, left : left + width]


@dataclass
class RandomCrop(Transform):
    """A random `size` (height and width, or one number for both) cut out of the image, padded before if asked.

    Args:
        size: of the result.
        padding: pixels on all sides, or (left-right, top-bottom), or (left, top, right, bottom).
        fill: the padding's value, in the image's own units.
        padding_mode: "constant", or "edge", "reflect" or "symmetric", which continue the image.

    Raises:
        ShapeError: at the call, an image that is smaller than `size` even with its padding.
    """

    size: int | tuple[int, int]
    padding: int | tuple[int, ...] = 0
    fill: float = 0
    padding_mode: str = "constant"

    def __post_init__(self) -> None:
        self.size = _pair("RandomCrop", self.size)
        padding = (self.padding,) if isinstance(self.padding, int) else tuple(self.padding)
        if len(padding) not in (1, 2, 4) or any(p < 0 for p in padding):
            raise ValueError(f"RandomCrop: padding must be 1, 2 or 4 numbers >= 0, got {self.padding}")
        left, top, right, bottom = padding * (4 // len(padding))
        self._pad = ((0, 0), (0, 0), (top, bottom), (left, right))
        if self.padding_mode not in ("constant", "edge", "reflect", "symmetric"):
            raise ValueError(
                f"RandomCrop: padding_mode must be constant, edge, reflect or symmetric, got {self.padding_mode!r}"
            )

    def apply(self, x: np.ndarray) -> np.ndarray:
        if any(map(any, self._pad)):
            options = {"constant_values": self.fill} if self.padding_mode == "constant" else {}
            x = np.pad(x, self._pad, mode=self.padding_mode, **options)  # type: ignore[call-overload]
        height, width = _must_fit("RandomCrop", self.size, x)
        tops, lefts = (
            gn.random.randint(0, full - part + 1, (len(x),), device="cpu").numpy()
            for full, part in zip(x.shape[2:], (height, width))
        )
        windows = np.lib.stride_tricks.sliding_window_view(x, (height, width), axis=(2, 3))
        return windows[np.arange(len(x)), :, tops, lefts]


@dataclass
class RandomHorizontalFlip(Transform):
    """Left and right exchanged, with probability p."""

    p: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.p <= 1:
            raise ValueError(f"RandomHorizontalFlip: p must be a probability, got {self.p}")

    def apply(self, x: np.ndarray) -> np.ndarray:
        flipped = _uniform(len(x), 0, 1) < self.p
        out = x.copy()
        out[flipped] = x[flipped, :, :, ::-1]
        return out


@dataclass
class RandomRotation(Transform):
    """A turn about the centre by a random angle in degrees, counter-clockwise; the size stays.

    Args:
        degrees: the range (low, high), or one number for (-degrees, degrees).
        interpolation: "nearest" or "bilinear".
        fill: the value of the corners that come into view, in the image's own units.
    """

    degrees: float | tuple[float, float]
    interpolation: str = "nearest"
    fill: float = 0

    def __post_init__(self) -> None:
        _check_interpolation("RandomRotation", self.interpolation)
        if not isinstance(self.degrees, Sequence):
            if self.degrees < 0:
                raise ValueError(f"RandomRotation: one number of degrees must be >= 0, got {self.degrees}")
            self.degrees = (-self.degrees, self.degrees)
        low, high = self.degrees
        if low > high:
            raise ValueError(f"RandomRotation: degrees must be (low, high), got {self.degrees}")

    def apply(self, x: np.ndarray) -> np.ndarray:
        low, high = self.degrees  # type: ignore[misc]  # a pair since __post_init__
        turned = image.rotate(_floats(x), _uniform(len(x), low, high), self.interpolation == "bilinear", self.fill)
        return _as_before(turned, x)


@dataclass
class ColorJitter(Transform):
    """Random brightness, contrast, saturation and hue, one after the other in an order drawn for each call.

    Grey images have no saturation and no hue to change.

    Args:
        brightness, contrast, saturation: b means a factor from [max(0, 1 - b), 1 + b]; or the range (low, high) itself.
        hue: h in 0..0.5 means a shift from [-h, h] of the colour circle; or the range (low, high) within -0.5..0.5.
    """

    brightness: float | tuple[float, float] = 0
    contrast: float | tuple[float, float] = 0
    saturation: float | tuple[float, float] = 0
    hue: float | tuple[float, float] = 0

    def __post_init__(self) -> None:
        for name, middle, low, high in (
            ("brightness", 1.0, 0.0, np.inf),
            ("contrast", 1.0, 0.0, np.inf),
            ("saturation", 1.0, 0.0, np.inf),
            ("hue", 0.0, -0.5, 0.5),
        ):
            value = getattr(self, name)
            if not isinstance(value, Sequence):
                if value < 0:
                    raise ValueError(f"ColorJitter: {name} must be >= 0, got {value}")
                value = (max(low, middle - value), middle + value)
            if len(value) != 2 or not low <= value[0] <= value[1] <= high:
                raise ValueError(f"ColorJitter: {name} must lie within {low:g}..{high:g}, got {getattr(self, name)}")
            setattr(self, name, tuple(value))

    def apply(self, x: np.ndarray) -> np.ndarray:
        if x.shape[1] not in (1, 3):
            raise ShapeError(f"ColorJitter: expected images of 1 or 3 channels, got {x.shape[1]}")
        unit = 255 if x.dtype == np.uint8 else 1
        out = _floats(x) / np.float32(unit)
        for step in gn.random.permutation(4, device="cpu").numpy().tolist():
            low, high = (self.brightness, self.contrast, self.saturation, self.hue)[step]  # type: ignore[misc]
            if low == high == (0 if step == 3 else 1):
                continue
            factor = _uniform(len(x), low, high)
            if step == 0:
                out = image.blend(out, 0.0, factor)
            elif step == 1:
                out = image.blend(out, image.grey(out).mean(axis=(2, 3), keepdims=True), factor)
            elif x.shape[1] == 3:
                out = image.blend(out, image.grey(out), factor) if step == 2 else image.shift_hue(out, factor)
        return _as_before(out * np.float32(unit), x)


def to_unit_interval(x: np.ndarray, highest: int) -> np.ndarray:
    """Integers in 0..highest as contiguous float32 in 0..1."""
    return np.divide(x, np.float32(highest), dtype=np.float32, order="C")


def is_batched(transform: Any) -> bool:
    """Whether `transform` has a `batch` that takes many images in one call."""
    return getattr(transform, "batched", False)


def _floats(x: np.ndarray) -> np.ndarray:
    return x.astype(np.result_type(x.dtype, np.float32), copy=False)


def _as_before(result: np.ndarray, x: np.ndarray) -> np.ndarray:
    """`result` in x's dtype: rounded for uint8."""
    return (
        np.clip(np.rint(result), 0, 255).astype(np.uint8) if x.dtype == np.uint8 else result.astype(x.dtype, copy=False)
    )


def _uniform(count: int, low: float, high: float) -> np.ndarray:
    return gn.random.uniform((count,), low, high, dtype=np.float64, device="cpu").numpy()


def _pair(name: str, size: Any) -> tuple[int, int]:
    pair = tuple(size) if isinstance(size, Sequence) else (size, size)
    if len(pair) != 2 or not all(isinstance(s, int) and s >= 1 for s in pair):
        raise ValueError(f"{name}: size must be one or two whole numbers >= 1 (height, width), got {size}")
    return pair


def _must_fit(name: str, size: Any, x: np.ndarray) -> tuple[int, int]:
    height, width = size
    if height > x.shape[2] or width > x.shape[3]:
        raise ShapeError(f"{name}: size {size} is larger than the image, {x.shape[2:]}")
    return height, width


def _check_interpolation(name: str, interpolation: str) -> None:
    if interpolation not in ("nearest", "bilinear"):
        raise ValueError(f"{name}: interpolation must be 'nearest' or 'bilinear', got {interpolation!r}")
