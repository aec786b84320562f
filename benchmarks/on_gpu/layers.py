"""Stages convolution and layers: layers of networks, forward and backward, by gpunet and by PyTorch in the same run.

Both libraries run the same program: a case makes its layer from `nn`, which is either one's, and both layers get the
same parameters and inputs, in the same memory. gpunet's result and gradients are compared with those of its references
in float64 before anything is timed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

import gpunet as gn
from benchmarks.on_gpu.hardware import copy_bytes, run_length
from benchmarks.on_gpu.machine import Machine, Timing
from benchmarks.on_gpu.products import TOLERANCE, Contender
from benchmarks.on_gpu.supervise import Column, Run

FORWARD, BACKWARD = "forward", "backward"
INPUT_GRAD, WEIGHT_GRAD = "input gradient", "weight gradient"
_MOST_SETS = 64


@dataclass(frozen=True)
class Case:
    """A layer, and which of its passes to measure.

    Attributes:
        name: of the case, without precision and pass.
        make: the layer, given `nn` of either library.
        shape: of its input.
        passes: of FORWARD, BACKWARD (with respect to input and parameters), INPUT_GRAD and WEIGHT_GRAD (to one alone).
        compute: "float32", "tf32", "float16" or "bfloat16".
        classes: the layer is a loss, with targets below this.
        words: the input is integers below this.
        flops: of a pass forward, where arithmetic is what takes the time; in attention, backward has 2.5 times as many.
        bar: for best torch / gpunet, where arithmetic is what takes the time; else 0.9 of a copy's rate is asked for.
        saved: what backward has to read beside the gradient: "input", "output", "offsets" (a byte per output), or "".
    """

    name: str
    make: Callable[[Any], Any]
    shape: tuple[int, ...]
    passes: tuple[str, ...] = (FORWARD, BACKWARD)
    compute: str = "float32"
    classes: int = 0
    words: int = 0
    flops: float = 0.0
    bar: float | None = None
    saved: str = "input"

    @property
    def dtype(self) -> str:
        return "float32" if self.compute == "tf32" else self.compute

    def work(self, which: str, x: Any, y: Any) -> float:
        """FLOPs of a pass, or the bytes that it cannot do without: each array that it has or gives, once."""
        if self.flops:
            return self.flops * (2.5 if which == BACKWARD else 1.0)
        if self.words:
            return x.nbytes + 2 * y.nbytes
        saved = {"input": x.nbytes, "output": y.nbytes, "offsets": y.size, "": 0}[self.saved]
        return x.nbytes + y.nbytes + (saved if which == BACKWARD or self.saved == "offsets" else 0)


# --- the cases


def _resnet50() -> Iterator[tuple[int, int, int, int, int]]:
    """The convolutions of ResNet-50 (He et al., 2015): channels, outputs, kernel, stride, height and width."""
    yield 3, 64, 7, 2, 224
    before, size = 64, 56
    for width in (64, 128, 256, 512):
        stride = 1 if width == 64 else 2
        yield before, width, 1, 1, size
        yield width, width, 3, stride, size
        yield before, 4 * width, 1, stride, size
        before, size = 4 * width, size // stride
        yield width, before, 1, 1, size
        yield before, width, 1, 1, size
        if stride == 2:
            yield width, width, 3, 1, size


def _convolution(batch: int, sizes: tuple[int, int, int, int, int], compute: str) -> Iterator[Case]:
    channels, outputs, kernel, stride, size = sizes
    name = f"conv {kernel}x{kernel}{f'/{stride}' if stride > 1 else ''} {channels}-{outputs} @{size}"
    out = -(-size // stride)
    flops = 2.0 * batch * out * out * outputs * channels * kernel * kernel

    def bare(nn: Any) -> Any:
        return nn.Conv2d(channels, outputs, kernel, stride, kernel // 2, bias=False)

    def fused(nn: Any) -> Any:
        return nn.Sequential(nn.Conv2d(channels, outputs, kernel, stride, kernel // 2), nn.ReLU())

    shape = (batch, channels, size, size)
    yield Case(f"{name} +bias+relu", fused, shape, (FORWARD,), compute, flops=flops, bar=1.0)
    grads = (INPUT_GRAD, WEIGHT_GRAD) if channels > 3 else (WEIGHT_GRAD,)
    yield Case(name, bare, shape, (FORWARD, *grads), compute, flops=flops)


def convolution_cases(run: Run) -> Iterator[Case]:
    if run.dry:
        yield from _convolution(2, (8, 8, 3, 2, 6), "float32")
        return
    computes = [c for c in ("bfloat16", "tf32", "float32") if c != "bfloat16" or run.machine.bfloat16 is not None]
    for sizes in _resnet50():
        for compute in computes:
            yield from _convolution(32, sizes, compute)


class _Attention:
    """softmax(q kᵀ) v of one array (3, N, heads, L, D)."""

    def __init__(self, nn: Any, causal: bool) -> None:
        self._attend = partial(nn.functional.scaled_dot_product_attention, is_causal=causal)

    def __call__(self, x: Any) -> Any:
        return self._attend(x[0], x[1], x[2])


def layer_cases(run: Run) -> Iterator[Case]:
    """Layers that move memory, and attention."""
    images, small = ((2, 8, 6, 6), (2, 16, 3, 3)) if run.dry else ((32, 64, 112, 112), (32, 2048, 7, 7))
    normed = (2, 8, 4, 4) if run.dry else (32, 256, 56, 56)
    rows, logits = ((6, 32), (6, 50)) if run.dry else ((8192, 1024), (4096, 50257))
    heads = (1, 2, 20, 16) if run.dry else (8, 12, 1024, 64)
    width, channels = rows[1], normed[1]
    low = "bfloat16" if run.machine.bfloat16 is not None else "float16"
    for compute in ("float32",) if run.dry else ("float32", low):
        how: dict[str, Any] = {"compute": compute}
        yield Case("max pool 3x3/2", lambda nn: nn.MaxPool2d(3, 2, 1), images, saved="offsets", **how)
        yield Case("average pool 2x2/2", lambda nn: nn.AvgPool2d(2), images, saved="", **how)
        yield Case("global average pool", lambda nn: nn.AdaptiveAvgPool2d(1), small, saved="", **how)
        yield Case("batch norm", lambda nn: nn.BatchNorm2d(channels), normed, **how)
        yield Case("batch norm + relu", lambda nn: nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU()), normed, **how)
        yield Case("group norm", lambda nn: nn.GroupNorm(4, channels), normed, **how)
        yield Case("layer norm", lambda nn: nn.LayerNorm(width), rows, **how)
        yield Case("rms norm", lambda nn: nn.RMSNorm(width, eps=1e-6), rows, **how)
        yield Case("softmax", lambda nn: nn.Softmax(-1), rows, saved="output", **how)
        yield Case("log softmax", lambda nn: nn.LogSoftmax(-1), logits, saved="output", **how)
        yield Case("cross-entropy", lambda nn: nn.CrossEntropyLoss(), logits, classes=logits[1], **how)
        yield Case("gelu", lambda nn: nn.GELU(), rows, **how)
        yield Case("dropout", lambda nn: nn.Dropout(0.1), rows, saved="", **how)
        yield Case("embedding", lambda nn: nn.Embedding(logits[1], width), rows[:1], (FORWARD,), words=logits[1], **how)
        for causal in (False, True):
            n, h, length, size = heads
            yield Case(
                f"{'causal ' * causal}attention",
                partial(_Attention, causal=causal),
                (3, *heads),
                flops=4.0 * n * h * length * length * size / (2 if causal else 1),
                **how,
            )


# --- who computes them


def _applied(layer: Any, x: Any, target: Any) -> Any:
    return layer(x) if target is None else layer(x, target)


class Inputs:
    """Inputs of a case on the device, so many that they do not fit the L2 cache together, and its parameters."""

    def __init__(self, machine: Machine, case: Case) -> None:
        self.machine, self.case = machine, case
        size = math.prod(case.shape)
        itemsize = 8 if case.words else machine.dtype(case.dtype).itemsize
        count = min(_MOST_SETS, math.ceil(2 * machine.cache_bytes / (size * itemsize)))
        count = count if machine.is_real else 1
        step = -(-size // 256) * 256
        rng = np.random.default_rng(0)
        device = str(machine.device)
        self.arrays = []
        if case.words:
            for _ in range(count):
                words = rng.integers(0, case.words, case.shape)
                self.arrays.append(gn.asarray(words, device=device).data)
        else:
            numbers = machine.normal(case.dtype, count * step)
            for i in range(count):
                self.arrays.append(self._laid(numbers[i * step : i * step + size]))
        self.target = None
        if case.classes:
            self.target = gn.asarray(rng.integers(0, case.classes, case.shape[:1]), device=device).data
        gn.manual_seed(0)
        layer = case.make(gn.nn)
        self.parameters = layer.state_dict() if isinstance(layer, gn.nn.Module) else {}

    def _laid(self, numbers: Any) -> Any:
        """As an array of the case's shape; images with their channels adjacent."""
        if len(self.case.shape) != 4:
            return numbers.reshape(self.case.shape)
        n, channels, *size = self.case.shape
        return numbers.reshape(n, *size, channels).transpose(0, 3, 1, 2)

    def layer(self, dtype: str) -> Any:
        """gpunet's."""
        layer = self.case.make(gn.nn)
        if isinstance(layer, gn.nn.Module):
            layer.load_state_dict(self.parameters)
            layer.to(str(self.machine.device))
            layer.to(self.machine.dtype(dtype))
        return layer

    def torch_layer(self, channels_last: bool) -> Any:
        """PyTorch's."""
        torch = self.machine.torch
        layer = self.case.make(torch.nn)
        if not isinstance(layer, torch.nn.Module):
            return layer
        layer.load_state_dict({name: torch.from_numpy(np.asarray(p)) for name, p in self.parameters.items()})
        layer.to("cuda" if self.machine.is_real else "cpu", getattr(torch, self.case.dtype))
        return layer.to(memory_format=torch.channels_last) if channels_last else layer


