import colorsys
import math

import numpy as np
import pytest

import gpunet as gn
from gpunet.data import transforms as T
from gpunet.data.transforms import Transform
from gpunet.errors import DTypeError, ShapeError

RANDOM = [
    T.RandomCrop(6, padding=2),
    T.RandomHorizontalFlip(),
    T.RandomRotation(40),
    T.RandomRotation((10, 80), interpolation="bilinear", fill=0.5),
    T.ColorJitter(0.4, 0.4, 0.4, 0.2),
]
FIXED = [T.Normalize(0.5, 0.25), T.Resize(5), T.Resize((12, 7)), T.Resize(4, "nearest"), T.CenterCrop((6, 4))]


@pytest.fixture(autouse=True)
def seed():
    gn.manual_seed(0)


def images(*shape, dtype=np.float32):
    values = np.random.default_rng(1).random(shape)
    return (values * 255).astype(np.uint8) if dtype == np.uint8 else values.astype(dtype)


# --- what all have in common


@pytest.mark.parametrize("transform", RANDOM + FIXED, ids=repr)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", ["uint8", "float16", "float32", "float64"])
def test_one_image_a_batch_and_a_tuple(transform, channels, dtype):
    if isinstance(transform, T.Normalize) and dtype == "uint8":
        return
    batch = images(5, channels, 8, 9, dtype=np.dtype(dtype))
    before = batch.copy()
    out = transform(batch)
    assert out.ndim == 4 and out.shape[:2] == (5, channels) and out.dtype == dtype
    one, label = transform((batch[2], 7))
    assert one.shape == out.shape[1:] and one.dtype == dtype and label == 7
    np.testing.assert_array_equal(batch, before)  # the input stays
    if transform in FIXED:
        np.testing.assert_allclose(one, out[2], rtol=1e-6)
        np.testing.assert_array_equal(transform.batch((batch, "label"))[0], out)


@pytest.mark.parametrize("transform", RANDOM, ids=repr)
def test_random_ones_follow_the_seed_and_differ_between_images(transform):
    batch = np.repeat(images(1, 3, 8, 9), 30, axis=0)
    gn.manual_seed(4)
    first = transform(batch)
    gn.manual_seed(4)
    np.testing.assert_array_equal(transform(batch), first)
    assert not np.array_equal(transform(batch), first)
    assert len({image.tobytes() for image in first}) > 1


@pytest.mark.parametrize("transform", RANDOM + FIXED, ids=repr)
def test_repr_makes_the_same_transform(transform):
    assert eval(repr(transform), vars(T)) == transform


@pytest.mark.parametrize("transform", [*RANDOM, *FIXED], ids=repr)
def test_what_is_no_image(transform):
    name = type(transform).__name__
    with pytest.raises(
        ShapeError, match=rf"{name}: expected an image array \(C, H, W\) or \(N, C, H, W\), got shape \(8, 8\)"
    ):
        transform(np.zeros((8, 8), np.float32))
    with pytest.raises(ShapeError, match=rf"{name}: expected an image array \(N, C, H, W\), got shape \(3, 8, 8\)"):
        transform.batch(np.zeros((3, 8, 8), np.float32))
    with pytest.raises(TypeError, match=f"{name}: transforms take NumPy arrays, got a Tensor"):
        transform(gn.zeros((3, 8, 8)))
    with pytest.raises(DTypeError, match=f"{name}: expected uint8 in 0..255 or floating point in 0..1, got int64"):
        transform(np.zeros((3, 8, 8), np.int64))


def test_own_transform():
    class Invert(Transform):
        def apply(self, x):
            return 1 - x

    batch = images(2, 3, 4, 4)
    np.testing.assert_array_equal(Invert()(batch[0]), 1 - batch[0])
    np.testing.assert_array_equal(Invert()((batch, 0))[0], 1 - batch)
    with pytest.raises(NotImplementedError, match="Transform must define apply"):
        Transform()(batch)


# --- one by one


