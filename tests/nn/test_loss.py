"""The losses: their values against formulas written with loops, their derivatives, their extremes, their errors."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gpunet as gn
from gpunet.nn import functional as F
from gpunet.nn import loss as losses
from tests.gradcheck import check_gradients

RNG = np.random.default_rng(3)
REDUCTIONS = ("none", "mean", "sum")


def reduced(values: Any, reduction: str, count: float | None = None) -> Any:
    values = np.asarray(values)
    if reduction == "none":
        return values
    return values.sum() / (values.size if count is None else count) if reduction == "mean" else values.sum()


def close(actual: gn.Tensor, expected: Any, tolerance: float = 1e-12) -> None:
    assert actual.shape == np.shape(expected)
    np.testing.assert_allclose(actual.detach().cpu().numpy(), expected, rtol=tolerance, atol=tolerance)


# --- differences

X, Y = RNG.normal(size=(4, 3)) * 2, RNG.normal(size=(4, 3))


def one_by_one(f: Callable[[float, float], float], x: np.ndarray = X, y: np.ndarray = Y) -> np.ndarray:
    return np.array([f(a, b) for a, b in zip(x.ravel(), y.ravel())]).reshape(x.shape)


def huber(d: float, delta: float) -> float:
    return d * d / 2 if abs(d) <= delta else delta * (abs(d) - delta / 2)


DIFFERENCES: dict[str, tuple[str, dict[str, Any], Callable[[float, float], float]]] = {
    "mse": ("mse_loss", {}, lambda a, b: (a - b) ** 2),
    "l1": ("l1_loss", {}, lambda a, b: abs(a - b)),
    "huber": ("huber_loss", {}, lambda a, b: huber(a - b, 1.0)),
    "huber 0.3": ("huber_loss", {"delta": 0.3}, lambda a, b: huber(a - b, 0.3)),
    "smooth": ("smooth_l1_loss", {}, lambda a, b: huber(a - b, 1.0)),
    "smooth 2": ("smooth_l1_loss", {"beta": 2.0}, lambda a, b: huber(a - b, 2.0) / 2),
    "smooth 0": ("smooth_l1_loss", {"beta": 0.0}, lambda a, b: abs(a - b)),
}


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("name", DIFFERENCES)
def test_differences(name: str, reduction: str, device: str) -> None:
    function, options, formula = DIFFERENCES[name]
    f = getattr(F, function)
    x, y = gn.asarray(X, device=device), gn.asarray(Y, device=device)
    close(f(x, y, reduction=reduction, **options), reduced(one_by_one(formula), reduction))
    check_gradients(lambda x, y: f(x, y, reduction=reduction, **options), [X, Y], device=device)


@pytest.mark.parametrize("name", DIFFERENCES)
def test_differences_as_torch(name: str) -> None:
    torch = pytest.importorskip("torch")
    function, options, _formula = DIFFERENCES[name]
    compare(torch, function, X, Y, **options)


def test_second_derivative_of_huber_at_zero() -> None:
    x = gn.tensor([0.0, 0.5, 3.0], requires_grad=True)
    (g,) = gn.grad(F.huber_loss(x, gn.zeros(3), "sum"), [x], create_graph=True)
    (h,) = gn.grad(g.sum(), [x])
    assert g.tolist() == [0, 0.5, 1] and h.tolist() == [1, 1, 0]


def compare(
    torch: Any, function: str, x: np.ndarray, target: np.ndarray, of_target: bool = True, **options: Any
) -> None:
    """Values and gradients (of x, and of a floating-point target) as torch's, for all reductions, in float32."""
    of_target = of_target and target.dtype.kind == "f"
    x = x.astype("float32")
    if target.dtype.kind == "f":
        target = target.astype("float32")
    theirs = {k: torch.tensor(v) if isinstance(v, np.ndarray) else v for k, v in options.items()}
    ours = {k: gn.asarray(v) if isinstance(v, np.ndarray) else v for k, v in options.items()}
    for reduction in REDUCTIONS:
        a, b = gn.tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
        ta, tb = gn.tensor(target), torch.tensor(target)
        if of_target:
            ta.requires_grad, tb.requires_grad = True, True
        la = getattr(F, function)(a, ta, reduction=reduction, **ours)
        lb = getattr(torch.nn.functional, function)(b, tb, reduction=reduction, **theirs)
        close(la, lb.detach().numpy(), 1e-5)
        assert la.dtype == np.float32
        la.sum().backward()
        lb.sum().backward()
        close(a.grad, b.grad.numpy(), 1e-5)
        if of_target:
            close(ta.grad, tb.grad.numpy(), 1e-5)