def _wants(which: str, words: int) -> tuple[bool, bool]:
    """Whether the input and the parameters want gradients in this pass."""
    return which != WEIGHT_GRAD and not words, which != INPUT_GRAD


def _weights(layer: Any) -> list[Any]:
    return list(layer.parameters()) if hasattr(layer, "parameters") else []


def _with_gpunet(inputs: Inputs, which: str, dtype: str | None = None) -> tuple[Contender, Callable[[], list[Any]]]:
    """gpunet's calls, and what computes the first's result, or the gradients, to be compared."""
    case = inputs.case
    layer = inputs.layer(dtype or case.dtype)
    x_wants, weights_want = _wants(which, case.words)
    weights = _weights(layer)
    for p in weights:
        p.requires_grad = weights_want
    xs = [gn.asarray(array) for array in inputs.arrays]
    if dtype is not None:
        xs = xs[:1] if case.words else [xs[0].astype(dtype)]
    for x in xs:
        x.requires_grad = x_wants
    target = None if inputs.target is None else gn.asarray(inputs.target)
    run = partial(_applied, layer, target=target)
    if which == FORWARD:

        def result() -> list[Any]:
            gn.manual_seed(1)
            return [run(xs[0]).detach()]

        return Contender("gpunet", [partial(run, x) for x in xs]), result
    gn.manual_seed(1)
    ys = [run(x) for x in xs]
    gradient = _gradient(inputs, ys[0].shape, dtype or case.dtype)
    leaves = [[*[x] * x_wants, *weights * weights_want] for x in xs]

    def back(y: Any, wanted: list[Any]) -> None:
        for leaf in wanted:
            leaf.grad = None
        y.backward(gradient, retain_graph=True)

    def gradients() -> list[Any]:
        back(ys[0], leaves[0])
        return [leaf.grad for leaf in leaves[0]]

    return Contender("gpunet", [partial(back, y, wanted) for y, wanted in zip(ys, leaves)]), gradients