def test_compose():
    double = T.Compose([T.Normalize(0, 0.5), T.CenterCrop(2)])
    assert double.batched and double(images(3, 4, 4)).shape == (3, 2, 2)
    np.testing.assert_array_equal(double.batch(images(2, 3, 4, 4)), images(2, 3, 4, 4)[:, :, 1:3, 1:3] * 2)
    mixed = T.Compose([double, abs])
    assert not mixed.batched and mixed((images(3, 4, 4), 1))[1] == 1
    assert repr(double) == "Compose([Normalize(mean=0, std=0.5), CenterCrop(size=(2, 2))])"
    with pytest.raises(TypeError, match="Compose: expected callables, got 3"):
        T.Compose([abs, 3])


def test_to_tensor():
    image = images(5, 6, 3, dtype=np.uint8)
    x = T.ToTensor()(image)
    assert x.shape == (3, 5, 6) and x.dtype == np.float32 and x.flags.c_contiguous
    np.testing.assert_allclose(x, image.transpose(2, 0, 1) / 255, rtol=1e-7)
    np.testing.assert_array_equal(T.ToTensor()(image[:, :, 0]), x[:1])
    batch = images(2, 5, 6, 3, dtype=np.uint8)
    assert T.ToTensor()((batch, "y"))[0].shape == (2, 3, 5, 6)
    assert T.ToTensor().batch(batch[..., 0]).shape == (2, 1, 5, 6)  # a batch of grey images, not one of 6 channels
    assert T.ToTensor()(images(3, 5, 6)).dtype == np.float32
    np.testing.assert_array_equal(T.ToTensor()(images(3, 5, 6)), images(3, 5, 6))


def test_to_tensor_refuses():
    with pytest.raises(DTypeError, match=r"ToTensor: expected uint8 in 0..255 or floating point in 0..1, got int64"):
        T.ToTensor()(np.zeros((4, 4), np.int64))
    with pytest.raises(
        ShapeError, match=r"ToTensor: a floating-point array of shape \(28, 30, 3\) looks like \(H, W, C\)"
    ):
        T.ToTensor()(images(28, 30, 3))
    with pytest.raises(ShapeError, match=r"ToTensor: expected uint8 images \(H, W\), .* got shape \(4,\)"):
        T.ToTensor()(np.zeros(4, np.uint8))


def test_to_tensor_of_a_pil_image():
    pil = pytest.importorskip("PIL.Image")
    pixels = images(5, 6, 3, dtype=np.uint8)
    np.testing.assert_array_equal(T.ToTensor()(pil.fromarray(pixels)), T.ToTensor()(pixels))