# --- cross-entropy

LOGITS = RNG.normal(size=(6, 4)) * 2
TARGET = np.array([3, 0, -100, 2, 2, 1])
WEIGHT = np.array([0.5, 2.0, 1.0, 3.0])
IMAGES = RNG.normal(size=(2, 4, 3, 2))
IMAGE_TARGET = RNG.integers(0, 4, (2, 3, 2))
IMAGE_TARGET[1, 2, 0] = -100


def log_softmax(row: np.ndarray) -> np.ndarray:
    return row - math.log(sum(math.exp(v) for v in row))


def surprise(row: np.ndarray, q: np.ndarray, weight: np.ndarray) -> float:
    return -sum(w * p * lp for w, p, lp in zip(weight, q, log_softmax(row)))


def cross_entropy(
    rows: np.ndarray, target: np.ndarray, reduction: str, weight: Any = None, smoothing: float = 0.0, ignore: int = -100
) -> Any:
    """Of rows (N, C) and class indices (N,)."""
    classes = rows.shape[1]
    factors = np.ones(classes) if weight is None else weight
    found, count = [], 0.0
    for row, t in zip(rows, target):
        if t == ignore:
            found.append(0.0)
            continue
        q = np.full(classes, smoothing / classes)
        q[t] += 1 - smoothing
        found.append(surprise(row, q, factors))
        count += factors[t]
    return reduced(found, reduction, count)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("smoothing", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_cross_entropy(weighted: bool, smoothing: float, reduction: str, device: str) -> None:
    weight = WEIGHT if weighted else None
    target = gn.asarray(TARGET, device=device)
    options: Any = {"reduction": reduction, "label_smoothing": smoothing}
    if weighted:
        options["weight"] = gn.asarray(weight, device=device)

    def f(x: gn.Tensor) -> gn.Tensor:
        return F.cross_entropy(x, target, **options)

    close(f(gn.asarray(LOGITS, device=device)), cross_entropy(LOGITS, TARGET, reduction, weight, smoothing))
    check_gradients(f, [LOGITS], device=device)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_cross_entropy_at_each_place(reduction: str, device: str) -> None:
    rows, target = np.moveaxis(IMAGES, 1, -1).reshape(-1, 4), IMAGE_TARGET.reshape(-1)
    expected = cross_entropy(rows, target, reduction, WEIGHT)
    expected = expected.reshape(IMAGE_TARGET.shape) if reduction == "none" else expected
    t, w = gn.asarray(IMAGE_TARGET, device=device), gn.asarray(WEIGHT, device=device)

    def f(x: gn.Tensor) -> gn.Tensor:
        return F.cross_entropy(x, t, w, reduction=reduction)

    close(f(gn.asarray(IMAGES, device=device)), expected)
    check_gradients(f, [IMAGES], device=device)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "int64"])
def test_cross_entropy_of_one_sample_and_any_integers(dtype: str, device: str) -> None:
    x, t = gn.asarray(LOGITS[0], device=device), gn.asarray(np.array(2, dtype), device=device)
    expected = -log_softmax(LOGITS[0])[2]
    for reduction in REDUCTIONS:
        close(F.cross_entropy(x, t, reduction=reduction), expected)
        close(F.nll_loss(F.log_softmax(x), t, reduction=reduction), expected)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_cross_entropy_of_probabilities(smoothing: float, reduction: str, device: str) -> None:
    q = RNG.dirichlet(np.ones(4), 6)
    found = [surprise(row, p * (1 - smoothing) + smoothing / 4, WEIGHT) for row, p in zip(LOGITS, q)]
    w = gn.asarray(WEIGHT, device=device)

    def f(x: gn.Tensor, q: gn.Tensor) -> gn.Tensor:
        return F.cross_entropy(x, q, w, reduction=reduction, label_smoothing=smoothing)

    close(f(gn.asarray(LOGITS, device=device), gn.asarray(q, device=device)), reduced(found, reduction))
    check_gradients(f, [LOGITS, q], device=device)