def _gradient(inputs: Inputs, shape: tuple[int, ...], dtype: str) -> Any:
    """What reaches a result from further on, laid as the result is: its own numbers, whatever the type."""
    if not shape:
        return None
    numbers = inputs.machine.normal(inputs.case.dtype, math.prod(shape) + 1)[1:]
    g = numbers.reshape(shape)
    if len(shape) == 4 and len(inputs.case.shape) == 4:
        n, channels, *size = shape
        g = numbers.reshape(n, *size, channels).transpose(0, 3, 1, 2)
    g = gn.asarray(g)
    return g if dtype == inputs.case.dtype else g.astype(dtype)


def _with_torch(inputs: Inputs, which: str) -> list[Contender]:
    """PyTorch's calls; images in both of its layouts."""
    machine, case = inputs.machine, inputs.case
    torch = machine.torch
    if torch is None:
        return []
    found = []
    for channels_last in (True, False) if len(case.shape) == 4 else (False,):
        layer = inputs.torch_layer(channels_last)
        x_wants, weights_want = _wants(which, case.words)
        weights = _weights(layer)
        for p in weights:
            p.requires_grad_(weights_want)
        xs = [machine.as_torch(array) for array in inputs.arrays]
        xs = [x if channels_last else x.contiguous() for x in xs]
        if not case.words:
            xs = [x.detach().requires_grad_(x_wants) for x in xs]
        target = None if inputs.target is None else machine.as_torch(inputs.target)
        run = partial(_applied, layer, target=target)
        name = "torch" if len(case.shape) != 4 else "channels_last" if channels_last else "NCHW"
        if which == FORWARD:
            found.append(Contender(name, [partial(run, x) for x in xs]))
            continue
        ys = [run(x) for x in xs]
        g = _gradient(inputs, tuple(ys[0].shape), case.dtype)
        g = None if g is None else machine.as_torch(g.data)
        g = g if g is None or channels_last else g.contiguous()
        calls = [
            partial(torch.autograd.grad, y, [*[x] * x_wants, *weights * weights_want], g, retain_graph=True)
            for x, y in zip(xs, ys)
        ]
        found.append(Contender(name, calls))
    return found


