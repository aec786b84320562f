"""An error inside a model tells the path of the layer, what was given and expected, and the likely cause."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

import gpunet as gn
from gpunet import nn
from gpunet.errors import DeviceError, DTypeError, ShapeError
from gpunet.nn import functional as F

CHANNELS = [3, 16, 32, 64, 128, 256]


class ConvNet(nn.Module):
    """The five-convolution network, with a head for `features` features."""

    def __init__(self, features: int, dropout: float = 0.0, flatten: bool = True) -> None:
        layers: list[nn.Module] = []
        for a, b in pairwise(CHANNELS):
            layers += [nn.Conv2d(a, b, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        self.features = nn.Sequential(*layers)
        head: list[nn.Module] = [nn.Flatten()] if flatten else []
        self.classifier = nn.Sequential(*head, nn.Dropout(dropout), nn.Linear(features, 128), nn.Linear(128, 10))

    def forward(self, x: Any) -> Any:
        return self.classifier(self.features(x))


def message(model: nn.Module, *inputs: Any, kind: type[Exception] = ShapeError) -> str:
    with pytest.raises(kind) as caught:
        model(*inputs)
    assert type(caught.value) is kind
    return str(caught.value)


@pytest.mark.parametrize("training", [True, False])
def test_a_flatten_that_does_not_fit_its_linear(training: bool) -> None:
    model = ConvNet(4096, dropout=0.2).train(training)
    assert message(model, gn.zeros((8, 3, 32, 32))) == (
        "model.classifier.2 (Linear(in_features=4096, out_features=128, bias=True)): expected an input of shape "
        "(..., 4096), got (8, 256). It is of shape (8, 256, 1, 1) before it is flattened, which makes 256*1*1 = 256 "
        "features: set in_features=256 here"
    )
    with gn.no_grad():
        assert "model.classifier.2 (Linear" in message(model, gn.zeros((8, 3, 32, 32)))


def test_a_flatten_that_was_forgotten() -> None:
    text = message(ConvNet(256, flatten=False), gn.zeros((8, 3, 32, 32)))
    assert text.startswith("model.classifier.1 (Linear(in_features=256, out_features=128, bias=True)): ")
    assert text.endswith(
        "expected an input of shape (..., 256), got (8, 256, 1, 1). Flatten it first: nn.Flatten() makes it (8, 256)"
    )
    text = message(nn.Linear(128, 10), gn.zeros((8, 16, 2, 2)))
    assert text.endswith("nn.Flatten() makes it (8, 64), which takes in_features=64")


def test_a_linear_after_one_of_another_width() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(8, 64), nn.ReLU()), nn.Sequential(nn.Dropout(), nn.Linear(128, 10)))
    assert message(nn.Sequential(model), gn.zeros((32, 8))) == (
        "model.0.1.1 (Linear(in_features=128, out_features=10, bias=True)): expected an input of shape (..., 128), got "
        "(32, 64). The layer before it, model.0.0.0 (Linear), gives 64: set in_features=64 here"
    )


def test_the_layer_before_is_named_only_if_it_explains_the_width() -> None:
    model = nn.Sequential(nn.Linear(8, 64), nn.Linear(10, 2))
    with model[0].register_forward_hook(lambda m, args, y: y[:, :50]):
        text = message(model, gn.zeros((4, 8)))
    assert text.endswith("expected an input of shape (..., 10), got (4, 50)")


def test_channels_after_a_convolution() -> None:
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(32))
    assert message(model, gn.zeros((4, 3, 8, 8))) == (
        "model.1 (BatchNorm2d(32, eps=1e-05, momentum=0.1, affine=True, bias=True, track_running_stats=True)): "
        "expected 32 channels, got 16 in an input of shape (4, 16, 6, 6). The layer before it, "
        "model.0 (Conv2d), gives 16: set num_features=16 here"
    )


def test_a_layer_alone_is_named_without_a_path() -> None:
    assert message(nn.Linear(3, 4), gn.zeros((2, 5))) == (
        "Linear(in_features=3, out_features=4, bias=True): expected an input of shape (..., 3), got (2, 5)"
    )


def test_the_original_error_is_the_cause_and_the_message_is_made_once() -> None:
    model = nn.Sequential(nn.Sequential(nn.Sequential(nn.Linear(3, 4))))
    with pytest.raises(ShapeError) as caught:
        model(gn.zeros((2, 5)))
    cause = caught.value.__cause__
    assert type(cause) is ShapeError and str(cause) == "expected an input of shape (..., 3), got (2, 5)"
    assert cause.__cause__ is None and str(caught.value).count("Linear(") == 1


def test_errors_of_a_models_own_forward() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            self.act = nn.ReLU()

        def forward(self, x: Any) -> Any:
            return self.act(x) @ gn.zeros((7, 2))

    text = message(nn.Sequential(nn.Identity(), Block()), gn.zeros((2, 5)))
    assert text == "model.1 (Block): matmul: the inner dimensions of (2, 5) and (7, 2) differ"
    assert message(Block(), gn.zeros((2, 5))).startswith("Block: matmul: ")


def test_a_layer_that_is_called_directly_through_others() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            self.inner = nn.ModuleDict({"head": nn.Sequential(nn.Linear(3, 4))})

        def forward(self, x: Any) -> Any:
            return self.inner["head"][0](x)  # neither ModuleDict nor Sequential is called

    assert message(Outer(), gn.zeros((2, 5))).startswith("model.inner.head.0 (Linear(")


def test_a_layer_that_is_not_a_part() -> None:
    class Hidden(nn.Module):
        def __init__(self) -> None:
            self.layers = [nn.Linear(3, 4)]

        def forward(self, x: Any) -> Any:
            return self.layers[0](x)

    assert message(nn.Sequential(Hidden()), gn.zeros((2, 5))).startswith("Linear(in_features=3")


def test_errors_of_other_kinds() -> None:
    class Fails(nn.Module):
        def __init__(self, error: Exception) -> None:
            self.error = error

        def forward(self, x: Any) -> Any:
            raise self.error

    class Special(ValueError):
        def __init__(self, code: int, reason: str) -> None:
            super().__init__(code, reason)

    for kind in (ValueError, TypeError, IndexError, DTypeError, DeviceError):
        assert message(nn.Sequential(Fails(kind("no"))), 1, kind=kind) == "model.0 (Fails()): no"
    for error in (KeyError("k"), RuntimeError("r"), Special(3, "s"), ZeroDivisionError("z")):
        with pytest.raises(type(error)) as caught:
            nn.Sequential(Fails(error))(1)
        assert caught.value is error  # not ours to change


def test_a_call_with_wrong_arguments() -> None:
    text = message(nn.Sequential(nn.ModuleDict({"a": nn.ReLU()})["a"]), 1, 2, kind=TypeError)
    assert text.startswith("Sequential: ") and "takes 2 positional arguments but 3 were given" in text


def test_errors_go_through_hooks_and_other_errors_can_follow() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    model.register_forward_hook(lambda m, args, y: y)
    for _ in range(2):
        assert message(model, gn.zeros((2, 5))).startswith("model.0 (Linear(")
    assert model(gn.zeros((2, 3))).shape == (2, 4)


def test_an_input_of_the_wrong_dtype_or_on_the_wrong_device() -> None:
    model = nn.Sequential(nn.Linear(3, 4))
    assert message(model, gn.zeros((2, 3), dtype="float64"), kind=DTypeError).endswith(
        'expected an input of dtype float32, as the weight has, got float64: use x.astype("float32"), or '
        'model.to("float64")'
    )
    assert message(model, gn.zeros((2, 3), dtype="int64"), kind=DTypeError).endswith(
        'got int64: use x.astype("float32")'
    )
    text = message(model, gn.zeros((2, 3), device="strict"), kind=DeviceError)
    assert text.startswith("model.0 (Linear(") and "its arrays are on different devices: strict" in text
    text = message(model, [[1.0, 2.0, 3.0]], kind=TypeError)
    assert text.endswith("expected a Tensor, got a list; gpunet.tensor(data) makes one")


def test_an_array_of_another_library() -> None:
    class Foreign:
        shape, dtype, __dlpack__ = (2, 3), "float", None

    for layer in (nn.Linear(3, 4), nn.ReLU(), nn.LayerNorm(3), nn.Dropout()):
        assert message(layer, Foreign(), kind=DTypeError).endswith("Foreign; gpunet.asarray(x) makes a Tensor of it")


def test_errors_of_functions_inside_a_layer_have_the_path_too() -> None:
    class Head(nn.Module):
        def forward(self, x: Any) -> Any:
            return F.max_pool2d(x, 9)

    assert message(nn.Sequential(Head()), gn.zeros((1, 1, 4, 4))).startswith("model.0 (Head()): ")
