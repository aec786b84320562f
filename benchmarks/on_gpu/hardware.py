"""Stages environment, compile, ceilings and overhead: what the machine is, and what can be had of it at best."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
import time
from collections.abc import Callable
from importlib import metadata
from typing import Any

import gpunet as gn
from benchmarks.on_gpu import dispatch, products
from benchmarks.on_gpu.machine import Machine
from benchmarks.on_gpu.products import Product
from benchmarks.on_gpu.supervise import Column, Run
from gpunet import kernel_tools
from gpunet.backends import nvrtc
from gpunet.errors import KernelError
from gpunet.ops import gemm

_SMI = "name,driver_version,power.limit,clocks.max.sm,clocks.sm,clocks.mem,power.draw,temperature.gpu,memory.total"


def environment(run: Run) -> None:
    """The GPU, its clocks and limits, and the versions of all that takes part."""
    run.table(Column("what", "", 22), Column("value", "", 60))
    conditions = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "host": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}",
        "gpunet": gn.__version__,
        **nvidia_smi(),
    }
    run.begin("device")
    conditions |= _device(run.machine)
    for package in ("numpy", "ml_dtypes", "torch"):
        conditions[package] = _version(package)
    for what, value in conditions.items():
        run.row(what=what, value=str(value))
    run.facts(conditions=conditions)


def nvidia_smi() -> dict[str, str]:
    """What nvidia-smi says of the first GPU; nothing where there is none."""
    try:
        done = subprocess.run(
            ["nvidia-smi", f"--query-gpu={_SMI}", "--format=csv,noheader", "-i", "0"],
            capture_output=True,
            text=True,
            timeout=20,
        )
    except (OSError, subprocess.TimeoutExpired):
        return {}
    values = [value.strip() for value in done.stdout.strip().split(",")]
    return dict(zip(_SMI.split(","), values)) if done.returncode == 0 else {}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _device(machine: Machine) -> dict[str, Any]:
    found = {"architecture": machine.launcher.architecture, "multiprocessors": machine.launcher.processors}
    if not machine.is_real:
        return {"device": "EMULATED ON THE CPU: TIMES MEAN NOTHING", **found}
    cupy = machine.xp
    from cupy.cuda import cublas

    torch = machine.torch
    return {
        **found,
        "l2": f"{machine.cache_bytes / 2**20:.0f} MiB",
        "cuda": f"runtime {cupy.cuda.runtime.runtimeGetVersion()}, driver {cupy.cuda.runtime.driverGetVersion()}",
        "cupy": cupy.__version__,
        "nvrtc": nvrtc.version(),
        "cublas (CuPy)": cublas.getVersion(cupy.cuda.Device().cublas_handle),
        "cuda (torch)": torch.version.cuda if torch else "torch is not installed, or not for CUDA",
    }


def compile_kernels(run: Run) -> None:
    """All kernels that run here, compiled into the disk cache, so that no later stage waits for it."""
    run.table(
        Column("kernel", "kernel", 78),
        Column("registers", "registers", 9, "d"),
        Column("spills", "spills", 6, "d"),
        Column("blocks", "blocks/SM", 9),
    )
    if run.dry:
        run.row(kernel="(the emulated device compiles a kernel when it is first launched)")
        return
    architecture = run.machine.launcher.architecture
    jobs = [kernel_tools.Job(v, architecture) for v in kernel_tools.every_variant() if v.runs_on(architecture)]
    started = time.monotonic()
    run.begin("compilation", seconds=300)
    for job, made in kernel_tools.compile_all(jobs):
        name = job.variant.expression
        if isinstance(made, KernelError):
            run.fails(name, " ".join(str(made).split("\n")[:3]))
        else:
            blocks = kernel_tools.resources(job, made)[kernel_tools.HEADER.index("blocks")]
            run.row(kernel=name, registers=made.registers, spills=made.spills, blocks=blocks)
        if run.is_over:
            break
    run.facts(kernels=len(jobs), compile_seconds=round(time.monotonic() - started, 1))


def ceilings(run: Run) -> None:
    """Bytes per second of a copy on the device, and FLOP/s of the library's largest product."""
    run.table(
        Column("what", "", 34),
        Column("value", "", 9, ".1f"),
        Column("unit", "", 8),
        Column("spread", "spread", 7, ".1%"),
    )
    machine = run.machine
    run.begin("copy")
    size = (1 << 30) if machine.is_real else 1 << 16
    source, target = machine.normal("float32", size // 4), machine.poisoned("float32", size // 4)
    copy = machine.time({"copy": [lambda: copy_bytes(machine, target, source)]}, **run_length(run))["copy"]
    run.row(
        what=f"copy of {size >> 20} MiB, read + written",
        value=2 * size / copy.median / 1e9,
        unit="GB/s",
        spread=copy.spread,
    )
    compute = "bfloat16" if machine.bfloat16 is not None else "float16"
    length = 8192 if machine.is_real else 32
    for kind in (compute, "float32"):
        product = Product(kind, length, length, length)
        run.begin(product.name)
        sets = products.operands(machine, product)
        contenders = [products.with_cupy(machine, product, sets), *products.with_torch(machine, product, sets)]
        with machine.precision(kind):
            wrong = products.usable(machine, product, contenders, sets[0])
            sound = {c.name: c.calls for c in contenders if c.name not in wrong}
            times = machine.time(sound, **run_length(run)) if sound else {}
        for name, timing in times.items():
            value = product.flops / timing.median / 1e12
            run.row(what=f"{product.name}, {name}", value=value, unit="TFLOP/s", spread=timing.spread)
        for name, why in wrong.items():
            run.facts(**{f"not measured: {product.name}, {name}": why})


def copy_bytes(machine: Machine, target: Any, source: Any) -> None:
    """Copy an array on the device, in the quickest way there is."""
    if machine.is_real:
        runtime = machine.xp.cuda.runtime
        stream = machine.xp.cuda.get_current_stream().ptr
        runtime.memcpyAsync(target.data.ptr, source.data.ptr, source.nbytes, runtime.memcpyDeviceToDevice, stream)
    else:
        target[...] = source


def run_length(run: Run) -> dict[str, Any]:
    """How long to measure a thing that matters."""
    return {"rounds": 2, "seconds": 0.0} if run.dry else {"rounds": run.options.rounds, "seconds": 0.02}


_NOTHING = 'extern "C" __global__ void nothing(float* x) {}'


def overhead(run: Run) -> None:
    """The host's time for a launch: 8x8 products, queued without waiting."""
    run.table(
        Column("what", "us on the host per call", 46),
        Column("microseconds", "median", 8, ".2f"),
        Column("least", "least", 8, ".2f"),
    )
    for what, call in _launches(run.machine).items():
        run.begin(what)
        timing = run.machine.host_seconds(call, rounds=2 if run.dry else 15, count=3 if run.dry else 200)
        run.row(what=what, microseconds=timing.median * 1e6, least=timing.least * 1e6)
        if run.is_over:
            break


def _launches(machine: Machine) -> dict[str, Callable[[], Any]]:
    launcher, xp = machine.launcher, machine.xp
    product = Product("float32", 8, 8, 8, products.LINEAR)
    s = products.operands(machine, product)[0]
    contender = products.with_gpunet(machine, product, [s])
    a, b = (gn.asarray(x) for x in (s.a, s.b))
    calls: dict[str, Callable[[], Any]] = {}
    problem = dispatch.problem_of(launcher, s.a, s.b)
    choice = next(iter(dispatch.choices_of(problem, launcher).values()))
    plan = gemm.plan_of(s.c.shape, problem, choice, gemm.Epilogue(), launcher.processors)
    if not plan.launches[0].maps and not plan.workspace:
        pointers = (s.a, s.b, s.c, None, None, None, None)
        args = gemm._POINTERS.pack(*(0 if x is None else launcher.pointer(x) for x in pointers))
        args += plan.launches[0].constants
        variant, grid = plan.launches[0][:2]
        calls["gpunet: a prepared launch"] = lambda: launcher.launch(variant, grid, args)
    calls["gpunet: multiply into an array, by its plan"] = contender.calls[0]
    calls["gpunet: a @ b of Tensors"] = lambda: a @ b
    if machine.is_real:
        nothing = xp.RawKernel(_NOTHING, "nothing")
        calls["CuPy: a RawKernel that does nothing"] = lambda: nothing((1,), (32,), (s.c,))
    calls["CuPy: matmul" if machine.is_real else "NumPy: matmul"] = lambda: xp.matmul(s.a, s.b)
    calls["CuPy: a + b" if machine.is_real else "NumPy: a + b"] = lambda: xp.add(s.a, s.c)
    if machine.torch is not None:
        torch, ta, tb = machine.torch, machine.as_torch(s.a), machine.as_torch(s.b)
        tc = machine.as_torch(s.c)
        calls["torch: matmul"] = lambda: torch.matmul(ta, tb)
        calls["torch: matmul into a tensor"] = lambda: torch.matmul(ta, tb, out=tc)
    return calls
