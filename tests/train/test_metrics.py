import math
import warnings

import numpy as np
import pytest

import gpunet as gn
from gpunet.errors import DTypeError, ShapeError
from gpunet.train import metrics as m

rng = np.random.default_rng(7)
SCORES = rng.standard_normal((200, 5)).astype(np.float32)
PRED = SCORES.argmax(1)
TARGET = np.where(rng.random(200) < 0.5, PRED, rng.integers(0, 5, 200))


def streamed(metric, pred, target, sizes=(1, 60, 0, 100, 39), convert=lambda x: x):
    """The metric's value, fed with batches of unequal sizes."""
    start = 0
    for size in sizes:
        metric.update(convert(pred[start : start + size]), convert(target[start : start + size]))
        start += size
    assert start == len(target)
    return metric.compute()


@pytest.fixture(scope="module")
def sk():
    return pytest.importorskip("sklearn.metrics")


# --- hand formulas


def test_accuracy_weights_batches_by_samples():
    assert streamed(m.Accuracy(), SCORES, TARGET) == np.mean(PRED == TARGET)


def test_accuracy_accepts_scores_classes_booleans_and_tensors():
    expected = float(np.mean(PRED == TARGET))
    assert streamed(m.Accuracy(), PRED, TARGET) == expected
    assert streamed(m.Accuracy(), SCORES, TARGET, convert=gn.asarray) == expected
    assert streamed(m.Accuracy(), SCORES, TARGET.astype(np.float32)) == expected
    assert streamed(m.Accuracy(), SCORES, TARGET.astype(np.uint8)) == expected
    metric = m.Accuracy()
    metric.update(np.array([True, False]), np.array([True, True]))
    assert metric.compute() == 0.5
    metric.update([1, 1], [1, 1])
    assert metric.compute() == 0.75


def test_accuracy_of_tensors_that_require_gradients():
    metric = m.Accuracy()
    metric.update(gn.tensor([[1.0, 2.0]], requires_grad=True), gn.tensor([1]))
    assert metric.compute() == 1.0


@pytest.mark.parametrize(("threshold", "shape"), [(0.5, (-1,)), (0.0, (-1, 1)), (0.0, (-1,))])
def test_binary_scores(threshold, shape):
    scores, target = np.array([-2, -0.1, 0.4, 0.6, 3.0], np.float32), np.array([0, 0, 1, 1, 0])
    expected = np.mean((scores > threshold) == target)
    metric = m.Accuracy(threshold=threshold)
    metric.update(scores.reshape(shape), target)
    metric.update(scores.reshape(shape), target.reshape(shape).astype(np.float32))
    assert metric.compute() == pytest.approx(expected)


def test_a_score_at_the_threshold_is_not_above_it():
    metric = m.ConfusionMatrix()
    metric.update(np.array([0.5, 0.75]), np.array([0, 1]))
    assert metric.compute().tolist() == [[1, 0], [0, 1]]


def test_per_pixel_scores():
    scores = rng.standard_normal((2, 3, 4, 5))
    target = rng.integers(0, 3, (2, 4, 5))
    metric, top = m.Accuracy(), m.TopKAccuracy(2)
    metric.update(scores, target)
    top.update(scores, target)
    assert metric.compute() == np.mean(scores.argmax(1) == target)
    best = np.argsort(-scores, axis=1)[:, :2]
    assert top.compute() == np.mean((best == target[:, None]).any(1))


def test_top_k_by_sorting():
    best = np.argsort(-SCORES, axis=1)[:, :3]
    assert streamed(m.TopKAccuracy(3), SCORES, TARGET) == np.mean((best == TARGET[:, None]).any(1))
    assert streamed(m.TopKAccuracy(1), SCORES, TARGET) == np.mean(PRED == TARGET)
    assert streamed(m.TopKAccuracy(5), SCORES, TARGET) == 1.0


def test_top_k_does_not_profit_from_ties_or_nan():
    equal = np.zeros((5, 5))
    metric = m.TopKAccuracy(2)
    metric.update(equal, np.arange(5))
    assert metric.compute() == 2 / 5
    metric.reset()
    metric.update(np.full((5, 5), np.nan), np.arange(5))
    assert metric.compute() == 0.0