def test_one_hot_probabilities_are_class_indices(device: str) -> None:
    t = gn.asarray(TARGET.clip(0), device=device)
    x = gn.asarray(LOGITS, device=device)
    close(F.cross_entropy(x, F.one_hot(t, 4).astype("float64")), F.cross_entropy(x, t).cpu().numpy())


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", ["rows", "images", "one", "length 0 of d"])
def test_cross_entropy_as_torch(shape: str, weighted: bool, smoothing: float) -> None:
    torch = pytest.importorskip("torch")
    x, t = {
        "rows": (LOGITS, TARGET),
        "images": (IMAGES, IMAGE_TARGET),
        "one": (LOGITS[0], np.array(2)),
        "length 0 of d": (IMAGES[..., :1], IMAGE_TARGET[..., :1]),
    }[shape]
    options: Any = {"weight": WEIGHT.astype("float32")} if weighted else {}
    compare(torch, "cross_entropy", x, t, label_smoothing=smoothing, **options)
    compare(torch, "cross_entropy", x, np.where(t == -100, 1, t), label_smoothing=smoothing, ignore_index=1, **options)
    q = np.moveaxis(RNG.dirichlet(np.ones(4), t.shape), -1, min(1, x.ndim - 1))
    compare(torch, "cross_entropy", x, q, label_smoothing=smoothing, **options)
    compare(torch, "nll_loss", x, t, **options)


def test_all_ignored_is_nan_and_only_in_the_mean(device: str) -> None:
    x = gn.tensor(LOGITS, device=device, requires_grad=True)
    t = gn.asarray(np.full(6, -100), device=device)
    for f in (F.cross_entropy, F.nll_loss):
        assert math.isnan(f(x, t).item())
        assert f(x, t, reduction="sum").item() == 0
        assert f(x, t, reduction="none").tolist() == [0] * 6
    F.cross_entropy(x, t, reduction="sum").backward()
    assert not np.any(x.grad.cpu().numpy())


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("weighted", [False, True])
def test_nll(weighted: bool, reduction: str, device: str) -> None:
    weight = WEIGHT if weighted else np.ones(4)
    kept = TARGET >= 0
    picked = np.array([-row[t] * weight[t] if k else 0.0 for row, t, k in zip(LOGITS, TARGET, kept)])
    target = gn.asarray(TARGET, device=device)
    w = gn.asarray(WEIGHT, device=device) if weighted else None

    def f(x: gn.Tensor) -> gn.Tensor:
        return F.nll_loss(x, target, w, reduction=reduction)

    close(f(gn.asarray(LOGITS, device=device)), reduced(picked, reduction, weight[TARGET[kept]].sum()))
    check_gradients(f, [LOGITS], device=device)


# --- probabilities

P = RNG.uniform(0.05, 0.95, (4, 3))
Q = RNG.uniform(0.0, 1.0, (4, 3))
Q[0] = [0, 1, 0.5]
ROW = np.array([0.5, 2.0, 1.0])


def binary(p: float, q: float, positive: float = 1.0) -> float:
    return -(positive * q * math.log(p) + (1 - q) * math.log(1 - p))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("weight", [None, ROW, RNG.uniform(size=(4, 1))], ids=["plain", "row", "column"])
def test_binary_cross_entropy(weight: Any, reduction: str, device: str) -> None:
    expected = reduced(one_by_one(binary, P, Q) * (1.0 if weight is None else weight), reduction)
    w = None if weight is None else gn.asarray(weight, device=device)

    def f(x: gn.Tensor, q: gn.Tensor) -> gn.Tensor:
        return F.binary_cross_entropy(x, q, w, reduction)

    close(f(gn.asarray(P, device=device), gn.asarray(Q, device=device)), expected)
    check_gradients(f, [P, Q], device=device)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("positive", [None, ROW], ids=["plain", "pos_weight"])
@pytest.mark.parametrize("weight", [None, ROW[::-1].copy()], ids=["plain", "weight"])
def test_binary_cross_entropy_with_logits(weight: Any, positive: Any, reduction: str, device: str) -> None:
    p = 1 / (1 + np.exp(-X))
    terms = [
        binary(a, b, c)
        for a, b, c in zip(
            p.ravel(), Q.ravel(), np.broadcast_to(1.0 if positive is None else positive, X.shape).ravel()
        )
    ]
    expected = reduced(np.reshape(terms, X.shape) * (1.0 if weight is None else weight), reduction)
    w, c = (None if v is None else gn.asarray(v, device=device) for v in (weight, positive))

    def f(x: gn.Tensor, q: gn.Tensor) -> gn.Tensor:
        return F.binary_cross_entropy_with_logits(x, q, w, reduction, c)

    close(f(gn.asarray(X, device=device), gn.asarray(Q, device=device)), expected)
    check_gradients(f, [X, Q], device=device)


