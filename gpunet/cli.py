"""The command line: `gpunet train` trains a network on images, `gpunet predict` uses it, `gpunet info` says what is
here, `gpunet kernels` compiles the CUDA kernels ahead of time and reports on them."""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from typing import Any

import numpy as np
from tqdm import tqdm

import gpunet as gn
from gpunet import data, errors, io, kernel_tools, nn, optim, train
from gpunet.backends import cache
from gpunet.data import transforms
from gpunet.data.named import NAMES
from gpunet.io.atomic import destination


def mlp(shape: Sequence[int], classes: int) -> nn.Module:
    """A fully connected network for images of `shape` (C, H, W), with one hidden layer of 128."""
    features = int(np.prod(shape))
    return nn.Sequential(
        nn.Flatten(), nn.Linear(features, 128), nn.ReLU(), nn.Dropout(0.2), nn.Linear(128, classes)
    )  # fmt: skip


def convnet(shape: Sequence[int], classes: int) -> nn.Module:
    """A network of two convolutions for images of `shape` (C, H, W), each side a multiple of 4 or cut to one."""
    channels, height, width = shape
    return nn.Sequential(
        nn.Conv2d(channels, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(64 * (height // 4) * (width // 4), 128),
        nn.ReLU(),
        nn.Linear(128, classes),
    )


MODELS = {"mlp": mlp, "cnn": convnet}


def run_train(args: argparse.Namespace) -> None:
    """Train a network, measure it on the test part, save it, and show a few predictions."""
    destination(args.save)  # before the work, not after it
    gn.manual_seed(args.seed)
    train_set = data.named(args.data, train=True, download=args.download)
    test_set = data.named(args.data, train=False, download=args.download)
    shape, classes = train_set[0][0].shape, len(train_set.classes)
    model = MODELS[args.model](shape, classes).to(args.device)
    device = next(model.parameters()).device
    print(
        f"{args.data}: {len(train_set)} images {tuple(shape)} to train with, {len(test_set)} to test, {classes} classes"
    )
    print(f"{args.model} with {sum(p.size for p in model.parameters())} parameters on {device}, seed {args.seed}\n")

    shift = transforms.RandomCrop(shape[1:], padding=1) if args.model == "cnn" else None
    loader = data.DataLoader(train_set, batch_size=args.batch_size, shuffle=True, batch_transform=shift)
    optimizer = optim.AdamW(model.parameters(), lr=args.lr)
    schedule = optim.lr_scheduler.OneCycleLR(optimizer, max_lr=args.lr, total_steps=args.epochs * len(loader))
    started = time.perf_counter()
    train.fit(
        model,
        loader,
        loss="cross_entropy",
        optimizer=optimizer,
        scheduler=schedule,
        epochs=args.epochs,
        metrics=["accuracy"],
        clip_grad_norm=1.0,
    )
    seconds = time.perf_counter() - started
    result = train.evaluate(model, test_set, loss="cross_entropy", metrics=["accuracy"])
    print(f"\ntest accuracy {result['accuracy']:.4f}, test loss {result['loss']:.4f}, trained in {seconds:.1f} s")

    about = {"model": args.model, "shape": json.dumps(list(map(int, shape))), "classes": json.dumps(train_set.classes)}
    io.save(args.save, model.state_dict(), metadata=about)
    print(f"saved {args.save}; try: gpunet predict {args.save} --data {args.data}\n")
    show_predictions(model, test_set, train_set.classes, args.show)


def run_predict(args: argparse.Namespace) -> None:
    """Load a network that `train` saved and classify images of a dataset's test part."""
    model, classes = _network(args.file)
    model.load_state_dict(io.load(args.file))
    model.to(args.device)
    test_set = data.named(args.data, train=False)
    print(f"test accuracy {train.evaluate(model, test_set, metrics=['accuracy'])['accuracy']:.4f}\n")
    show_predictions(model, test_set, classes, args.show)


def _network(file: str) -> tuple[nn.Module, list[str]]:
    """The network that `file` says it holds, with fresh parameters, and the names of its classes.

    Raises:
        FileFormatError: it does not say so in a way that makes sense.
    """
    about = io.load_metadata(file)
    if "model" not in about:
        raise errors.FileFormatError(f"{file} was not saved by gpunet train: it does not say which network it holds")
    try:
        make, shape, classes = MODELS[about["model"]], json.loads(about["shape"]), json.loads(about["classes"])
        valid = len(shape) == 3 and all(type(n) is int and n > 0 for n in shape) and isinstance(classes, list)
    except (KeyError, TypeError, ValueError):
        valid = False
    if not valid or 4 * math.prod(shape) > os.path.getsize(file):  # each pixel has weights, of 4 bytes
        raise errors.FileFormatError(f"{file} is damaged: it does not say in a sensible way which network it holds")
    return make(shape, len(classes)), classes


def show_predictions(model: nn.Module, test_set: Any, classes: Sequence[str], count: int) -> None:
    """Print images side by side in characters, with what the network makes of them. Wrong ones come first."""
    if count < 1:
        return
    images = np.stack([np.asarray(test_set[i][0]) for i in range(len(test_set))])
    guesses = np.asarray(train.predict(model, images)).argmax(axis=1)
    wrong = np.flatnonzero(guesses != test_set.labels)[: count // 2]
    right = np.flatnonzero(guesses == test_set.labels)
    chosen = np.concatenate([wrong, right[:: max(1, len(right) // count)]])[:count]
    columns = []
    for i in chosen:
        said, true = classes[guesses[i]], classes[test_set.labels[i]]
        columns.append([*_characters(images[i]), f"{said}" if said == true else f"{said}, not {true}"])
    print(f"predictions on the test part ({len(wrong)} of the {len(chosen)} shown are wrong):")
    for line in zip(*columns):
        print("  ".join(cell.ljust(len(columns[0][0])) for cell in line).rstrip())


def _characters(image: np.ndarray) -> list[str]:
    """An image (C, H, W) in 0..1 as lines of text, two characters to a pixel, at most 14 pixels high."""
    grey = image.mean(axis=0)
    step = -(-grey.shape[0] // 14)
    grey = grey[::step, ::step]
    shades = " .:-=+*#%@"
    return ["".join(2 * shades[int(v * 9.99)] for v in row.clip(0, 1)) for row in grey]


def run_info(args: argparse.Namespace) -> None:
    """Print versions and devices."""
    print(f"gpunet {gn.__version__}, Python {platform.python_version()}, {platform.platform()}")
    for name in ("numpy", "safetensors", "cupy-cuda12x", "cupy-cuda13x", "matplotlib", "tensorboardX"):
        try:
            print(f"  {name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    print("devices:", ", ".join(gn.available_devices()))
    try:
        gn.zeros(1, device="cuda")
    except errors.DeviceError as error:
        print(f"no GPU: {error}")


def run_kernels_list(args: argparse.Namespace) -> None:
    """List the files of kernels, the compiled instances that each has, and the architectures they run on."""
    found = Counter((v.file, v.requires) for v in kernel_tools.every_variant(args.family))
    rows = [(f"{file}.cu", str(count), requires) for (file, requires), count in sorted(found.items())]
    print(kernel_tools.table([("file", "instances", "runs on"), *rows]))


def run_kernels_compile(args: argparse.Namespace) -> None:
    """Compile kernels ahead of time into the disk cache, as when a container image is built. No GPU is needed."""
    started = time.perf_counter()
    compiled = _compile_kernels(args)
    _refuse_failures(compiled)
    print(f"{len(compiled)} kernels are in {cache.folder()}, after {time.perf_counter() - started:.1f} s")


def run_kernels_report(args: argparse.Namespace) -> None:
    """Report what kernels take of a multiprocessor: registers and spilled bytes per thread, bytes of static and dynamic
    shared memory per block, and how many blocks fit. No GPU is needed."""
    compiled = _compile_kernels(args)
    good = [(job, made) for job, made in compiled.items() if not isinstance(made, errors.KernelError)]
    header: tuple[str, ...] = kernel_tools.HEADER
    rows = [kernel_tools.resources(*pair) for pair in good]
    if args.sass:
        with ThreadPoolExecutor(args.jobs or os.cpu_count()) as threads:  # each waits for a disassembler
            loops = threads.map(lambda pair: kernel_tools.hottest_loop(*pair), good)
            header, rows = (*header, "hottest loop"), [(*row, loop) for row, loop in zip(rows, loops)]
    print(kernel_tools.table([header, *sorted(rows)]))
    _refuse_failures(compiled)


def run_kernels_check(args: argparse.Namespace) -> None:
    """Check kernels without a GPU: that each compiles without a warning, spills no registers, takes no more of them
    than it should, and has the instructions that it is written for."""
    compiled = _compile_kernels(args)
    with ThreadPoolExecutor(args.jobs or os.cpu_count()) as threads:  # each waits for a disassembler
        faults = [
            fault for found in threads.map(lambda pair: kernel_tools.faults(*pair), compiled.items()) for fault in found
        ]
    for fault in sorted(faults):
        print(fault)
    if faults:
        raise errors.KernelError(f"{len(faults)} faults in {len(compiled)} kernels")
    print(f"{len(compiled)} kernels are as they should be")


def _compile_kernels(args: argparse.Namespace) -> dict[kernel_tools.Job, Any]:
    """What was asked for, compiled, with a progress bar on a terminal; a KernelError for what does not compile."""
    variants, architectures = kernel_tools.every_variant(args.family), kernel_tools.architectures(args.arch)
    jobs = [kernel_tools.Job(v, a) for v in variants for a in architectures if v.runs_on(a.replace("compute", "sm"))]
    return dict(tqdm(kernel_tools.compile_all(jobs, args.jobs), "compiling", len(jobs), leave=False, disable=None))


def _refuse_failures(compiled: dict[kernel_tools.Job, Any]) -> None:
    failed = [made for made in compiled.values() if isinstance(made, errors.KernelError)]
    for error in failed:
        print(f"gpunet: {error}", file=sys.stderr)
    if failed:
        raise errors.KernelError(f"{len(failed)} of {len(compiled)} kernels did not compile")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; the exit status is 1 where an input was wrong, which one line on stderr explains."""
    parser = argparse.ArgumentParser(prog="gpunet", description="Deep learning on the arrays you already have.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("train", help="train a network on images", description=run_train.__doc__)
    command.add_argument("--data", default="digits", help=f"{', '.join(NAMES)}; NAME:FOLDER says where its files are")
    command.add_argument("--model", default="cnn", choices=MODELS)
    command.add_argument("--epochs", type=int, default=20)
    command.add_argument("--batch-size", type=int, default=32)
    command.add_argument("--lr", type=float, default=3e-3, help="the highest learning rate of the schedule")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument(
        "--device", default="auto", help='"cpu", "cuda", "cuda:1"; "auto" takes a GPU where there is one'
    )
    command.add_argument("--save", default="model.safetensors", metavar="FILE")
    command.add_argument("--show", type=int, default=5, help="how many predictions to print")
    command.add_argument("--download", action="store_true", help="fetch the dataset if it is missing")
    command.set_defaults(run=run_train)

    command = commands.add_parser("predict", help="use a network that train saved", description=run_predict.__doc__)
    command.add_argument("file")
    command.add_argument("--data", default="digits", help="whose test part to classify")
    command.add_argument("--device", default="auto")
    command.add_argument("--show", type=int, default=5)
    command.set_defaults(run=run_predict)

    commands.add_parser("info", help=run_info.__doc__).set_defaults(run=run_info)

    kernels = commands.add_parser("kernels", help="compile the CUDA kernels ahead of time, and report on them")
    verbs = kernels.add_subparsers(required=True, metavar="COMMAND")
    for verb, about, run in [
        ("list", "what there is", run_kernels_list),
        ("compile", "compile ahead of time into the disk cache", run_kernels_compile),
        ("report", "registers, shared memory and occupancy", run_kernels_report),
        ("check", "no spills, no more registers than meant, the instructions meant", run_kernels_check),
    ]:
        command = verbs.add_parser(verb, help=about, description=run.__doc__)
        command.add_argument("--family", default="", metavar="NAME", help="only files whose names begin so: matmul")
        command.set_defaults(run=run)
        if verb != "list":
            command.add_argument("--arch", required=True, help='such as sm_80,sm_90a, or "all"')
            command.add_argument("--jobs", type=int, metavar="N", help="processes; default: one for each processor")
        if verb == "report":
            command.add_argument("--sass", action="store_true", help="also what the hottest loop is made of")

    args = parser.parse_args(argv)
    try:
        args.run(args)
    except (ValueError, TypeError, OSError, RuntimeError, train.NonFiniteError) as error:
        print(f"gpunet: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("gpunet: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    return 0


if __name__ == "__main__":
    sys.exit(main())
