"""Optimizers, learning-rate schedulers (`lr_scheduler`) and gradient clipping."""

from gpunet.nn.utils import clip_grad_norm_, clip_grad_value_
from gpunet.optim import lr_scheduler
from gpunet.optim.adagrad import Adagrad
from gpunet.optim.adam import Adam, AdamW
from gpunet.optim.optimizer import Optimizer
from gpunet.optim.rmsprop import RMSprop
from gpunet.optim.sgd import SGD

__all__ = [
    "SGD", "Adagrad", "Adam", "AdamW", "Optimizer", "RMSprop", "clip_grad_norm_", "clip_grad_value_", "lr_scheduler",
]  # fmt: skip