def test_confusion_matrix_by_counting():
    matrix = np.zeros((5, 5), int)
    for t, p in zip(TARGET, PRED):
        matrix[t, p] += 1
    result = streamed(m.ConfusionMatrix(), SCORES, TARGET)
    np.testing.assert_array_equal(result, matrix)
    assert result.dtype == np.int64
    np.testing.assert_array_equal(streamed(m.ConfusionMatrix(num_classes=7), PRED, TARGET)[:5, :5], matrix)


def test_number_of_classes_may_grow():
    metric = m.ConfusionMatrix()
    for pred, target in (([0, 1], [0, 0]), ([3], [2]), ([1], [1])):
        metric.update(pred, target)
    np.testing.assert_array_equal(metric.compute(), [[1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0]])


def test_regression_by_formula():
    p, t = rng.standard_normal((200, 3)), rng.standard_normal((200, 3))
    assert streamed(m.MeanAbsoluteError(), p, t) == pytest.approx(np.abs(p - t).mean(), rel=1e-14)
    assert streamed(m.MeanSquaredError(), p, t) == pytest.approx(((p - t) ** 2).mean(), rel=1e-14)
    r2 = np.mean(1 - ((p - t) ** 2).sum(0) / ((t - t.mean(0)) ** 2).sum(0))
    assert streamed(m.R2Score(), p, t) == pytest.approx(r2, rel=1e-13)


def test_r2_far_from_zero_does_not_cancel():
    t = 1e8 + rng.standard_normal(200)
    p = t + 0.1 * rng.standard_normal(200)
    expected = 1 - ((p - t) ** 2).sum() / ((t - t.mean()) ** 2).sum()
    assert streamed(m.R2Score(), p, t) == pytest.approx(expected, rel=1e-9)


def test_r2_of_constant_targets_and_of_one_sample():
    metric = m.R2Score()
    metric.update([3.0], [3.0])
    assert math.isnan(metric.compute())
    metric.update([3.0], [3.0])
    assert metric.compute() == 1.0
    metric.update([4.0], [3.0])
    assert metric.compute() == 0.0


def test_sums_are_float64_whatever_the_data():
    p, t = np.full(4096, 10, np.float16), np.zeros(4096, np.float16)
    metric = m.MeanSquaredError()
    metric.update(p, t)  # the sum, 409600, is beyond float16
    assert metric.compute() == 100.0


def test_mean_is_weighted():
    mean = m.Mean("loss")
    mean.update(1.0, 3)
    mean.update(gn.tensor(5.0), 1)
    assert mean.compute() == 2.0


# --- scikit-learn


@pytest.mark.parametrize("average", ["macro", "micro", "weighted", None])
@pytest.mark.parametrize("kind", ["precision", "recall", "f1"])
@pytest.mark.parametrize("case", ["all", "absent", "never_predicted"])
def test_precision_recall_f1_are_scikit_learns(sk, kind, average, case):
    pred, target = PRED, TARGET
    if case == "absent":  # class 3 neither occurs nor is predicted
        pred, target = np.where(pred == 3, 4, pred), np.where(target == 3, 4, target)
    if case == "never_predicted":
        pred = np.where(pred == 2, 1, pred)
    metric = {"precision": m.Precision, "recall": m.Recall, "f1": m.F1}[kind](average=average)
    labels = np.arange(5) if average is None else None
    expected = getattr(sk, f"{kind}_score")(target, pred, average=average, labels=labels, zero_division=0)
    np.testing.assert_allclose(streamed(metric, pred, target), expected, rtol=1e-12)


@pytest.mark.parametrize("kind", ["precision", "recall", "f1"])
def test_binary_average_is_scikit_learns(sk, kind):
    pred, target = PRED > 2, TARGET > 2
    metric = {"precision": m.Precision, "recall": m.Recall, "f1": m.F1}[kind](average="binary")
    assert streamed(metric, pred, target) == pytest.approx(getattr(sk, f"{kind}_score")(target, pred), rel=1e-12)


