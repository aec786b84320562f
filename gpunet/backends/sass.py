"""Reading machine code: which instructions a kernel has, and which its hottest loop has.

Disassembled by NVIDIA's nvdisasm, which needs no GPU; what it said is kept on disk.
"""

from __future__ import annotations

import functools
import hashlib
import re
import shutil
import subprocess
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from gpunet.backends.cache import Cache
from gpunet.backends.kernel import capability
from gpunet.errors import KernelError

TILES = re.compile(r"\w*MMA")  # products of tiles: HMMA, DMMA, HGMMA ...
MULTIPLY_ADDS = re.compile(r"FFMA2?|DFMA")
_OLDEST = 75  # what nvdisasm of CUDA 13 can read
_texts = Cache("sass")


@dataclass(frozen=True)
class Instruction:
    """Attributes:
    address: bytes from the start of the function.
    opcode: with its modifiers, such as "HMMA.16816.F32.BF16".
    text: opcode and operands.
    conditional: whether a predicate before it may keep it from running.
    labels: addresses that it names, such as where a branch leads.
    """

    address: int
    opcode: str
    text: str
    conditional: bool = False
    labels: tuple[int, ...] = ()


@dataclass(frozen=True)
class Function:
    """The machine code of a kernel."""

    name: str
    instructions: tuple[Instruction, ...] = field(repr=False)

    def missing(self, patterns: Iterable[str]) -> list[str]:
        """Those of the regular expressions that match the start of no instruction."""
        return [p for p in patterns if not any(re.match(p, i.text) for i in self.instructions)]

    @functools.cached_property
    def arithmetic_opcodes(self) -> frozenset[str]:
        """The opcodes that do the kernel's arithmetic, modifiers aside: those that multiply tiles of matrices, if there
        are any; else, those that multiply and add."""
        opcodes = mix(self.instructions)
        tiles = frozenset(filter(TILES.fullmatch, opcodes))
        return tiles or frozenset(filter(MULTIPLY_ADDS.fullmatch, opcodes))

    def arithmetic(self, part: Iterable[Instruction]) -> int:
        """How many instructions of `part` do the kernel's arithmetic."""
        counts = mix(part)
        return sum(counts[opcode] for opcode in self.arithmetic_opcodes)

    def hottest_loop(self) -> tuple[Instruction, ...]:
        """The innermost loop with the largest share of arithmetic, of those that have a fair part of the kernel's;
        empty where there is none.

        A loop within it that does none, such as one that waits for a barrier, does not make it an outer one.
        """
        bodies = [(body, self.arithmetic(body)) for body in _loops(self.instructions)]
        found = [(body, count) for body, count in bodies if count]
        inner = [(b, count) for b, count in found if not any(set(other) < set(b) for other, _ in found)]
        fair = max((count for _, count in inner), default=0) / 16  # an unrolled epilogue may have more than the loop
        shares = ((count / len(body), body) for body, count in inner if count >= fair)
        return max(shares, key=lambda pair: pair[0], default=(0.0, ()))[1]


def mix(instructions: Iterable[Instruction]) -> Counter[str]:
    """How often each opcode occurs, its modifiers aside."""
    return Counter(i.opcode.split(".")[0] for i in instructions)


def readable(architecture: str) -> bool:
    """Whether code for an architecture can be disassembled."""
    return capability(architecture) >= _OLDEST


def disassemble(cubin: bytes) -> dict[str, Function]:
    """The functions of a cubin, by their mangled names.

    Raises:
        KernelError: nvdisasm is not installed, or cannot read it.
    """
    key = f"1 {hashlib.sha256(cubin).hexdigest()}"
    text = zlib.decompress(_texts.load_or_make(key, lambda: zlib.compress(_run_nvdisasm(cubin)))).decode()
    return {function.name: function for function in parse(text)}


def _run_nvdisasm(cubin: bytes) -> bytes:
    tool = nvdisasm()
    with tempfile.TemporaryDirectory(prefix="gpunet-") as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(cubin)
        done = subprocess.run([tool, "-c", file], capture_output=True)
    if done.returncode:
        raise KernelError(f"nvdisasm cannot read the machine code: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout


@functools.cache
def nvdisasm() -> Path:
    """NVIDIA's disassembler: of an installed package, or of a CUDA toolkit on the PATH.

    Raises:
        KernelError: there is none; what to install.
    """
    for package in ("nvidia-cuda-nvdisasm", "nvidia-cuda-nvdisasm-cu12"):
        try:
            files = metadata.files(package) or []
        except metadata.PackageNotFoundError:
            continue
        for file in files:
            if file.stem == "nvdisasm" and "bin" in file.parts:
                return Path(str(file.locate()))
    if found := shutil.which("nvdisasm"):
        return Path(found)
    raise KernelError('reading machine code needs nvdisasm: pip install "gpunet[kernels]" (or nvidia-cuda-nvdisasm)')


_LABEL = re.compile(r"(\.?[\w$.]+):")
_INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:(@!?U?P[T\d]+)\s+)?([A-Z][\w.]*)\s*(.*?)\s*;")


