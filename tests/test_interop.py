"""SciPy's and scikit-learn's functions for arrays of any kind, run on Tensors: NumPy's results, and gradients.

SciPy decides at its import whether to look at what kind of arrays it is given, by the environment variable
SCIPY_ARRAY_API. So the tests below are for a process that has it; elsewhere one test starts that process.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gpunet as gn
from gpunet.errors import GradientError
from tests.gradcheck import check_gradients

pytest.importorskip("array_api_compat", reason="what SciPy and scikit-learn know arrays by")
pytest.importorskip("scipy", minversion="1.17", reason="older ones take arrays of fewer kinds")
sklearn = pytest.importorskip("sklearn", minversion="1.9", reason="older ones take arrays of fewer kinds")

ANY_ARRAY = os.environ.get("SCIPY_ARRAY_API") == "1"
in_that_process = pytest.mark.skipif(not ANY_ARRAY, reason="needs SCIPY_ARRAY_API=1; test_in_its_own_process runs it")


def each(cases: dict[str, Any]) -> pytest.MarkDecorator:
    """The names of all cases; where none is to run, one."""
    return pytest.mark.parametrize("name", list(cases) if ANY_ARRAY else ["each"])


rng = np.random.default_rng(11)
X, Y = rng.random((20, 3)), rng.random((20, 3))
V, W = rng.random(16), rng.random(16)
TARGET = X @ np.array([1.0, -2.0, 3.0]) + 0.1 * rng.standard_normal(20)
CLASSES = np.greater(TARGET, np.median(TARGET)).astype(np.int64)
GUESSES = np.where(np.arange(20) < 4, 1 - CLASSES, CLASSES)
SCORES = rng.random(20)


@pytest.mark.skipif(ANY_ARRAY, reason="this is that process")
def test_in_its_own_process() -> None:
    command = [sys.executable, "-m", "pytest", __file__, "-p", "no:cacheprovider"]
    child = subprocess.run(
        command,
        env=os.environ | {"SCIPY_ARRAY_API": "1"},
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == 0 and " passed" in child.stdout, child.stdout[-3000:] + child.stderr[-2000:]


def _stats(name: str, *arrays: Any, **options: Any) -> Callable[[Any], Any]:
    def call(a: Any) -> Any:
        from scipy import stats

        found = getattr(stats, name)(*map(a, arrays), **options)
        return (found.statistic, found.pvalue) if hasattr(found, "pvalue") else found

    return call


def _from(module: str, name: str, *arrays: Any, **options: Any) -> Callable[[Any], Any]:
    def call(a: Any) -> Any:
        return getattr(__import__(module, fromlist=[name]), name)(*map(a, arrays), **options)

    return call


def _fitted(module: str, name: str, method: str, target: Any = None, **options: Any) -> Callable[[Any], Any]:
    def call(a: Any) -> Any:
        estimator = getattr(__import__(module, fromlist=[name]), name)(**options)
        estimator.fit(a(X), None if target is None else a(target))
        return getattr(estimator, method)(a(X))

    return call


def _find_root(a: Any) -> Any:
    from scipy.optimize import elementwise

    ends = (a(np.zeros(3)), a(np.full(3, 3.0)))
    return elementwise.find_root(lambda x, c: x * x - c, ends, args=(a(np.array([1.0, 2.0, 3.0])),)).x


def _integral(a: Any) -> Any:
    from scipy.integrate import tanhsinh

    return tanhsinh(lambda x: x * x, a(np.zeros(2)), a(np.array([1.0, 2.0]))).integral


def _interpolated(a: Any) -> Any:
    from scipy.interpolate import RegularGridInterpolator

    return RegularGridInterpolator((a(np.arange(20.0)), a(np.arange(3.0))), a(X))(a(Y[:, :2]))


def _split(a: Any) -> Any:
    from sklearn.model_selection import train_test_split

    return train_test_split(a(X), a(CLASSES), random_state=0)


FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "stats.zscore": _stats("zscore", X),
    "stats.skew": _stats("skew", X),
    "stats.kurtosis": _stats("kurtosis", X),
    "stats.gmean": _stats("gmean", X),
    "stats.entropy": _stats("entropy", V / V.sum(), W / W.sum()),
    "stats.pearsonr": _stats("pearsonr", V, W),
    "stats.ttest_ind": _stats("ttest_ind", X, Y),
    "stats.chisquare": _stats("chisquare", V, V[::-1].copy()),
    "stats.mannwhitneyu": _stats("mannwhitneyu", V, W),
    "stats.rankdata": _stats("rankdata", V),
    "stats.quantile": _stats("quantile", V, np.array([0.3, 0.7])),
    "stats.trim_mean": _stats("trim_mean", V, proportiontocut=0.1),
    "stats.circmean": _stats("circmean", V),
    "stats.false_discovery_control": _stats("false_discovery_control", V),
    "special.logsumexp": _from("scipy.special", "logsumexp", X, axis=0),
    "special.softmax": _from("scipy.special", "softmax", X, axis=1),
    "special.gammaln": _from("scipy.special", "gammaln", X),
    "special.xlogy": _from("scipy.special", "xlogy", X, Y),
    "special.betainc": _from("scipy.special", "betainc", X, Y, X),
    "fft.rfft": _from("scipy.fft", "rfft", V, n=9),
    "fft.irfftn": _from("scipy.fft", "irfftn", X),
    "fft.dct": _from("scipy.fft", "dct", V),
    "signal.fftconvolve": _from("scipy.signal", "fftconvolve", V, W),
    "signal.oaconvolve": _from("scipy.signal", "oaconvolve", V, W[:3]),
    "signal.hilbert": _from("scipy.signal", "hilbert", V),
    "signal.savgol_filter": _from("scipy.signal", "savgol_filter", V, window_length=5, polyorder=2),
    "signal.detrend": _from("scipy.signal", "detrend", V),
    "integrate.trapezoid": _from("scipy.integrate", "trapezoid", V),
    "integrate.cumulative_simpson": _from("scipy.integrate", "cumulative_simpson", V),
    "integrate.tanhsinh": _integral,
    "optimize.rosen": _from("scipy.optimize", "rosen", X),
    "optimize.rosen_hess": _from("scipy.optimize", "rosen_hess", V),
    "optimize.elementwise.find_root": _find_root,
    "interpolate.RegularGridInterpolator": _interpolated,
    "ndimage.gaussian_filter": _from("scipy.ndimage", "gaussian_filter", X, sigma=1.0),
    "spatial.transform.Rotation": lambda a: _rotate(a(X), a(Y)),
    "cluster.vq.whiten": _from("scipy.cluster.vq", "whiten", X),
    "cluster.vq.vq": _from("scipy.cluster.vq", "vq", X, Y[:4]),
    "cluster.hierarchy.linkage": _from("scipy.cluster.hierarchy", "linkage", X),
    "sklearn: mean_squared_error": _from("sklearn.metrics", "mean_squared_error", TARGET, SCORES),
    "sklearn: r2_score": _from("sklearn.metrics", "r2_score", TARGET, SCORES),
    "sklearn: accuracy_score": _from("sklearn.metrics", "accuracy_score", CLASSES, GUESSES),
    "sklearn: f1_score": _from("sklearn.metrics", "f1_score", CLASSES, GUESSES),
    "sklearn: confusion_matrix": _from("sklearn.metrics", "confusion_matrix", CLASSES, GUESSES),
    "sklearn: precision_recall_curve": _from("sklearn.metrics", "precision_recall_curve", CLASSES, SCORES),
    "sklearn: log_loss": _from("sklearn.metrics", "log_loss", CLASSES, SCORES),
    "sklearn: euclidean_distances": _from("sklearn.metrics.pairwise", "euclidean_distances", X, Y),
    "sklearn: rbf_kernel": _from("sklearn.metrics.pairwise", "rbf_kernel", X, Y),
    "sklearn: StandardScaler": _fitted("sklearn.preprocessing", "StandardScaler", "transform"),
    "sklearn: PolynomialFeatures": _fitted("sklearn.preprocessing", "PolynomialFeatures", "transform"),
    "sklearn: PCA": _fitted("sklearn.decomposition", "PCA", "transform", n_components=2, svd_solver="full"),
    "sklearn: Ridge": _fitted("sklearn.linear_model", "Ridge", "predict", TARGET, solver="svd"),
    "sklearn: LogisticRegression": _fitted("sklearn.linear_model", "LogisticRegression", "predict_proba", CLASSES),
    "sklearn: LinearDiscriminantAnalysis": _fitted(
        "sklearn.discriminant_analysis", "LinearDiscriminantAnalysis", "predict", CLASSES
    ),
    "sklearn: GaussianNB": _fitted("sklearn.naive_bayes", "GaussianNB", "predict", CLASSES),
    "sklearn: train_test_split": _split,
}
# What these give for Tensors is no Tensor: numbers, or what they compute with NumPy.
OTHERS = {
    "sklearn: mean_squared_error", "sklearn: r2_score", "sklearn: accuracy_score", "sklearn: f1_score",
    "sklearn: log_loss",
}  # fmt: skip


def _each(found: Any) -> list[Any]:
    return [y for part in found for y in _each(part)] if isinstance(found, (tuple, list)) else [found]


@pytest.fixture
def on(device: str, monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], gn.Tensor]:
    """What makes Tensors of NumPy arrays, where the default device is theirs and the default dtype NumPy's: SciPy and
    scikit-learn make arrays of their own without saying where and of which type."""
    monkeypatch.setattr("gpunet.creation._device", gn.Device(device))
    monkeypatch.setattr("gpunet.dtypes._default", gn.float64)
    return lambda x: gn.asarray(x, device=device)


@in_that_process
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # SciPy divides by zero on purpose, and silences NumPy alone
@each(FUNCTIONS)
def test_results_are_numpys(name: str, on: Callable[[Any], gn.Tensor]) -> None:
    with sklearn.config_context(array_api_dispatch=True):
        expected, found = _each(FUNCTIONS[name](np.asarray)), _each(FUNCTIONS[name](on))
    assert len(found) == len(expected)
    for y, other in zip(found, expected):
        assert isinstance(y, gn.Tensor) or name in OTHERS
        y = y.cpu().numpy() if isinstance(y, gn.Tensor) else np.asarray(y)
        np.testing.assert_allclose(y, other, rtol=1e-9, atol=1e-12)
        assert y.dtype == np.asarray(other).dtype


def _rotate(x: Any, y: Any) -> Any:
    from scipy.spatial.transform import Rotation

    return Rotation.from_rotvec(x).apply(y)


def _predicted(x: Any, y: Any) -> Any:
    from sklearn.linear_model import Ridge

    return Ridge(solver="svd").fit(x, y).predict(x)


def _of(module: str, name: str, **options: Any) -> Callable[..., Any]:
    return lambda *x: _from(module, name, *x, **options)(lambda a: a)


GRADIENTS: dict[str, tuple[Callable[..., Any], list[np.ndarray]]] = {
    "stats.gmean": (_of("scipy.stats", "gmean"), [X[:4]]),
    "stats.zscore": (_of("scipy.stats", "zscore"), [X[:4]]),
    "special.logsumexp": (_of("scipy.special", "logsumexp", axis=0), [X[:4]]),
    "signal.fftconvolve": (_of("scipy.signal", "fftconvolve"), [V[:5], W[:3]]),
    "integrate.cumulative_simpson": (_of("scipy.integrate", "cumulative_simpson"), [V[:5]]),
    "spatial.transform.Rotation": (_rotate, [X[:2], Y[:2]]),
    "sklearn: rbf_kernel": (_of("sklearn.metrics.pairwise", "rbf_kernel"), [X[:3], Y[:3]]),
    "sklearn: polynomial_kernel": (_of("sklearn.metrics.pairwise", "polynomial_kernel"), [X[:3], Y[:3]]),
    "sklearn: Ridge": (_predicted, [X[:6], TARGET[:6]]),
}


@in_that_process
@each(GRADIENTS)
def test_gradients(name: str, on: Callable[[Any], gn.Tensor], device: str) -> None:
    """Of what SciPy and scikit-learn compute, first and second order, against finite differences."""
    function, inputs = GRADIENTS[name]
    with sklearn.config_context(array_api_dispatch=True):
        check_gradients(function, inputs, device=device, rtol=1e-5)


@in_that_process
def test_a_gradient_is_not_lost_in_numpy(on: Callable[[Any], gn.Tensor]) -> None:
    """SciPy computes the p-value of a correlation by functions of NumPy arrays."""
    with pytest.raises(GradientError, match=r"a NumPy array of a tensor that requires gradients: use x.detach\(\)"):
        _of("scipy.stats", "pearsonr")(on(V).requires_grad_(), on(W))


@in_that_process
def test_gradient_is_what_scipy_says_it_is(on: Callable[[Any], gn.Tensor]) -> None:
    from scipy.optimize import rosen, rosen_der, rosen_hess_prod

    x, direction = on(V).requires_grad_(), on(W)
    (gradient,) = gn.grad(rosen(x), [x], create_graph=True)
    np.testing.assert_allclose(gradient.detach().cpu().numpy(), rosen_der(V), rtol=1e-12)
    (product,) = gn.grad((gradient * direction).sum(), [x])
    np.testing.assert_allclose(product.cpu().numpy(), rosen_hess_prod(V, W), rtol=1e-12)
