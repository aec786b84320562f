"""Special functions, under SciPy's names."""

from gpunet.ops.elementwise import erf
from gpunet.ops.elementwise import sigmoid as expit
from gpunet.ops.softmax import log_softmax, logsumexp, softmax

__all__ = ["erf", "expit", "log_softmax", "logsumexp", "softmax"]