def test_normalize():
    x = images(2, 3, 4, 4)
    out = T.Normalize([0.1, 0.2, 0.3], [1, 2, 4])(x)
    for c, (mean, std) in enumerate([(0.1, 1), (0.2, 2), (0.3, 4)]):
        np.testing.assert_allclose(out[:, c], (x[:, c] - mean) / std, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(T.Normalize(0.5, 0.5)(x), x * 2 - 1, atol=1e-6)


def test_normalize_refuses():
    with pytest.raises(ValueError, match=r"Normalize: std must be above 0, got \[1, 0\]"):
        T.Normalize(0, [1, 0])
    with pytest.raises(ShapeError, match="Normalize: mean has 3 values and the images have 1 channels"):
        T.Normalize([0, 0, 0], 1)(images(1, 4, 4))
    with pytest.raises(DTypeError, match=r"got uint8; put ToTensor\(\) before it"):
        T.Normalize(0, 1)(images(1, 4, 4, dtype=np.uint8))


def resize_one_axis(line, size, antialias):
    """The rule in words: each new pixel is the mean of the old ones under a triangle around its centre."""
    scale = len(line) / size
    reach = max(scale, 1) if antialias else 1
    out = []
    for i in range(size):
        weights = [max(0, 1 - abs(j + 0.5 - (i + 0.5) * scale) / reach) for j in range(len(line))]
        out.append(sum(w * v for w, v in zip(weights, line)) / sum(weights))
    return out


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("size", [(4, 5), (16, 18), (3, 20), (8, 9), (1, 1)])
def test_resize_is_the_rule_on_each_axis(size, antialias):
    x = images(8, 9, dtype=np.float64)
    rows = np.array([resize_one_axis(row, size[1], antialias) for row in x])
    expected = np.array([resize_one_axis(column, size[0], antialias) for column in rows.T]).T
    got = T.Resize(size, antialias=antialias)(x[None].astype(np.float32))
    np.testing.assert_allclose(got[0], expected, rtol=1e-5)


@pytest.mark.parametrize("size", [(4, 5), (16, 18), (3, 20), (31, 7)])
@pytest.mark.parametrize("interpolation", ["bilinear", "antialias", "nearest"])
def test_resize_is_that_of_torch(size, interpolation):
    torch = pytest.importorskip("torch")
    x = images(2, 3, 13, 17)
    if interpolation == "nearest":
        expected = torch.nn.functional.interpolate(torch.asarray(x), size, mode="nearest-exact")
        got = T.Resize(size, "nearest")(x)
    else:
        smooth = interpolation == "antialias"
        expected = torch.nn.functional.interpolate(torch.asarray(x), size, mode="bilinear", antialias=smooth)
        got = T.Resize(size, antialias=smooth)(x)
    np.testing.assert_allclose(got, expected.numpy(), atol=1e-5)


@pytest.mark.parametrize("size", [(14, 15), (40, 50), (5, 60)])
def test_resize_is_that_of_pil(size):
    pil = pytest.importorskip("PIL.Image")
    x = images(3, 28, 31, dtype=np.uint8)
    expected = pil.fromarray(x.transpose(1, 2, 0)).resize(size[::-1], pil.Resampling.BILINEAR)
    got = T.Resize(size)(x).transpose(1, 2, 0)
    assert got.dtype == np.uint8
    assert np.abs(got.astype(int) - np.asarray(expected)).max() <= 1  # PIL rounds between the two axes


def test_resize_of_the_shorter_side():
    assert T.Resize(10)(images(1, 20, 30)).shape == (1, 10, 15)
    assert T.Resize(10)(images(1, 50, 20)).shape == (1, 25, 10)
    x = images(1, 20, 30)
    assert T.Resize(20)(x) is not None and np.array_equal(T.Resize(20)(x), x)


def test_center_crop():
    x = images(2, 3, 8, 9)
    np.testing.assert_array_equal(T.CenterCrop(4)(x), x[:, :, 2:6, 2:6])
    np.testing.assert_array_equal(T.CenterCrop((8, 3))(x), x[:, :, :, 3:6])


def test_random_crop_takes_each_place_equally_often():
    x = np.repeat(np.arange(5 * 6, dtype=np.float32).reshape(1, 1, 5, 6), 6000, axis=0)
    out = T.RandomCrop((4, 4))(x)
    corners, counts = np.unique(out[:, 0, 0, 0], return_counts=True)
    assert corners.tolist() == [0, 1, 2, 6, 7, 8]
    assert np.all(np.abs(counts - 1000) < 150)
    np.testing.assert_array_equal(out - out[:, :, :1, :1], np.broadcast_to(out[0] - out[0, 0, 0, 0], out.shape))


@pytest.mark.parametrize(
    ("padding", "widths"), [(1, (1, 1, 1, 1)), ((1, 2), (2, 2, 1, 1)), ((1, 2, 3, 4), (2, 4, 1, 3))]
)
def test_random_crop_padding(padding, widths):
    x = images(1, 1, 3, 3)
    top, bottom, left, right = widths
    size = (3 + top + bottom, 3 + left + right)  # the whole: one place only
    out = T.RandomCrop(size, padding=padding, fill=9)(x)
    np.testing.assert_array_equal(out, np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=9))
    out = T.RandomCrop(size, padding=padding, padding_mode="edge")(x)
    np.testing.assert_array_equal(out, np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)), mode="edge"))