def parse(text: str) -> list[Function]:
    """The functions in what `nvdisasm -c` prints: sections .text.NAME, each with labels and instructions."""
    functions = []
    for section in re.split(r"^\.text\.(?=\S+:$)", text, flags=re.MULTILINE)[1:]:
        name, body = section.split(":\n", 1)
        labels: dict[str, int] = {}
        waiting: list[str] = []
        found = []
        for line in body.splitlines():
            line = line.strip()
            if line.startswith(".section"):
                break
            if match := _INSTRUCTION.match(line):
                found.append((int(match[1], 16), match))
                labels.update(dict.fromkeys(waiting, found[-1][0]))
                waiting = []
            elif match := _LABEL.fullmatch(line):
                waiting.append(match[1])
        instructions = []
        for address, match in found:
            named = (labels.get(label) for label in re.findall(r"\.L_x?_?\w+", match[4]))
            targets = tuple(target for target in named if target is not None)
            instructions.append(
                Instruction(address, match[3], f"{match[3]} {match[4]}".strip(), match[2] is not None, targets)
            )
        functions.append(Function(name, tuple(instructions)))
    return functions


def _loops(instructions: tuple[Instruction, ...]) -> list[tuple[Instruction, ...]]:
    """The natural loops of a function: the bodies of all back edges to one block, taken together.

    A back edge leads from a block to one that dominates it: that lies on every path there from the entry (Aho, Lam,
    Sethi and Ullman, Compilers, section 9.6).
    """
    blocks, successors = _blocks(instructions)
    predecessors: list[list[int]] = [[] for _ in blocks]
    for block, following in enumerate(successors):
        for other in following:
            predecessors[other].append(block)
    dominators = _dominators(successors, predecessors)
    bodies: dict[int, set[int]] = {}
    for block, following in enumerate(successors):
        for head in following:
            if head in dominators[block]:
                body = bodies.setdefault(head, {head})
                waiting = [block]
                while waiting:
                    inside = waiting.pop()
                    if inside not in body:
                        body.add(inside)
                        waiting += predecessors[inside]
    return [tuple(i for block in sorted(body) for i in blocks[block]) for body in bodies.values()]


def _blocks(instructions: tuple[Instruction, ...]) -> tuple[list[tuple[Instruction, ...]], list[list[int]]]:
    """Stretches of instructions that run one after the other, and the numbers of those that may follow each."""
    position = {instruction.address: i for i, instruction in enumerate(instructions)}
    branches = [_branch(instructions, i) for i in range(len(instructions))]
    starts = {0}
    for i, branch in enumerate(branches):
        if branch is not None:
            starts.update({i + 1}, (position[target] for target in branch[0]))
    bounds = sorted(start for start in starts if start < len(instructions))
    number = {start: block for block, start in enumerate(bounds)}
    blocks, successors = [], []
    for start, end in zip(bounds, [*bounds[1:], len(instructions)]):
        blocks.append(instructions[start:end])
        targets, goes_on = branches[end - 1] or ((), True)
        following = {number[position[target]] for target in targets}
        if goes_on and end < len(instructions):
            following.add(number[end])
        successors.append(sorted(following))
    return blocks, successors


def _branch(instructions: tuple[Instruction, ...], i: int) -> tuple[tuple[int, ...], bool] | None:
    """Where an instruction may lead, and whether to the next one, too; None where only there."""
    instruction = instructions[i]
    kind = instruction.opcode.split(".")[0]
    if kind in ("BRA", "BRX", "BRXU", "JMP", "JMX"):
        # "BRA.U !UP0, `(.L_x_1)" has its condition among its operands.
        conditional = instruction.conditional or re.search(r"\.DIV|\s!?U?P\d,", instruction.text) is not None
        return instruction.labels, conditional
    if kind in ("EXIT", "RET"):
        return (), instruction.conditional
    if kind == "BSYNC":  # leads where the BSSY that set its barrier register says
        barrier = instruction.text.split()[-1]
        for earlier in reversed(instructions[:i]):
            if earlier.opcode.startswith("BSSY") and re.search(rf"\b{barrier}\b", earlier.text):
                return earlier.labels, True
    return None


def _dominators(successors: list[list[int]], predecessors: list[list[int]]) -> list[set[int]]:
    """For each block, those that lie on every path to it from block 0; for one that none leads to, the empty set."""
    reachable = {0}
    waiting = [0]
    while waiting:
        for other in successors[waiting.pop()]:
            if other not in reachable:
                reachable.add(other)
                waiting.append(other)
    dominators = [set(reachable) if block in reachable else set() for block in range(len(successors))]
    dominators[0] = {0}
    changed = True
    while changed:
        changed = False
        for block in sorted(reachable - {0}):
            common = set.intersection(*(dominators[p] for p in predecessors[block] if p in reachable)) | {block}
            if common != dominators[block]:
                dominators[block] = common
                changed = True
    return dominators