def error_of(inputs: Inputs, which: str, found: Callable[[], list[Any]]) -> float:
    """The largest ||got - exact|| / ||exact|| of the result, or of the gradients."""
    _, exact = _with_gpunet(inputs, which, "float64")
    with gn.kernels("off"):
        expected = exact()
    worst = 0.0
    for got, right in zip(found(), expected, strict=True):
        error = gn.linalg.vector_norm(got.astype("float64") - right) / gn.linalg.vector_norm(right)
        worst = max(worst, float(error))
    return worst if math.isfinite(worst) else math.inf


# --- the stages


def _columns(rate: str) -> Sequence[Column]:
    return (
        Column("case", "", 38),
        Column("which", "pass", 15),
        Column("compute", "precision", 9),
        Column("us", "gpunet us", 10, ".1f"),
        Column("rate", rate, 8, ".1f"),
        Column("of_copy", "of copy", 7, ".2f"),
        Column("torch_us", "torch us", 10, ".1f"),
        Column("torch", "its best", 13),
        Column("ratio", "ratio", 6, ".2f"),
        Column("bar", "bar", 5, ".2f"),
        Column("verdict", "", 5),
        Column("spread", "spread", 6, ".1%"),
    )


def convolution(run: Run) -> None:
    """ResNet-50's convolutions at batch 32 beside PyTorch's in both of its layouts: TFLOP/s, best torch / gpunet."""
    run.table(*_columns("TFLOP/s"))
    _measure(run, convolution_cases(run))


def memory_bound(run: Run) -> None:
    """Pooling, normalizations, softmax, losses, dropout and Adam: GB/s, the share of a copy's rate and PyTorch's time;
    attention: TFLOP/s."""
    run.table(*_columns("rate"))
    _measure(run, layer_cases(run))
    if not run.is_over and not run.has(case="adam") and run.begin("adam"):
        _adam(run)
    judged = [row for row in run.rows if row["verdict"]]
    print(f"{sum(row['verdict'] == 'met' for row in judged)} of {len(judged)} bars met")


def _measure(run: Run, cases: Iterator[Case]) -> None:
    for case in cases:
        for which in case.passes:
            if run.is_over:
                return
            label = f"{case.name} {which} {case.compute}"
            if not run.has(case=case.name, which=which, compute=case.compute) and run.begin(label):
                _compare(run, case, which)