def test_horizontal_flip():
    x = images(4000, 1, 2, 3)
    out = T.RandomHorizontalFlip(0.3)(x)
    flipped = np.all(out == x[..., ::-1], axis=(1, 2, 3))
    assert np.all(flipped | np.all(out == x, axis=(1, 2, 3)))
    assert abs(flipped.mean() - 0.3) < 0.05
    np.testing.assert_array_equal(T.RandomHorizontalFlip(1)(x), x[..., ::-1])
    np.testing.assert_array_equal(T.RandomHorizontalFlip(0)(x), x)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
@pytest.mark.parametrize("quarter", [-1, 0, 1, 2, 3])
def test_quarter_turns_are_exact(interpolation, quarter):
    x = images(2, 3, 7, 7)
    out = T.RandomRotation((90 * quarter, 90 * quarter), interpolation)(x)
    np.testing.assert_allclose(out, np.rot90(x, quarter, axes=(2, 3)), atol=1e-5)


def turn_one(x, degrees, fill):
    """Bilinear rotation written with loops: each new pixel looks back to where it came from."""
    height, width = x.shape
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    out = np.zeros_like(x)
    for r in range(height):
        for c in range(width):
            right, up = c - (width - 1) / 2, (height - 1) / 2 - r
            column = cos * right + sin * up + (width - 1) / 2
            row = (height - 1) / 2 - (cos * up - sin * right)
            for i in (math.floor(row), math.floor(row) + 1):
                for j in (math.floor(column), math.floor(column) + 1):
                    value = x[i, j] if 0 <= i < height and 0 <= j < width else fill
                    out[r, c] += (1 - abs(row - i)) * (1 - abs(column - j)) * value
    return out


@pytest.mark.parametrize("degrees", [17, -63, 200])
def test_rotation_is_that_of_the_loops(degrees):
    x = images(6, 9, dtype=np.float64)
    out = T.RandomRotation((degrees, degrees), "bilinear", fill=0.25)(x[None])
    np.testing.assert_allclose(out[0], turn_one(x, degrees, 0.25), atol=1e-12)


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_rotation_is_that_of_torch(mode):
    torch = pytest.importorskip("torch")
    x, degrees = images(1, 2, 9, 9), 31.0
    a = math.radians(degrees)
    theta = torch.tensor([[[math.cos(a), -math.sin(a), 0], [math.sin(a), math.cos(a), 0]]])
    grid = torch.nn.functional.affine_grid(theta, x.shape, align_corners=False)
    expected = torch.nn.functional.grid_sample(torch.asarray(x), grid, mode=mode, align_corners=False)
    np.testing.assert_allclose(T.RandomRotation((degrees, degrees), mode)(x), expected.numpy(), atol=1e-5)


def test_rotation_range(monkeypatch):
    angles = []
    monkeypatch.setattr(T.image, "rotate", lambda x, degrees, *rest: angles.extend(degrees) or x)
    T.RandomRotation(10)(images(2000, 1, 2, 2))
    assert -10 <= min(angles) < -9.9 and 9.9 < max(angles) <= 10 and abs(np.mean(angles)) < 0.6
    angles.clear()
    T.RandomRotation((5, 20))(images(2000, 1, 2, 2))
    assert 5 <= min(angles) < 5.1 and 19.9 < max(angles) <= 20


def grey_of(x):
    return (x * np.array([0.299, 0.587, 0.114])[:, None, None]).sum(axis=0)


def test_brightness_contrast_saturation():
    x = images(3, 6, 5, dtype=np.float64)
    clip = lambda a: np.clip(a, 0, 1)  # noqa: E731
    np.testing.assert_allclose(T.ColorJitter(brightness=(1.7, 1.7))(x), clip(1.7 * x), rtol=1e-6)
    mean = grey_of(x).mean()
    np.testing.assert_allclose(T.ColorJitter(contrast=(0.4, 0.4))(x), clip(0.4 * x + 0.6 * mean), rtol=1e-6)
    np.testing.assert_allclose(T.ColorJitter(saturation=(2, 2))(x), clip(2 * x - grey_of(x)), atol=1e-6)


