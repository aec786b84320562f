"""Pictures of what is recorded: `draw`.

Where Graphviz's `dot` is installed, it places the boxes. Where it is not, they are placed here, in the way of Sugiyama,
Tagawa and Toda ("Methods for visual understanding of hierarchical system structures", 1981): in layers, so that every
arrow points down; in an order within each layer that lets few arrows cross; then as close to below each other as their
widths allow.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from gpunet.autograd import Node
from gpunet.errors import DTypeError, GradientError
from gpunet.tensor import Tensor

__all__ = ["Drawing", "draw"]

# Of each kind of box: what it is filled with, and its border.
_COLOURS = {
    "op": ("#eef3fb", "#5b7db1"),
    "leaf": ("#e8f5ea", "#4f9160"),
    "constant": ("#f4f4f4", "#9a9a9a"),
    "result": ("#fdf1e1", "#cf8a35"),
}


@dataclass
class Box:
    """A box of the picture: an op, a Tensor that was there before, or a result.

    Attributes:
        kind: "op", "leaf", "constant" or "result".
        lines: its text; the first line is its title.
    """

    kind: str
    lines: list[str]


@dataclass
class Drawing:
    """What `draw` returns. A notebook shows it as a picture; str() of it is the DOT text.

    Attributes:
        boxes: what is drawn.
        arrows: (from, to, label) with numbers of boxes; the label is "" but for ops of several results.
    """

    boxes: list[Box] = field(default_factory=list)
    arrows: list[tuple[int, int, str]] = field(default_factory=list)

    @property
    def dot(self) -> str:
        """The graph in Graphviz's language."""
        lines = [
            "digraph {",
            '  node [shape=box, style="rounded,filled", fontname="monospace", fontsize=11];',
            '  edge [color="#7a7a7a", fontname="monospace", fontsize=9, arrowsize=0.7];',
        ]
        for i, box in enumerate(self.boxes):
            fill, border = _COLOURS[box.kind]
            text = "\\n".join(_quoted(line) for line in box.lines)
            lines.append(f'  n{i} [label="{text}", fillcolor="{fill}", color="{border}"];')
        for a, b, label in self.arrows:
            lines.append(f"  n{a} -> n{b}" + (f' [label="{_quoted(label)}"];' if label else ";"))
        return "\n".join([*lines, "}"]) + "\n"

    @property
    def svg(self) -> str:
        """The picture: by `dot` where it is installed, else by the layout of this module."""
        found = _by_graphviz(self.dot, "svg")
        return _svg(self) if found is None else found.decode()

    def save(self, file: Any, format: str | None = None) -> None:
        """Write it to a file, in the format that its name ends with or that is given: "dot", "svg", or where Graphviz
        is installed another one that it knows, such as "pdf" or "png".

        Raises:
            ValueError: no format, or one that needs Graphviz, which is not installed.
        """
        path = Path(file)
        kind = (format or path.suffix.lstrip(".")).lower()
        if kind in ("dot", "gv"):
            path.write_text(self.dot, encoding="utf-8")
        elif kind == "svg":
            path.write_text(self.svg, encoding="utf-8")
        else:
            found = _by_graphviz(self.dot, kind) if kind.isalnum() else None
            if found is None:
                raise ValueError(
                    f'draw: expected the format "svg" or "dot", got {kind!r} for {path.name!r}; others need '
                    "Graphviz's program dot, if it knows them"
                )
            path.write_bytes(found)

    def _repr_svg_(self) -> str:
        return self.svg

    def __str__(self) -> str:
        return self.dot

    def __repr__(self) -> str:
        return f"<drawing of {len(self.boxes)} boxes and {len(self.arrows)} arrows; .svg, .dot, .save(file)>"


def draw(y: Any, file: Any = None, format: str | None = None, *, model: Any = None) -> Drawing:
    """A picture of how `y` was computed: the recorded ops with the shapes and dtypes of their results.

        gn.draw(loss, "loss.svg", model=model)

    Args:
        y: a Tensor that requires gradients, or several. Draw before `backward`, which uses the record up.
        file: where to write it, if anywhere; the format is that of the name's ending, or `format`.
        format: "svg" or "dot"; where Graphviz is installed, also others, such as "pdf".
        model: a Module whose parameters, and the layers that they belong to, are to be named; or a dict from names to
            Tensors. Parameters with names stand in the boxes of the ops that use them.

    Returns:
        A Drawing. Green boxes are Tensors that require gradients and that no op made, grey ones arrays without
        gradients, as far as the record has them; orange ones are `y`.

    Raises:
        DTypeError: `y` is no Tensor.
        GradientError: nothing was recorded, or the record is used up.
        ValueError: see `Drawing.save`.
    """
    results = list(y) if isinstance(y, (list, tuple)) else [y]
    for i, t in enumerate(results):
        if not isinstance(t, Tensor):
            raise DTypeError(f"draw: expected a Tensor as output {i}, got {type(t).__name__}")
        if t._node is None:
            raise GradientError(
                f"draw: nothing was recorded for a tensor of shape {t.shape}: it does not require gradients"
            )
    drawing = _Reader(_names(model)).read(results)
    if file is not None:
        drawing.save(file, format)
    elif format is not None and format not in ("svg", "dot", "gv"):
        raise ValueError(f"draw: the format {format!r} is for a file, and none is given")
    return drawing