def test_derivatives_of_logits_at_zero(device: str) -> None:
    x = gn.tensor(np.zeros(3), device=device, requires_grad=True)
    loss = F.binary_cross_entropy_with_logits(x, gn.asarray(np.array([0, 1, 0.5]), device=device), reduction="sum")
    (g,) = gn.grad(loss, [x], create_graph=True)
    (h,) = gn.grad(g.sum(), [x])
    assert g.tolist() == [0.5, -0.5, 0] and h.tolist() == [0.25] * 3


@pytest.mark.parametrize("log_target", [False, True])
@pytest.mark.parametrize("reduction", [*REDUCTIONS, "batchmean"])
def test_kl_div(reduction: str, log_target: bool, device: str) -> None:
    x, q = np.log(P), Q.clip(0.05)
    terms = q * (np.log(q) - x)
    expected = terms.sum() / 4 if reduction == "batchmean" else reduced(terms, reduction)
    q = np.log(q) if log_target else q

    def f(x: gn.Tensor, q: gn.Tensor) -> gn.Tensor:
        return F.kl_div(x, q, reduction, log_target)

    close(f(gn.asarray(x, device=device), gn.asarray(q, device=device)), expected)
    check_gradients(f, [x, q], device=device)


def test_kl_div_of_zero_probability_is_zero(device: str) -> None:
    x, q = gn.asarray(np.log(P), device=device), gn.asarray(np.zeros((4, 3)), device=device)
    assert not F.kl_div(x, q, "none").cpu().numpy().any()


@pytest.mark.filterwarnings("ignore:reduction:UserWarning")  # torch's, about the mean of kl_div
def test_losses_of_probabilities_as_torch() -> None:
    torch = pytest.importorskip("torch")
    row = ROW.astype("float32")
    compare(torch, "binary_cross_entropy", P, Q)
    compare(torch, "binary_cross_entropy", P, Q, weight=row)
    ends, hits = np.array([0.0, 1.0, 1.0, 0.0, 1e-30]), np.array([0.0, 1.0, 0.0, 1.0, 1.0])
    compare(torch, "binary_cross_entropy", ends, hits, of_target=False)  # torch's gradient of the target is infinite
    compare(torch, "binary_cross_entropy_with_logits", X, Q)
    compare(torch, "binary_cross_entropy_with_logits", X, Q, weight=row, pos_weight=row[::-1].copy())
    compare(torch, "kl_div", np.log(P), Q.clip(0.01))
    compare(torch, "kl_div", np.log(P), np.log(Q.clip(0.01)), log_target=True)


# --- extremes


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_extreme_logits_give_finite_losses_and_gradients(dtype: str, device: str) -> None:
    big = np.array([[1e4, -1e4, 0], [-1e4, 1e4, 1e4], [-1e4, -1e4, -1e4]], dtype)
    zero_one = gn.asarray(np.array([[0, 1, 1], [1, 0, 0], [0, 1, 0.5]], dtype), device=device)
    index = gn.asarray(np.array([1, 0, 2]), device=device)
    cases: dict[str, Callable[[gn.Tensor], gn.Tensor]] = {
        "index": lambda x: F.cross_entropy(x, index),
        "smoothed": lambda x: F.cross_entropy(x, index, label_smoothing=0.1),
        "probabilities": lambda x: F.cross_entropy(x, F.softmax(zero_one)),
        "nll": lambda x: F.nll_loss(F.log_softmax(x), index),
        "binary": lambda x: F.binary_cross_entropy_with_logits(x, zero_one),
        "sigmoid": lambda x: F.binary_cross_entropy(F.sigmoid(x), zero_one),
        "huber": lambda x: F.huber_loss(x, zero_one),
        "smooth": lambda x: F.smooth_l1_loss(x, zero_one),
        "l1": lambda x: F.l1_loss(x, zero_one),
        "kl": lambda x: F.kl_div(F.log_softmax(x), F.softmax(zero_one)),
    }
    for name, f in cases.items():
        x = gn.tensor(big, device=device, requires_grad=True)
        loss = f(x)
        loss.backward()
        assert loss.dtype == dtype and math.isfinite(loss.item()), name
        assert np.isfinite(x.grad.cpu().numpy()).all(), name