def _compare(run: Run, case: Case, which: str) -> None:
    machine = run.machine
    with machine.precision(case.compute):
        inputs = Inputs(machine, case)
        mine, found = _with_gpunet(inputs, which)
        error = error_of(inputs, which, found)
        if not error < TOLERANCE[case.compute]:
            run.fails(f"{case.name} {which} {case.compute}", f"relative error {error:.2g}")
            return
        y = found()[0] if which == FORWARD else mine.calls[0].args[0]  # type: ignore[attr-defined]
        work = case.work(which, inputs.arrays[0], y.data)
        calls = {c.name: c.calls for c in (mine, *_with_torch(inputs, which))}
        if not case.flops:
            calls["copy"] = [_copy_of(machine, work)]
        times = machine.time(calls, **run_length(run))
    _row(run, (case.name, which, case.compute), times, work, error, case.bar if case.flops else 0.9)


def _copy_of(machine: Machine, work: float) -> Callable[[], None]:
    """A copy that reads and writes so many bytes in all."""
    count = max(1, int(work / 8))
    source, target = machine.normal("float32", count), machine.poisoned("float32", count)
    return lambda: copy_bytes(machine, target, source)


def _row(
    run: Run, about: tuple[str, str, str], times: dict[str, Timing], work: float, error: float, bar: float | None
) -> None:
    """A row for a case, its pass and its precision. The bar is for the share of a copy's rate where there is a copy,
    else for the best torch / gpunet."""
    case, which, compute = about
    mine, copied = times["gpunet"], times.get("copy")
    rivals = {name: t.median for name, t in times.items() if name not in ("gpunet", "copy")}
    best = min(rivals, key=lambda name: rivals[name], default=None)
    ratio = None if best is None else rivals[best] / mine.median
    of_copy = None if copied is None else copied.median / mine.median
    reached = ratio if copied is None else of_copy
    verdict = "" if bar is None or reached is None or run.dry else "met" if reached >= bar else "below"
    run.row(
        case=case,
        which=which,
        compute=compute,
        us=mine.median * 1e6,
        rate=work / mine.median / (1e12 if copied is None else 1e9),
        of_copy=of_copy,
        torch_us=None if best is None else rivals[best] * 1e6,
        torch=best or "",
        ratio=ratio,
        bar=bar,
        verdict=verdict,
        spread=mine.spread,
        error=error,
        all_us={name: round(t.median * 1e6, 3) for name, t in times.items()},
    )


def _adam(run: Run) -> None:
    """Adam over 10^8 parameters, in 100 arrays."""
    machine = run.machine
    count, size = (3, 1000) if run.dry else (100, 1_000_000)
    device = str(machine.device)
    gradients = machine.normal("float32", size)
    parameters = [gn.nn.Parameter(gn.zeros(size, device=device)) for _ in range(count)]
    for p in parameters:
        p.grad = gn.asarray(gradients)
    optimizer = gn.optim.Adam(parameters, lr=1e-3)
    calls = {"gpunet": [optimizer.step]}
    optimizer.step()
    exact = -1e-3 * gn.asarray(gradients).astype("float64")
    exact = exact / (gn.abs(exact) + 1e-3 * 1e-8)  # the first step is lr in the direction of -g
    error = float(gn.max(gn.abs(parameters[-1].detach().astype("float64") - 1e-3 * exact)) / 1e-3)
    if not error < TOLERANCE["float32"]:
        run.fails("adam", f"relative error {error:.2g}")
        return
    torch = machine.torch
    if torch is not None:
        place = "cuda" if machine.is_real else "cpu"
        for name in ("fused", "foreach"):
            theirs = [torch.zeros(size, device=place, requires_grad=True) for _ in range(count)]
            for p in theirs:
                p.grad = machine.as_torch(gradients)
            calls[name] = [torch.optim.Adam(theirs, lr=1e-3, **{name: True}).step]
    work = 7.0 * 4 * count * size  # parameter and both averages read and written, and the gradient read
    calls["copy"] = [_copy_of(machine, work)]
    _row(run, ("adam", "step", "float32"), machine.time(calls, **run_length(run)), work, error, 0.9)