class _Named:
    """A Tensor that has a name: it, the layer that it belongs to, and that layer's class."""

    def __init__(self, name: str, layer: str = "", kind: str = "") -> None:
        self.name, self.layer, self.kind = name, layer, kind


def _names(model: Any) -> dict[Any, _Named]:
    """For each node that has a name: what it is."""
    if model is None:
        return {}
    if isinstance(model, Mapping):
        return {t._node: _Named(name) for name, t in model.items() if isinstance(t, Tensor) and t._node is not None}
    if not hasattr(model, "named_parameters"):
        raise TypeError(f"draw: expected a Module or a dict of Tensors as model, got {type(model).__name__}")
    kinds = {path: type(module).__name__ for path, module in model.named_modules()}
    found = {}
    for path, parameter in model.named_parameters():
        layer, _, name = path.rpartition(".")
        if parameter._node is not None:
            found[parameter._node] = _Named(name, layer, kinds.get(layer, ""))
    return found


class _Reader:
    """Makes a Drawing of nodes."""

    def __init__(self, names: dict[Any, _Named]) -> None:
        self.names = names
        self.drawing = Drawing()
        self.numbers: dict[Any, int] = {}  # of the boxes of nodes, and of arrays by their ids
        self.labels: dict[tuple[int, int], dict[str, None]] = {}  # of arrows
        self.parts: dict[Any, list[Node]] = {}  # of an op of several results, their nodes

    def read(self, results: Sequence[Tensor]) -> Drawing:
        nodes = _recorded([t._node for t in results if t._node is not None])
        for node in nodes:
            if hasattr(node.op, "index"):
                self.parts.setdefault(node.inputs[0], []).append(node)  # type: ignore[index]
        last = {t._node for t in results}
        for node in nodes:
            if node.op is not None and not hasattr(node.op, "index"):
                self.add_op(node, "result" if node in last else "op")
            elif node.op is None and (node not in self.names or node in last):
                name = self.names[node].name if node in self.names else "input"
                self.add(node, Box("result" if node in last else "leaf", [name, _of(node)]))
        for node in nodes:
            if node.op is None or hasattr(node.op, "index"):
                continue
            for i, parent in enumerate(node.inputs or ()):
                self.add_arrow(node, i, parent)
        for result in last:  # that is one of several of its op
            if result is not None and hasattr(result.op, "index"):
                whole = result.inputs[0]  # type: ignore[index]
                self.drawing.boxes[self.numbers[whole]].kind = "result"
        self.drawing.arrows = [(a, b, ", ".join(labels)) for (a, b), labels in self.labels.items()]
        return self.drawing

    def add(self, key: Any, box: Box) -> int:
        self.drawing.boxes.append(box)
        self.numbers[key] = len(self.drawing.boxes) - 1
        return self.numbers[key]

    def add_op(self, node: Node, kind: str) -> None:
        named = [self.names[p] for p in node.inputs or () if p in self.names]
        layer = next((n for n in named if n.kind), None)
        lines = [node.op.name]
        if layer is not None:
            lines[0] += f" · {layer.layer or layer.kind}"
            if layer.layer:
                lines[0] += f" ({layer.kind})"
        for parent in dict.fromkeys(p for p in node.inputs or () if p in self.names):
            lines.append(f"{self.names[parent].name} {_shape(parent)}")
        parts = sorted(self.parts.get(node, [node]), key=lambda n: n.made)
        lines += [f"{f'{n.op.index} ' if len(parts) > 1 else ''}→ {_of(n)}" for n in parts]
        self.add(node, Box(kind, lines))

    def add_arrow(self, node: Node, i: int, parent: Node | None) -> None:
        here, label = self.numbers[node], ""
        if parent is not None and parent.op is not None and hasattr(parent.op, "index"):
            whole = parent.inputs[0]  # type: ignore[index]
            label = str(parent.op.index) if len(self.parts[whole]) > 1 else ""
            parent = whole
        if parent is not None:
            if parent in self.numbers:
                self.arrow(self.numbers[parent], here, label)
            return
        saved = node.saved[i] if node.saved is not None and i < len(node.saved) else None
        if not getattr(saved, "ndim", 0):
            return  # a number
        assert saved is not None
        key = id(saved.data) if isinstance(saved, Tensor) else (node, i)
        if key not in self.numbers:
            self.add(key, Box("constant", ["array", _of(saved)]))
        self.arrow(self.numbers[key], here)

    def arrow(self, start: int, end: int, label: str = "") -> None:
        """Note an arrow; of those between the same boxes there is one."""
        self.labels.setdefault((start, end), {})[label] = None