@pytest.mark.parametrize("turn", [-0.5, -0.13, 0.0, 0.3, 0.5])
def test_hue_is_that_of_colorsys(turn):
    x = images(3, 6, 5, dtype=np.float64)
    x[:, 0] = 0.4  # a row of grey pixels, without hue
    out = T.ColorJitter(hue=(turn, turn))(x)
    for i in range(6):
        for j in range(5):
            h, s, v = colorsys.rgb_to_hsv(*x[:, i, j])
            np.testing.assert_allclose(out[:, i, j], colorsys.hsv_to_rgb((h + turn) % 1, s, v), atol=1e-6)


def test_color_jitter_of_uint8_and_of_grey():
    x = images(3, 8, 8, dtype=np.uint8)
    out = T.ColorJitter(brightness=(0.5, 0.5))(x)
    np.testing.assert_array_equal(out, np.rint(x * 0.5).astype(np.uint8))
    grey = images(1, 8, 8)
    np.testing.assert_array_equal(T.ColorJitter(saturation=0.9, hue=0.5)(grey), grey)


def test_color_jitter_ranges():
    jitter = T.ColorJitter(brightness=1.5, contrast=0.2, hue=0.1)
    assert jitter.brightness == (0, 2.5) and jitter.contrast == (0.8, 1.2) and jitter.hue == (-0.1, 0.1)
    x = np.full((2000, 1, 1, 1), 0.3, np.float32)
    factors = T.ColorJitter(brightness=0.5)(x) / 0.3
    assert 0.5 <= factors.min() < 0.53 and 1.47 < factors.max() <= 1.5001 and abs(factors.mean() - 1) < 0.03


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: T.Resize(0), "Resize: size must be at least 1, got 0"),
        (lambda: T.Resize((4, 0)), r"Resize: size must be one or two whole numbers >= 1 .* got \(4, 0\)"),
        (lambda: T.Resize(4, "cubic"), "Resize: interpolation must be 'nearest' or 'bilinear', got 'cubic'"),
        (lambda: T.CenterCrop((1, 2, 3)), "CenterCrop: size must be one or two whole numbers"),
        (lambda: T.RandomCrop(2.5), "RandomCrop: size must be one or two whole numbers"),
        (lambda: T.RandomCrop(4, padding=(1, 2, 3)), r"padding must be 1, 2 or 4 numbers >= 0, got \(1, 2, 3\)"),
        (lambda: T.RandomCrop(4, padding=-1), "padding must be 1, 2 or 4 numbers >= 0, got -1"),
        (
            lambda: T.RandomCrop(4, padding_mode="wrap"),
            "padding_mode must be constant, edge, reflect or symmetric, got",
        ),
        (lambda: T.RandomHorizontalFlip(1.5), "RandomHorizontalFlip: p must be a probability, got 1.5"),
        (lambda: T.RandomRotation(-5), "one number of degrees must be >= 0, got -5"),
        (lambda: T.RandomRotation((5, -5)), r"degrees must be \(low, high\), got \(5, -5\)"),
        (lambda: T.ColorJitter(hue=0.6), r"ColorJitter: hue must lie within -0.5..0.5, got 0.6"),
        (lambda: T.ColorJitter(contrast=-1), "ColorJitter: contrast must be >= 0, got -1"),
        (lambda: T.ColorJitter(brightness=(-1, 1)), r"ColorJitter: brightness must lie within 0..inf, got \(-1, 1\)"),
        (lambda: T.CenterCrop(9)(images(3, 8, 8)), r"CenterCrop: size \(9, 9\) is larger than the image, \(8, 8\)"),
        (lambda: T.RandomCrop(9)(images(3, 8, 8)), r"RandomCrop: size \(9, 9\) is larger than the image, \(8, 8\)"),
        (lambda: T.ColorJitter(1)(images(2, 8, 8)), "ColorJitter: expected images of 1 or 3 channels, got 2"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