def test_other_metrics_are_scikit_learns(sk):
    np.testing.assert_array_equal(streamed(m.ConfusionMatrix(), PRED, TARGET), sk.confusion_matrix(TARGET, PRED))
    assert streamed(m.TopKAccuracy(2), SCORES, TARGET) == sk.top_k_accuracy_score(TARGET, SCORES, k=2)
    p, t = rng.standard_normal((200, 2)), rng.standard_normal((200, 2))
    assert streamed(m.R2Score(), p, t) == pytest.approx(sk.r2_score(t, p), rel=1e-12)
    assert streamed(m.MeanAbsoluteError(), p, t) == pytest.approx(sk.mean_absolute_error(t, p), rel=1e-12)
    assert streamed(m.MeanSquaredError(), p, t) == pytest.approx(sk.mean_squared_error(t, p), rel=1e-12)


def test_division_by_zero_gives_what_is_asked_for_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for zero in (0.0, 1.0):
            metric = m.Precision(average=None, zero_division=zero)
            metric.update([0, 0], [0, 1])
            assert metric.compute().tolist() == [0.5, zero]
            metric = m.F1(average="binary", zero_division=zero)
            metric.update([0, 0], [0, 0])
            assert metric.compute() == zero
        assert math.isnan(m.Accuracy().compute())
        empty = m.Recall()
        empty.update(np.zeros(0, int), np.zeros(0, int))
        assert empty.compute() == 0.0


# --- streaming


ALL = [
    (lambda: m.Accuracy(), SCORES, TARGET),
    (lambda: m.TopKAccuracy(2), SCORES, TARGET),
    (lambda: m.Precision(), SCORES, TARGET),
    (lambda: m.Recall("micro"), SCORES, TARGET),
    (lambda: m.F1(None), PRED, TARGET),
    (lambda: m.ConfusionMatrix(), PRED, TARGET),
    (lambda: m.MeanAbsoluteError(), SCORES, SCORES[::-1]),
    (lambda: m.MeanSquaredError(), SCORES, SCORES[::-1]),
    (lambda: m.R2Score(), SCORES, SCORES[::-1]),
    (lambda: m.MeanOf(lambda p, t: gn.tensor(float(np.mean(p)))), SCORES, TARGET),
]


@pytest.mark.parametrize(("make", "pred", "target"), ALL)
def test_batches_merging_and_resuming_give_the_same(make, pred, target):
    whole = make()
    whole.update(pred, target)
    close = {"rtol": 1e-6}
    np.testing.assert_allclose(streamed(make(), pred, target, sizes=(1, 60, 100, 39)), whole.compute(), **close)

    left, right = make(), make()
    left.update(pred[:70], target[:70])
    right.update(pred[70:], target[70:])
    resumed = make()
    resumed.load_state_dict(left.state_dict())
    resumed.update(pred[70:], target[70:])
    left.merge(right)
    left.merge(make())
    np.testing.assert_allclose(left.compute(), whole.compute(), **close)
    np.testing.assert_array_equal(resumed.compute(), left.compute())
    left.reset()
    left.update(pred, target)
    np.testing.assert_array_equal(left.compute(), whole.compute())


def test_ignored_targets_do_not_count():
    target = TARGET.copy()
    target[::3] = -100
    keep = target >= 0
    for make, pred in ((m.Accuracy, SCORES), (m.ConfusionMatrix, SCORES), (m.F1, PRED), (m.TopKAccuracy, SCORES)):
        expected = make()
        expected.update(pred[keep], target[keep])
        np.testing.assert_array_equal(streamed(make(ignore_index=-100), pred, target), expected.compute())


# --- names


def test_names():
    assert m.get_metric("top3").k == 3
    assert m.get_metric("accuracy", threshold=0).threshold == 0
    assert isinstance(m.get_metric("r2", threshold=0), m.R2Score)
    own = m.Accuracy()
    assert m.get_metric(own) is own

    def spread(pred, target):
        return gn.tensor(2.0)

    metric = m.get_metric(spread)
    metric.update(np.zeros(3), np.zeros(3))
    assert (metric.name, metric.compute()) == ("spread", 2.0)


def test_unknown_names_list_the_known():
    with pytest.raises(ValueError, match=r"unknown metric 'acuracy'; known: accuracy, precision, .* r2, top5"):
        m.get_metric("acuracy")
    with pytest.raises(TypeError, match="a metric must be a name, a Metric or a function, got 3"):
        m.get_metric(3)
    with pytest.raises(ValueError, match='unknown average \'marco\'; expected "macro", "weighted"'):
        m.F1(average="marco")