def _recorded(roots: Sequence[Node]) -> list[Node]:
    """All nodes that `roots` come from, the first made first."""
    seen = set(roots)
    todo = list(seen)
    for node in todo:  # grows while it is walked
        if node.inputs is None:
            raise GradientError(
                "draw: the record was used up by backward; draw before it, or call backward(retain_graph=True)"
            )
        for parent in node.inputs:
            if parent is not None and parent not in seen:
                seen.add(parent)
                todo.append(parent)
    return sorted(todo, key=lambda node: node.made)


def _shape(x: Any) -> str:
    return str(tuple(x.shape))


def _of(x: Any) -> str:
    return f"{_shape(x)} {x.dtype}"


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')


def _by_graphviz(text: str, kind: str) -> bytes | None:
    """What `dot` makes of it; None if it is not installed or fails."""
    program = shutil.which("dot")
    if program is None:
        return None
    try:
        done = subprocess.run([program, f"-T{kind}"], input=text.encode(), capture_output=True, timeout=120, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


# --- the layout of our own, in pixels

_LETTER, _LINE, _PAD = 7.3, 16.0, 9.0  # the width of a letter, the height of a line, what is free around the text
_BESIDE, _BELOW, _MARGIN = 26.0, 44.0, 12.0  # between boxes, between layers, and around everything


@dataclass
class _Place:
    """Where a box is, or where an arrow passes through a layer that it does not end in."""

    width: float
    height: float
    layer: int
    above: list[_Place] = field(default_factory=list)
    below: list[_Place] = field(default_factory=list)
    x: float = 0.0  # of its middle
    y: float = 0.0  # of its top
    rank: float = 0.0
    passes: bool = False


def _svg(drawing: Drawing) -> str:
    places, routes = _layout(drawing)
    width = max(p.x + p.width / 2 for p in places) + _MARGIN
    height = max(p.y + p.height for p in places) + _MARGIN
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" font-family="ui-monospace, Menlo, monospace" font-size="12">',
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
        '<path d="M0,0.8 L7.5,4 L0,7.2 z" fill="#7a7a7a"/></marker></defs>',
    ]
    for route, (_a, _b, label) in zip(routes, drawing.arrows):
        out.append(f'<path d="{_curve(route)}" fill="none" stroke="#7a7a7a" marker-end="url(#head)"/>')
        if label:
            x, y = route[-1]
            out.append(f'<text x="{x + 5:.1f}" y="{y - 10:.1f}" font-size="10" fill="#555">{escape(label)}</text>')
    for place, box in zip(places, drawing.boxes):
        fill, border = _COLOURS[box.kind]
        left = place.x - place.width / 2
        out.append(
            f'<rect x="{left:.1f}" y="{place.y:.1f}" width="{place.width:.1f}" height="{place.height:.1f}" rx="6" '
            f'fill="{fill}" stroke="{border}"/>'
        )
        for i, line in enumerate(box.lines):
            style = 'font-weight="600" fill="#1d2733"' if not i else 'fill="#4a5560"'
            y = place.y + _PAD + _LINE * (i + 0.75)
            out.append(f'<text x="{place.x:.1f}" y="{y:.1f}" text-anchor="middle" {style}>{escape(line)}</text>')
    return "\n".join([*out, "</svg>"]) + "\n"


def _curve(points: list[tuple[float, float]]) -> str:
    """A line through the points that is vertical at each of them."""
    (x, y), *rest = points
    path = f"M{x:.1f},{y:.1f}"
    for a, b in rest:
        middle = (y + b) / 2
        path += f" C{x:.1f},{middle:.1f} {a:.1f},{middle:.1f} {a:.1f},{b:.1f}"
        x, y = a, b
    return path