def test_the_mean_of_many_float16_losses_does_not_overflow() -> None:
    x = np.zeros((5000, 2), "float16")
    x[:, 0] = 1e3
    t = gn.asarray(np.ones(5000, int))
    for weight in (None, gn.asarray(np.full(2, 20, "float16"))):
        assert F.cross_entropy(gn.asarray(x), t, weight).item() == pytest.approx(1e3)


def test_binary_cross_entropy_at_the_ends(device: str) -> None:
    x = gn.tensor(np.array([0.0, 0.0, 1.0, 1.0], "float32"), device=device, requires_grad=True)
    q = gn.asarray(np.array([0.0, 1.0, 0.0, 1.0], "float32"), device=device)
    loss = F.binary_cross_entropy(x, q, reduction="none")
    assert loss.tolist() == [0, 100, 100, 0]
    loss.sum().backward()
    assert np.isfinite(x.grad.cpu().numpy()).all()


@pytest.mark.parametrize("f", [F.mse_loss, F.binary_cross_entropy, F.binary_cross_entropy_with_logits, F.huber_loss])
def test_nan_predictions_give_a_nan_loss(f: Any) -> None:
    assert math.isnan(f(gn.asarray([math.nan, 0.5]), gn.asarray([0.0, 1.0])).item())


def test_an_integer_target_does_not_change_the_dtype() -> None:
    x = gn.asarray([0.25, 0.5])
    for target in (gn.asarray([0, 1]), gn.asarray([False, True]), gn.asarray(np.array([0.0, 1.0]))):
        for f in (F.mse_loss, F.l1_loss, F.huber_loss, F.binary_cross_entropy, F.binary_cross_entropy_with_logits):
            assert f(x, target).dtype == "float32"


# --- errors

PAIRED = [
    F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss, F.binary_cross_entropy, F.binary_cross_entropy_with_logits,
    F.kl_div,
]  # fmt: skip


def message(error: type[Exception], f: Callable[..., Any], *args: Any, **options: Any) -> str:
    with pytest.raises(error) as caught:
        f(*args, **options)
    assert type(caught.value) is error
    return str(caught.value)


@pytest.mark.parametrize("f", PAIRED)
def test_losses_do_not_broadcast(f: Any) -> None:
    column, flat = gn.full((32, 1), 0.5), gn.full((32,), 0.5)
    name = f.__name__
    assert message(gn.errors.ShapeError, f, column, flat) == (
        f"{name}: predictions of shape (32, 1) and targets of shape (32,) differ, and a loss does not broadcast; "
        "squeeze the predictions, or use target.reshape(32, 1)"
    )
    assert "squeeze the target, or use target.reshape(32)" in message(gn.errors.ShapeError, f, flat, column)
    assert message(gn.errors.ShapeError, f, flat, gn.asarray(0.5)) == (
        f"{name}: predictions of shape (32,) and targets of shape () differ, and a loss does not broadcast"
    )


@pytest.mark.parametrize("f", [*PAIRED, F.cross_entropy, F.nll_loss])
def test_predictions_must_be_floating(f: Any) -> None:
    x = gn.zeros((3, 2), dtype="int64")
    assert message(gn.errors.DTypeError, f, x, gn.zeros((3,), dtype="int64")) == (
        f"{f.__name__}: the predictions must be floating-point, got int64 of shape (3, 2); a loss takes what the model "
        "gives, before any argmax or rounding"
    )
    assert "expected the predictions as a Tensor, got a list" in message(gn.errors.DTypeError, f, [1.0], [1.0])


@pytest.mark.parametrize("f", [*PAIRED, F.cross_entropy, F.nll_loss])
def test_unknown_reduction(f: Any) -> None:
    x = gn.full((3, 2), 0.5)
    known = "'none', 'mean', 'sum'" + (", 'batchmean'" if f is F.kl_div else "")
    assert message(ValueError, f, x, x, reduction="average") == (
        f"{f.__name__}: reduction must be one of {known}, got 'average'"
    )


