"""Einstein's summation convention."""

from __future__ import annotations

from string import ascii_letters
from typing import Any

from gpunet.errors import ShapeError
from gpunet.ops.linalg import diagonal
from gpunet.ops.op import op
from gpunet.ops.shape import moveaxis, reshape


@op
def _einsum(xp, *arrays, subscripts):
    y = xp.einsum(subscripts, *arrays, optimize=len(arrays) > 2)
    return y.copy() if len(arrays) == 1 else y  # of one array it may be a view, as in "ij->ji"


@_einsum.vjp
def _(xp, g, _y, *arrays, subscripts):
    terms, result = subscripts.split("->")
    names = terms.split(",")

    def gradient(i: int) -> Any:
        # d/dx_i of a product of the others with g: letters that stand in none of these were summed, so they broadcast
        others = [names[j] for j in range(len(names)) if j != i]
        have = set(result).union(*others)
        kept = "".join(c for c in names[i] if c in have)
        rest = [arrays[j] for j in range(len(names)) if j != i]
        part = einsum(",".join([result, *others]) + "->" + kept, g, *rest)
        lengths = dict(zip(kept, part.shape))
        part = reshape(part, shape=tuple(lengths.get(c, 1) for c in names[i]))
        return part * xp.ones_like(arrays[i]) if len(kept) < len(names[i]) else part

    return tuple((lambda i=i: gradient(i)) for i in range(len(arrays)))


def einsum(subscripts: str, /, *operands: Any) -> Any:
    """Einstein's summation convention: `einsum("...ik,kj->...ij", a, b)`. Differentiable.

    Args:
        subscripts: letters for the axes of each operand, separated by commas, and after "->" those of the result;
            without "->" the result has the letters that occur once, in alphabetical order. A letter that stands twice
            in an operand is for its diagonal. An ellipsis is for any axes that are not named, which broadcast.
        operands: arrays.

    Raises:
        ValueError: subscripts that do not make sense, or do not fit the operands.
    """
    terms, result = _subscripts(subscripts, [a.ndim for a in operands])
    arrays = []
    for i, a in enumerate(operands):
        terms[i], a = _on_diagonals(terms[i], a)
        arrays.append(a)
    return _einsum(*arrays, subscripts=f"{','.join(terms)}->{result}")


def _subscripts(subscripts: str, ndims: list[int]) -> tuple[list[str], str]:
    """The letters of each operand and of the result, all of them written out."""
    left, arrow, result = subscripts.replace(" ", "").partition("->")
    terms = left.split(",")
    if len(terms) != len(ndims):
        raise ValueError(f"einsum: {subscripts!r} is for {len(terms)} operands, and there are {len(ndims)}")
    spare = [c for c in ascii_letters if c not in subscripts]
    named = [term.replace("...", "") for term in terms]
    rest = [ndim - len(letters) for ndim, letters in zip(ndims, named)]
    for term, letters, more in zip(terms, named, rest):
        if not all(c in ascii_letters for c in letters) or more < 0 or (more and "..." not in term):
            ndim = more + len(letters)
            raise ValueError(f"einsum: {term!r} in {subscripts!r} does not name the axes of an array of {ndim} axes")
    most = max((more for term, more in zip(terms, rest) if "..." in term), default=0)
    shared = "".join(spare[:most])
    terms = [term.replace("...", shared[most - more :]) for term, more in zip(terms, rest)]
    letters = "".join(named)
    if not arrow:
        result = shared + "".join(sorted(c for c in set(letters) if letters.count(c) == 1))
    elif most and "..." not in result:
        raise ValueError(f"einsum: the result of {subscripts!r} leaves out the axes of the ellipsis")
    result = result.replace("...", shared)
    if len(set(result)) != len(result) or not set(result) <= set(shared + letters):
        raise ValueError(f"einsum: a letter of the result stands twice or in no operand, in {subscripts!r}")
    return terms, result


def _on_diagonals(term: str, a: Any) -> tuple[str, Any]:
    """An operand in which no letter stands twice."""
    for c in sorted(set(term)):
        while term.count(c) > 1:
            first = term.index(c)
            second = term.index(c, first + 1)
            if a.shape[first] != a.shape[second]:
                raise ShapeError(f"einsum: {c!r} is for axes of lengths {a.shape[first]} and {a.shape[second]}")
            a = diagonal(moveaxis(a, source=(first, second), destination=(-2, -1)))
            term = term[:first] + term[first + 1 : second] + term[second + 1 :] + c
    return term, a
