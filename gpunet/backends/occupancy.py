"""How many blocks of a kernel a multiprocessor holds at once.

Sources: CUDA C++ Programming Guide, "Technical Specifications per Compute Capability"; the allocation units and the
rules are those of cuda_occupancy.h, the calculator in the CUDA toolkit.
"""

from __future__ import annotations

from dataclasses import dataclass

from gpunet.backends.kernel import capability

REGISTERS = 65536  # of 32 bits, in a multiprocessor; a quarter is within reach of each warp
_REGISTER_UNIT = 256  # a warp's registers are given out in multiples of this


@dataclass(frozen=True)
class Limits:
    """What a multiprocessor has.

    Attributes:
        warps, blocks: the most that it holds at once.
        shared: its bytes of shared memory.
        block_shared: the most bytes of shared memory that one block may have.
        reserved: bytes of shared memory that the system takes for each block.
        shared_unit: shared memory is given out in multiples of this many bytes.
    """

    warps: int
    blocks: int
    shared: int
    block_shared: int
    reserved: int = 1024
    shared_unit: int = 128


_LIMITS = {
    70: Limits(64, 32, 96 << 10, 96 << 10, reserved=0, shared_unit=256),
    75: Limits(32, 16, 64 << 10, 64 << 10, reserved=0, shared_unit=256),
    80: Limits(64, 32, 164 << 10, 163 << 10),
    86: Limits(48, 16, 100 << 10, 99 << 10),
    87: Limits(48, 16, 164 << 10, 163 << 10),
    89: Limits(48, 24, 100 << 10, 99 << 10),
    90: Limits(64, 32, 228 << 10, 227 << 10),
    100: Limits(64, 32, 228 << 10, 227 << 10),
    120: Limits(48, 24, 100 << 10, 99 << 10),
}


def limits(architecture: str) -> Limits:
    """What a multiprocessor of an architecture has; for one that is not in the tables, what its nearest elder has."""
    wanted = capability(architecture)
    return _LIMITS[max((known for known in _LIMITS if known <= wanted), default=min(_LIMITS))]


@dataclass(frozen=True)
class Occupancy:
    """Attributes:
    blocks: how many blocks a multiprocessor holds at once; 0 where one is too large.
    share: the warps of these, as a share of the most that it could hold.
    limit: what keeps further blocks out: "registers", "shared memory", "warps" or "blocks".
    """

    blocks: int
    share: float
    limit: str


def occupancy(architecture: str, threads: int, registers: int, shared: int) -> Occupancy:
    """How many blocks of a kernel a multiprocessor holds at once.

    Args:
        threads: in a block.
        registers: per thread.
        shared: bytes per block, static and dynamic.
    """
    has = limits(architecture)
    warps = -(-threads // 32)
    per_warp = -(-registers * 32 // _REGISTER_UNIT) * _REGISTER_UNIT
    fitting = {
        "warps": has.warps // warps,
        "blocks": has.blocks,
        "registers": 4 * (REGISTERS // 4 // per_warp) // warps if registers else has.blocks,
    }
    taken = -(-(shared + has.reserved) // has.shared_unit) * has.shared_unit
    if shared > has.block_shared:
        fitting["shared memory"] = 0
    elif shared:
        fitting["shared memory"] = has.shared // taken
    limit = min(fitting, key=fitting.__getitem__)
    return Occupancy(fitting[limit], fitting[limit] * warps / has.warps, limit)
