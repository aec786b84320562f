"""Pictures of the record: what is in them, and that boxes do not overlap."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gpunet as gn
import gpunet.nn.functional as F
from gpunet import graph, nn
from gpunet.errors import DTypeError, GradientError


@pytest.fixture(autouse=True)
def without_graphviz(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph.shutil, "which", lambda name: None)


def _network() -> tuple[Any, Any]:
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    return model, F.mse_loss(model(gn.zeros((3, 4))), gn.zeros((3, 2)))


def _text(drawing: Any) -> list[str]:
    return ["|".join(box.lines) for box in drawing.boxes]


def test_ops_shapes_and_names_of_parameters(device: str) -> None:
    model, _ = _network()
    model.to(device)
    loss = F.mse_loss(model(gn.zeros((3, 4), device=device)), gn.zeros((3, 2), device=device))
    drawing = gn.draw(loss, model=model)
    text = _text(drawing)
    assert "linear · 0 (Linear)|weight (8, 4)|bias (8,)|→ (3, 8) float32" in text
    assert "tanh|→ (3, 8) float32" in text
    assert "array|(3, 4) float32" in text
    assert drawing.boxes[-1].kind != "leaf" and [b.kind for b in drawing.boxes].count("result") == 1
    number = text.index("tanh|→ (3, 8) float32")
    before = [a for a, b, _label in drawing.arrows if b == number]
    assert [text[i].split("|")[0] for i in before] == ["linear · 0 (Linear)"]
    plain = gn.draw(loss)
    assert [b.kind for b in plain.boxes].count("leaf") == 4


def test_names_from_a_dict_shared_inputs_and_several_results() -> None:
    a, b = gn.ones(2).requires_grad_(), gn.ones((2, 2)).requires_grad_()
    q, r = gn.linalg.qr(b)
    drawing = gn.draw([a * a + gn.sin(a), q @ r], model={"a": a})
    text = _text(drawing)
    assert "multiply|a (2,)|→ (2,) float32" in text and "sin|a (2,)|→ (2,) float32" in text
    assert "qr|0 → (2, 2) float32|1 → (2, 2) float32" in text
    assert (text.index("qr|0 → (2, 2) float32|1 → (2, 2) float32"), text.index("matmul|→ (2, 2) float32"), "0, 1") in (
        drawing.arrows
    )
    assert gn.draw(r).boxes[-1].kind == "result"
    assert _text(gn.draw(a)) == ["input|(2,) float32"]


def test_dot_and_files(tmp_path: Path) -> None:
    model, loss = _network()
    drawing = gn.draw(loss, tmp_path / "loss.dot", model=model)
    text = (tmp_path / "loss.dot").read_text(encoding="utf-8")
    assert text == drawing.dot == str(drawing)
    assert text.startswith("digraph {") and len(re.findall(r"^  n\d+ \[label=", text, re.M)) == len(drawing.boxes)
    assert len(re.findall(r"^  n\d+ -> n\d+", text, re.M)) == len(drawing.arrows)
    gn.draw(loss, tmp_path / "loss.svg")
    gn.draw(loss, tmp_path / "loss", format="svg")
    assert (tmp_path / "loss.svg").read_bytes() == (tmp_path / "loss").read_bytes()
    with pytest.raises(ValueError, match='the format "svg" or "dot", got \'png\''):
        gn.draw(loss, tmp_path / "loss.png")
    with pytest.raises(ValueError, match="for a file, and none is given"):
        gn.draw(loss, format="png")
    odd = gn.draw(gn.ones(2).requires_grad_(), model=None)
    odd.boxes[0].lines[0] = 'a "b" \\ <c> & d'
    assert 'label="a \\"b\\" \\\\ <c> & d\\n' in odd.dot
    assert "&lt;c&gt; &amp; d" in odd.svg
    ElementTree.fromstring(odd.svg)


def _rectangles(svg: str) -> np.ndarray:
    boxes = [e for e in ElementTree.fromstring(svg) if e.tag.endswith("rect")]
    return np.array([[float(b.get(k) or 0) for k in ("x", "y", "width", "height")] for b in boxes])


def _tangle() -> Any:
    """Fifteen ops with long and crossing arrows, from several inputs."""
    rng = np.random.default_rng(0)
    values = [gn.ones(2).requires_grad_() for _ in range(4)]
    for _ in range(15):
        i, j = rng.integers(0, len(values), 2)
        values.append(values[int(i)] * values[int(j)] if i % 2 else values[int(i)] + gn.sin(values[int(j)]))
    return [values[-1], values[-2], gn.ones(3).requires_grad_() * 2]


def test_our_layout_has_arrows_that_point_down_and_no_overlaps() -> None:
    loss = _network()[1]
    for y in (loss, _tangle()):
        drawing = gn.draw(y)
        assert drawing._repr_svg_() == drawing.svg
        svg = ElementTree.fromstring(drawing.svg)
        places = _rectangles(drawing.svg)
        assert len(places) == len(drawing.boxes)
        x, y_, w, h = places.T
        assert (x >= 0).all() and (y_ >= 0).all()
        assert (x + w <= float(svg.get("width") or 0)).all() and (y_ + h <= float(svg.get("height") or 0)).all()
        apart = (x[:, None] >= (x + w)[None]) | (y_[:, None] >= (y_ + h)[None])
        assert (apart | apart.T | np.eye(len(x), dtype=bool)).all()
        for a, b, _label in drawing.arrows:
            assert y_[a] + h[a] < y_[b]
        # An arrow runs through no box but those that it joins.
        routes = [e.get("d") or "" for e in svg if e.tag.endswith("path")]
        for (a, b, _label), route in zip(drawing.arrows, routes):
            points = np.array([[float(v) for v in p.split(",")] for p in re.findall(r"[-\d.]+,[-\d.]+", route)])
            for px, py in points[[0, *range(3, len(points), 3)]]:
                inside = (px > x) & (px < x + w) & (py > y_) & (py < y_ + h)
                assert not np.delete(inside, [a, b]).any()


def test_a_chain_is_straight() -> None:
    y = gn.ones(2).requires_grad_()
    for _ in range(6):
        y = gn.sin(y)
    places = _rectangles(gn.draw(y).svg)
    middles = places[:, 0] + places[:, 2] / 2
    assert np.ptp(middles) < 0.2 and (np.diff(np.sort(places[:, 1])) > 0).all()


def test_graphviz_places_boxes_where_it_is_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "dot"
    program.write_text('#!/bin/sh\necho "made by $1"\ncat > /dev/null\n')
    program.chmod(0o755)
    monkeypatch.setattr(graph.shutil, "which", lambda name: str(program))
    y = gn.sin(gn.ones(2).requires_grad_())
    assert gn.draw(y).svg == "made by -Tsvg\n"
    gn.draw(y, tmp_path / "y.pdf")
    assert (tmp_path / "y.pdf").read_text() == "made by -Tpdf\n"
    program.write_text("#!/bin/sh\nexit 1\n")
    assert gn.draw(y).svg.startswith("<svg")


def test_errors() -> None:
    x = gn.ones(2).requires_grad_()
    y = gn.sin(x)
    with pytest.raises(DTypeError, match="expected a Tensor as output 0, got float"):
        gn.draw(1.0)
    with pytest.raises(GradientError, match=r"nothing was recorded for a tensor of shape \(3,\)"):
        gn.draw(gn.ones(3))
    with pytest.raises(TypeError, match="a Module or a dict of Tensors"):
        gn.draw(y, model=3)
    y.sum().backward()
    with pytest.raises(GradientError, match="used up by backward"):
        gn.draw(y)
