"""How kernels that reduce along one axis are launched: those of kernels/rows.cuh, each with a Body of its user."""

from __future__ import annotations

from functools import cache
from struct import Struct
from typing import Any, NamedTuple

from gpunet.backends.kernel import Launcher, Variant
from gpunet.backends.occupancy import limits
from gpunet.ops import launch
from gpunet.ops.launch import Axes

# (threads for a row, vectors of 16 bytes for a thread), smallest first
REGISTER_ROWS = ((4, 1), (32, 1), (32, 4), (128, 2), (256, 4))
# (threads side by side, vectors for a thread), smallest first; 0 for columns that are read twice
COLUMNS = ((32, 8), (8, 8), (8, 0))
_STEP_HELD = 16 << 10  # sizes of shared memory are rounded up to this, so that they are few

_POINTERS = Struct("4P")
_STEPS = Struct("4q")
_UNITS = Struct("2q")


class Rows(NamedTuple):
    """The arguments of a kernel, and what chooses it.

    Attributes:
        packed: `RowArgs` of kernels/rows.cuh, but for its last two fields.
        number: how many rows there are.
        length: how many elements each has.
        vector: how many elements are moved at once.
        width: how many rows lie side by side; 0 where the elements of a row do.
        itemsize: bytes of an element.
        inputs: how many arrays are reduced.
    """

    packed: bytes
    number: int
    length: int
    vector: int
    width: int
    itemsize: int
    inputs: int


def make_rows(
    launcher: Launcher, axis: int, inputs: tuple[Any, ...], out: Any, per_row: tuple[Any, ...] = ()
) -> Rows | None:
    """The rows of arrays along an axis, or None where they must be copied first.

    Args:
        axis: not negative; there is at least one element along it.
        inputs: arrays of one shape and dtype.
        out: an array of that dtype, and of that shape or without the axis.
        per_row: arrays of that dtype without the axis.
    """
    itemsize, length = inputs[0].dtype.itemsize, inputs[0].shape[axis]
    arrays = [*inputs, *per_row, *[inputs[0]] * (3 - len(inputs) - len(per_row)), out]
    is_whole = [a.ndim == inputs[0].ndim for a in arrays]
    heads = [_first(a, axis) if whole else a for a, whole in zip(arrays, is_whole)]
    axes = launch.axes_of(heads[0].shape, *heads)
    steps = [a.strides[axis] if whole else 0 for a, whole in zip(arrays, is_whole)]
    if axes is None or length >= 2**31 - 2**10 or any(step % itemsize for step in steps):
        return None
    pointers = [launcher.pointer(a) for a in arrays]
    elements = Axes(axes.shape, tuple(s for s, whole in zip(axes.strides, is_whole) if whole))
    addresses = [p for p, whole in zip(pointers, is_whole) if whole]
    along = {step // itemsize for step, whole in zip(steps, is_whole) if whole}
    vector, width = 16 // itemsize, 0
    if length == 1 or along == {1}:
        starts = [[p, *(s * itemsize for s in strides)] for p, strides in zip(addresses, elements.strides)]
        if any(len({start % 16 for start in places}) > 1 for places in zip(*starts)):
            vector = 1  # the arrays' rows do not begin alike
    else:
        if any(strides[-1] != 1 for strides in elements.strides):
            return None
        width = axes.shape[-1]
        fits = launch.vector_of(elements, [itemsize] * len(addresses), addresses) == vector
        if not fits or any(step % vector for step in along):
            vector = 1
    packed = _POINTERS.pack(*pointers) + axes.pack() + axes.pack_strides()
    packed += _STEPS.pack(*(step // itemsize for step in steps))
    return Rows(packed, axes.size, length, vector, width, itemsize, len(inputs))


def _first(a: Any, axis: int) -> Any:
    """The view of what is first along an axis."""
    return a.transpose(*(i for i in range(a.ndim) if i != axis), axis)[..., 0]


def run(launcher: Launcher, file: str, body: str, rows: Rows, more: bytes = b"", rereads: bool = True) -> None:
    """Launch the kernel that serves these rows best.

    Args:
        file: the .cu file that has the body.
        body: such as "Softmax<SOFTMAX, float>".
        rows: see `make_rows`.
        more: what the body's arguments have behind those of all.
        rereads: whether elements are needed again once all of a row have been seen.
    """
    units, most = rows.number, 16
    if rows.width:
        side, per = next((side, per) for side, per in COLUMNS if not per or rows.length <= 256 // side * per)
        units = rows.number // rows.width * -(-rows.width // (side * rows.vector))
        variant, blocks = column_variant(file, body, rows.vector, side, per), units
    else:
        slots = (rows.length + 2 * rows.vector - 2) // rows.vector  # of a row, wherever it begins
        found = next(((lanes, per) for lanes, per in REGISTER_ROWS if slots <= lanes * per), None)
        if found:
            variant, blocks, most = register_variant(file, body, rows.vector, *found), -(-units * found[0] // 128), 32
        else:
            held = -(-slots * 16 * rows.inputs // _STEP_HELD) * _STEP_HELD
            fits = rereads and rows.vector * rows.itemsize == 16 and held <= most_held(launcher)
            variant, blocks = long_variant(file, body, rows.vector, held if fits else 0), units
    grid = launch.grid_of(launcher, blocks, 1, most)
    launcher.launch(variant, grid, rows.packed + _UNITS.pack(units, rows.length) + more)


def most_held(launcher: Launcher) -> int:
    """The most bytes of shared memory for a row: what a block can have beside some for its sums."""
    return (limits(launcher.architecture).block_shared - 2048) // _STEP_HELD * _STEP_HELD


@cache
def register_variant(file: str, body: str, vector: int, lanes: int, per: int) -> Variant:
    expression = f"rows_in_registers<{body}, {vector}, {lanes}, {per}>"
    return Variant(file, expression, max(lanes, 128), instructions=_wide(vector))


@cache
def long_variant(file: str, body: str, vector: int, held: int) -> Variant:
    """held: bytes of shared memory that a row is kept in; 0 where it is read twice."""
    expression = f"rows_long<{body}, {vector}, {str(held > 0).lower()}>"
    return Variant(file, expression, 512, held, registers=128, instructions=_wide(vector))


@cache
def column_variant(file: str, body: str, vector: int, side: int, per: int) -> Variant:
    return Variant(file, f"columns<{body}, {vector}, {side}, {per}>", 256, instructions=_wide(vector))


def _wide(vector: int) -> tuple[str, ...]:
    """What the machine code of kernels that move 16 bytes at a time has."""
    return (r"LD(G\S*128|GSTS)",) if vector > 1 else ()
