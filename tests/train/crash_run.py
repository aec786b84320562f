"""A training run that saves after every step and says so, to be killed by test_resume: FOLDER EPOCHS."""

import sys

from gpunet import io, train
from tests.train.small_run import make


class Announce(train.Callback):
    """Says "step" just before the checkpoint of the step is written, so that a kill soon after hits the write."""

    def on_batch_end(self, state):
        print("step", state.step, flush=True)


def main(folder, epochs):
    model, options = make(width=256)
    callbacks = [Announce(), train.Checkpoint(folder, every_steps=1)]
    train.fit(model, **options, epochs=epochs, callbacks=callbacks, resume=True)
    io.save(f"{folder}/weights", model.state_dict())


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