def _layout(drawing: Drawing) -> tuple[list[_Place], list[list[tuple[float, float]]]]:
    """The places of the boxes, and for each arrow the points that it goes through."""
    places = [
        _Place(
            width=2 * _PAD + _LETTER * max(map(len, box.lines)),
            height=2 * _PAD + _LINE * len(box.lines),
            layer=layer,
        )
        for box, layer in zip(drawing.boxes, _layers(drawing))
    ]
    chains = []
    for a, b, _label in drawing.arrows:
        between = range(places[a].layer + 1, places[b].layer)
        chain = [places[a], *(_Place(width=4.0, height=0.0, layer=n, passes=True) for n in between), places[b]]
        for upper, lower in pairwise(chain):
            upper.below.append(lower)
            lower.above.append(upper)
        chains.append(chain)
    left = _MARGIN
    for component in _components(places):
        layers: list[list[_Place]] = [[] for _ in range(max(p.layer for p in component) + 1)]
        for place in component:
            layers[place.layer].append(place)
        _order(layers)
        _place(layers)
        shift = left - min(p.x - p.width / 2 for p in component)
        for place in component:
            place.x += shift
        left = max(p.x + p.width / 2 for p in component) + 2 * _BESIDE
    return places, [
        [
            (chain[0].x, chain[0].y + chain[0].height),
            *(point for p in chain[1:-1] for point in ((p.x, p.y), (p.x, p.y + p.height))),
            (chain[-1].x, chain[-1].y),
        ]
        for chain in chains
    ]


def _components(places: list[_Place]) -> list[list[_Place]]:
    """The places, in groups that no arrows connect."""
    seen: set[int] = set()
    found = []
    for place in places:
        if id(place) in seen:
            continue
        seen.add(id(place))
        group = [place]
        for p in group:  # grows while it is walked
            for other in p.above + p.below:
                if id(other) not in seen:
                    seen.add(id(other))
                    group.append(other)
        found.append(group)
    return found


def _layers(drawing: Drawing) -> list[int]:
    """For each box the number of its layer, counted from the top: below all that it is made from. What is made from
    nothing is right above the first box that uses it."""
    n = len(drawing.boxes)
    above: list[list[int]] = [[] for _ in range(n)]
    below: list[list[int]] = [[] for _ in range(n)]
    for a, b, _label in drawing.arrows:
        above[b].append(a)
        below[a].append(b)
    layers = [0] * n
    waiting = [len(set(parents)) for parents in above]
    ready = [i for i in range(n) if not waiting[i]]
    for i in ready:  # grows while it is walked
        layers[i] = max((layers[a] + 1 for a in above[i]), default=0)
        for b in dict.fromkeys(below[i]):
            waiting[b] -= 1
            if not waiting[b]:
                ready.append(b)
    for i in range(n):
        if not above[i] and below[i]:
            layers[i] = min(layers[b] for b in below[i]) - 1
    return layers


def _order(layers: list[list[_Place]]) -> None:
    """Order each layer so that few arrows cross: by the mean rank of what is above, then of what is below, in turns."""
    for layer in layers:
        _number(layer)
    for sweep in range(12):
        down = sweep % 2 == 0
        for layer in layers if down else reversed(layers):
            for p in layer:
                others = p.above if down else p.below
                if others:
                    p.rank = _mean([o.rank for o in others])
            layer.sort(key=lambda p: p.rank)
            _number(layer)


def _number(layer: list[_Place]) -> None:
    for i, p in enumerate(layer):
        p.rank = (i + 0.5) / len(layer)


def _place(layers: list[list[_Place]]) -> None:
    """Give each place its coordinates."""
    top = _MARGIN
    for layer in layers:
        height = max((p.height for p in layer), default=0.0)
        for p in layer:
            p.y = top + (0.0 if p.passes else (height - p.height) / 2)
            p.height = height if p.passes else p.height
        top += height + _BELOW
        _spread(layer, [0.0] * len(layer))
    neighbours: list[Callable[[_Place], list[_Place]]] = [lambda p: p.above, lambda p: p.below]
    for sweep in range(41):  # the last one downwards, so that chains hang straight
        near = neighbours[sweep % 2]
        for layer in layers if sweep % 2 == 0 else reversed(layers):
            _spread(layer, [_mean([o.x for o in near(p)]) if near(p) else p.x for p in layer])


def _spread(layer: list[_Place], wanted: list[float]) -> None:
    """Put places as near as possible to where they are wanted, by least squares, in their order and without overlap.

    Less the room that those before it need, each may not be left of the one before: that is isotonic regression, by
    pooling neighbours that violate it (Ayer et al., 1955). Arrows that pass count more, so that they are straight.
    """
    offset = 0.0
    pools: list[tuple[float, float, int]] = []  # (mean, weight, how many places)
    offsets = []
    for i, (p, x) in enumerate(zip(layer, wanted)):
        if i:
            offset += (layer[i - 1].width + p.width) / 2 + _BESIDE
        offsets.append(offset)
        mean, weight, count = x - offset, 4.0 if p.passes else 1.0, 1
        while pools and pools[-1][0] > mean:
            other, more, several = pools.pop()
            mean = (mean * weight + other * more) / (weight + more)
            weight, count = weight + more, count + several
        pools.append((mean, weight, count))
    means = [mean for mean, _weight, count in pools for _ in range(count)]
    for p, mean, offset in zip(layer, means, offsets):
        p.x = mean + offset


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
