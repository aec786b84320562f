"""Training: `fit`, `evaluate` and `predict`, a compile-style Trainer, callbacks, metrics and plots.

Metrics, callbacks and the progress bar serve loops written by hand just as well.
"""

from gpunet.train.bar import Bar, Progress, progress
from gpunet.train.callbacks import (
    Callback,
    Checkpoint,
    CSVLogger,
    EarlyStopping,
    LRSchedule,
    ProgressBar,
    TensorBoard,
)
from gpunet.train.loop import evaluate, fit, predict
from gpunet.train.metrics import (
    F1,
    Accuracy,
    ConfusionMatrix,
    Mean,
    MeanAbsoluteError,
    MeanSquaredError,
    Metric,
    Precision,
    R2Score,
    Recall,
    TopKAccuracy,
)
from gpunet.train.nonfinite import NonFiniteError
from gpunet.train.plots import plot_confusion_matrix, plot_history, plot_predictions
from gpunet.train.state import History, State
from gpunet.train.trainer import Trainer

__all__ = [
    "F1",
    "Accuracy",
    "Bar",
    "CSVLogger",
    "Callback",
    "Checkpoint",
    "ConfusionMatrix",
    "EarlyStopping",
    "History",
    "LRSchedule",
    "Mean",
    "MeanAbsoluteError",
    "MeanSquaredError",
    "Metric",
    "NonFiniteError",
    "Precision",
    "Progress",
    "ProgressBar",
    "R2Score",
    "Recall",
    "State",
    "TensorBoard",
    "TopKAccuracy",
    "Trainer",
    "evaluate",
    "fit",
    "plot_confusion_matrix",
    "plot_history",
    "plot_predictions",
    "predict",
    "progress",
]
