"""The network of mlp.py, 784-128-10, in the manner of Keras: compile, fit, evaluate.

python examples/mlp_compile.py
python examples/mlp_compile.py --data digits --epochs 20
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import gpunet as gn
from gpunet import data, nn, train


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Run the example; returns the last epoch's values ("loss", "val_accuracy" ...) and the "test_accuracy"."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", default="fashion-mnist", help="a name such as digits, fashion-mnist, mnist:/folder")
    parser.add_argument("--download", action="store_true", help="fetch the data's files where they are missing")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)

    gn.manual_seed(args.seed)
    train_data = data.named(args.data, train=True, download=args.download)
    test_data = data.named(args.data, train=False, download=args.download)
    image, _label = train_data[0]

    model = nn.Sequential(
        nn.Flatten(),
        nn.Linear(image.size, 128),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Linear(128, len(train_data.classes)),
    )
    print(model.summary((1, *image.shape)))

    trainer = train.Trainer(model, device=args.device)
    trainer.compile(optimizer="adam", loss="cross_entropy", metrics=["accuracy"], lr=1e-3)
    history = trainer.fit(train_data, batch_size=128, epochs=args.epochs, validation_split=0.1)
    test = trainer.evaluate(test_data)
    print(f"test loss {test['loss']:.4f}, test accuracy {test['accuracy']:.4f}")
    return {**history.epoch(-1), "test_accuracy": test["accuracy"]}


if __name__ == "__main__":
    main()