@pytest.mark.parametrize("name", ["cross_entropy", "nll_loss"])
def test_target_out_of_range_is_named(name: str) -> None:
    f, x = getattr(F, name), gn.zeros((4, 3))
    assert message(IndexError, f, x, gn.asarray([0, 2, 3, 7])) == (
        f"{name}: target 3 at row 2 is out of range: the input of shape (4, 3) has 3 classes, 0 to 2"
    )
    assert message(IndexError, f, x, gn.asarray([0, -1, -100, 9])) == (
        f"{name}: target -1 at row 1 is out of range: the input of shape (4, 3) has 3 classes, 0 to 2 "
        "(ignore_index=-100 would be ignored)"
    )
    assert "target 5 is out of range: the input of shape (3,)" in message(IndexError, f, x[0], gn.asarray(5))
    assert "target 5 at (1, 0) is out of range" in message(
        IndexError, f, gn.zeros((2, 3, 2)), gn.asarray([[0, 1], [5, 2]])
    )


@pytest.mark.parametrize("name", ["cross_entropy", "nll_loss"])
def test_target_out_of_range_is_nan_where_looking_would_wait(name: str) -> None:
    f, x = getattr(F, name), gn.tensor(np.zeros((3, 3)), device="strict", requires_grad=True)
    t = gn.asarray(np.array([0, 7, -100]), device="strict")
    assert np.isnan(f(x, t, reduction="none").detach().cpu().numpy()).tolist() == [False, True, False]
    loss = f(x, t)
    loss.backward()
    assert math.isnan(loss.item())
    assert np.isnan(x.grad.cpu().numpy()).any(axis=1).tolist() == [False, True, False]


@pytest.mark.parametrize("name", ["cross_entropy", "nll_loss"])
def test_targets_of_another_shape_or_dtype(name: str) -> None:
    f, x = getattr(F, name), gn.zeros((4, 3))
    dense = ", or floating-point probabilities of its own shape" if name == "cross_entropy" else ""
    takes = f"{name}: an input of shape (4, 3) takes class indices of shape (4,){dense}, got "

    def given(shape: tuple[int, ...], dtype: str = "int64", x: gn.Tensor = x) -> str:
        return message(gn.errors.ShapeError, f, x, gn.zeros(shape, dtype=dtype))

    assert given((3,)) == takes + "int64 of shape (3,): 3 targets for 4 samples"
    assert given((4, 1)) == takes + "int64 of shape (4, 1); use target.reshape(4)"
    assert given((4, 3)) == takes + (
        "int64 of shape (4, 3); are these one-hot rows? then target.argmax(axis=1) gives the class indices"
    )
    assert given((2, 2, 2)) == takes + "int64 of shape (2, 2, 2)"
    assert given((4, 2), "float32") == takes + "float32 of shape (4, 2)"
    assert given((4,), x=gn.zeros((4, 3, 2, 2))).endswith("int64 of shape (4,)")
    text = message(gn.errors.DTypeError, f, x, gn.zeros(4))
    assert text.startswith(
        f"{name}: class indices must be integers, got float32 of shape (4,); convert them: target.astype(gpunet.int64)"
    )
    assert ("probabilities would have the shape of the input, (4, 3)" in text) == (name == "cross_entropy")
    assert "got bool of shape (4,)" in message(gn.errors.DTypeError, f, x, gn.zeros(4, dtype="bool"))
    assert "got a 0-d one" in message(gn.errors.ShapeError, f, gn.asarray(0.0), gn.asarray(0))
    assert message(gn.errors.ShapeError, f, x, gn.zeros(4, dtype="int64"), gn.ones(4)) == (
        f"{name}: expected a weight for each of 3 classes, got one of shape (4,)"
    )


def test_label_smoothing_out_of_range() -> None:
    x, t = gn.zeros((4, 3)), gn.zeros(4, dtype="int64")
    assert message(ValueError, F.cross_entropy, x, t, label_smoothing=1.5) == (
        "cross_entropy: label_smoothing is a share, from 0 to 1, got 1.5"
    )


def test_probabilities_out_of_range() -> None:
    q = gn.zeros((2, 2))
    assert message(ValueError, F.binary_cross_entropy, gn.asarray([[0.5, 1.0], [-0.25, 3.0]]), q) == (
        "binary_cross_entropy: expected probabilities in [0, 1], got -0.25 at (1, 0); for logits use "
        "binary_cross_entropy_with_logits (BCEWithLogitsLoss)"
    )
    x = gn.asarray(np.array([0.5, 1.5]), device="strict")
    found = F.binary_cross_entropy(x, x * 0.0, reduction="none").cpu().numpy()
    assert np.isnan(found).tolist() == [False, True]


