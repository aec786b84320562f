"""A small training run with everything random in it, for the tests of this folder."""

import numpy as np

import gpunet as gn
from gpunet import data, nn, optim, train
from gpunet.data import transforms
from gpunet.optim import lr_scheduler


def digits(count=320):
    """The first real digits with random shifts and turns, as a Dataset."""
    transform = transforms.Compose([transforms.RandomCrop(8, padding=1), transforms.RandomRotation(10)])
    return data.Subset(data.Digits(transform=transform), range(count))


def make(seed=0, width=24):
    """Model, optimizer, loaders, and the options of `fit` that go with them."""
    gn.manual_seed(seed)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(64, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.2), nn.Linear(width, 10)
    )
    optimizer = optim.Adam(model.parameters(), lr=0.01)
    return model, {
        "train_data": data.DataLoader(digits(), batch_size=32, shuffle=True),
        "validation_data": data.DataLoader(digits(80), batch_size=64),  # random too, so a resume must know its place
        "loss": "cross_entropy",
        "optimizer": optimizer,
        "metrics": ["accuracy", train.F1()],
        "scheduler": lr_scheduler.StepLR(optimizer, 2, 0.5),
        "clip_grad_norm": 1.0,
        "progress": False,
    }


def weights(model):
    return {name: value.detach().numpy().copy() for name, value in model.state_dict().items()}


def assert_same_bits(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert np.asarray(a[name]).tobytes() == np.asarray(b[name]).tobytes(), name