# --- bad input


def test_a_list_of_metrics():
    made = m.get_metrics(["accuracy", m.F1(), m.F1("micro", name="micro")], threshold=0.0)
    assert [metric.name for metric in made] == ["accuracy", "f1", "micro"] and made[0].threshold == 0.0
    with pytest.raises(TypeError, match=r"metrics must be a list, got 'accuracy': give \['accuracy'\]"):
        m.get_metrics("accuracy")
    with pytest.raises(TypeError, match="a metric is the class Accuracy itself; did you mean Accuracy\\(\\)?"):
        m.get_metrics([m.Accuracy])
    for metrics, name in [([m.F1("micro"), "f1"], "f1"), ([m.Mean("loss")], "loss"), ([m.Mean("lr")], "lr")]:
        with pytest.raises(ValueError, match=f"metrics: the name '{name}' is taken; give another, (F1|Mean).*name="):
            m.get_metrics(metrics)


def test_lengths_that_differ():
    for metric, pred in ((m.Accuracy(), SCORES), (m.TopKAccuracy(2), SCORES), (m.F1(), PRED)):
        with pytest.raises(
            ShapeError, match=rf"{metric.name}: 200 predictions and 199 targets: expected equal numbers"
        ):
            metric.update(pred, TARGET[:-1])
    with pytest.raises(ShapeError, match=r"mse: predictions of shape \(3,\) and targets of shape \(2,\)"):
        m.MeanSquaredError().update(np.zeros(3), np.zeros(2))
    with pytest.raises(ShapeError, match=r"mae: predictions of shape \(3, 1\) and targets of shape \(3,\)"):
        m.MeanAbsoluteError().update(np.zeros((3, 1)), np.zeros(3))  # would broadcast to (3, 3)


def test_targets_out_of_range():
    for bad in (5, -1):
        target = TARGET.copy()
        target[3] = bad
        low, high = target.min(), target.max()
        for metric in (m.Accuracy(), m.TopKAccuracy(2), m.ConfusionMatrix(), m.Recall()):
            text = f"{metric.name}: targets range from {low} to {high}, expected class indices 0 to 4"
            with pytest.raises(ValueError, match=text):
                metric.update(SCORES, target)
            assert math.isnan(metric.compute())
    with pytest.raises(ValueError, match="accuracy: predictions range from -1 to 0, expected class indices 0 or more"):
        m.Accuracy().update([-1, 0], [0, 0])
    with pytest.raises(ValueError, match="predictions range from 0 to 3, expected class indices 0 to 2"):
        m.ConfusionMatrix(num_classes=3).update([0, 3], [0, 0])


def test_shapes_and_types_that_make_no_sense():
    with pytest.raises(
        ShapeError, match=r"accuracy: predictions of shape \(4, 3, 2\) do not fit targets of shape \(4,\)"
    ):
        m.Accuracy().update(np.zeros((4, 3, 2)), np.zeros(4, int))
    with pytest.raises(
        ShapeError, match=r"scores and targets both have shape \(4, 3\); for classes give class indices"
    ):
        m.Accuracy().update(np.zeros((4, 3)), np.zeros((4, 3)))
    with pytest.raises(DTypeError, match="targets must be class indices, got float64 values that are not whole"):
        m.Accuracy().update(np.zeros((2, 3)), np.array([0.5, 1]))
    with pytest.raises(ShapeError, match=r"top5: expected scores \(N, C, ...\) with C >= 5 .* got \(4, 3\) for \(4,\)"):
        m.TopKAccuracy(5).update(np.zeros((4, 3)), np.zeros(4, int))
    with pytest.raises(ShapeError, match=r'f1: average="binary" is for two classes, got scores of 5'):
        m.F1("binary").update(SCORES, TARGET)
    with pytest.raises(ShapeError, match=r"accuracy: expected batches, got predictions \(\) and targets \(\)"):
        m.Accuracy().update(1, 1)
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        m.TopKAccuracy(0)
    with pytest.raises(TypeError, match="accuracy: cannot merge a F1 into a Accuracy"):
        m.Accuracy().merge(m.F1())