@pytest.mark.parametrize("f", [*PAIRED, F.cross_entropy, F.nll_loss])
def test_predictions_and_targets_on_different_devices(f: Any) -> None:
    x = gn.asarray(np.full((2, 3), 0.5), device="strict")
    target = gn.zeros((2,), dtype="int64") if f in (F.cross_entropy, F.nll_loss) else gn.zeros((2, 3))
    text = message(gn.errors.DeviceError, f, x, target)
    assert "cpu" in text and "strict" in text and "x.to(device)" in text


def test_weights_must_broadcast_to_the_losses() -> None:
    x = gn.full((4, 1), 0.5)
    for f in (F.binary_cross_entropy, F.binary_cross_entropy_with_logits):
        assert message(gn.errors.ShapeError, f, x, x, gn.ones(3)) == (
            f"{f.__name__}: weight of shape (3,) does not broadcast to the losses' shape (4, 1)"
        )
    assert "pos_weight of shape (1, 1, 1) does not broadcast to the losses' shape (4, 1)" in message(
        gn.errors.ShapeError, F.binary_cross_entropy_with_logits, x, x, pos_weight=gn.ones((1, 1, 1))
    )


def test_widths_must_be_positive() -> None:
    x = gn.zeros(3)
    assert "delta must be positive, got 0" in message(ValueError, F.huber_loss, x, x, delta=0)
    assert "beta must not be negative, got -1" in message(ValueError, F.smooth_l1_loss, x, x, beta=-1)


# --- the Modules

ROWS_AND_INDICES = (LOGITS, TARGET)
MODULES: dict[str, tuple[str, dict[str, Any], tuple[np.ndarray, np.ndarray]]] = {
    "MSELoss": ("mse_loss", {}, (X, Y)),
    "L1Loss": ("l1_loss", {}, (X, Y)),
    "SmoothL1Loss": ("smooth_l1_loss", {"beta": 0.5}, (X, Y)),
    "HuberLoss": ("huber_loss", {"delta": 0.5}, (X, Y)),
    "CrossEntropyLoss": (
        "cross_entropy",
        {"weight": WEIGHT, "ignore_index": 2, "label_smoothing": 0.1},
        (LOGITS, np.abs(TARGET) % 4),
    ),
    "NLLLoss": ("nll_loss", {"weight": WEIGHT, "ignore_index": 2}, (LOGITS, np.abs(TARGET) % 4)),
    "BCELoss": ("binary_cross_entropy", {"weight": ROW}, (P, Q)),
    "BCEWithLogitsLoss": ("binary_cross_entropy_with_logits", {"weight": ROW, "pos_weight": ROW * 2}, (X, Q)),
    "KLDivLoss": ("kl_div", {"log_target": True}, (np.log(P), Q)),
}


@pytest.mark.parametrize("name", MODULES)
def test_modules_pass_their_arguments_on(name: str, device: str) -> None:
    function, options, (x, target) = MODULES[name]
    x, target = gn.asarray(x, device=device), gn.asarray(target, device=device)
    weights = {k: gn.asarray(v, device=device) if isinstance(v, np.ndarray) else v for k, v in options.items()}
    for reduction in REDUCTIONS:
        module = getattr(losses, name)(**options, reduction=reduction).to(device)
        expected = getattr(F, function)(x, target, **weights, reduction=reduction)
        close(module(x, target), expected.cpu().numpy())
        plain = getattr(losses, name)(reduction=reduction)
        assert not np.allclose(plain(x, target).cpu().numpy(), expected.cpu().numpy()) or not options
        assert set(module.state_dict()) == {k for k, v in options.items() if isinstance(v, np.ndarray)}
        assert repr(plain) == (f"{name}()" if reduction == "mean" else f"{name}(reduction={reduction!r})")


def test_modules_check_the_reduction_at_once() -> None:
    assert message(ValueError, losses.MSELoss, "avg") == (
        "MSELoss: reduction must be one of 'none', 'mean', 'sum', got 'avg'"
    )
    assert losses.KLDivLoss("batchmean").reduction == "batchmean"


def test_all_losses_are_here() -> None:
    made = {n for n, c in vars(losses).items() if isinstance(c, type) and n.endswith("Loss") and n != "_Loss"}
    assert made == set(MODULES)
