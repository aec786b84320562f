"""Special functions, under SciPy's names."""

from gpunet.ops.elementwise import erf
from gpunet.ops.elementwise import sigmoid as expit
from gpunet.ops.softmax import log_softmax, logsumexp, softmax
from gpunet.ops.special import (
    betaln,
    digamma,
    entr,
    erfc,
    erfcx,
    erfinv,
    gammaln,
    i0,
    i0e,
    i1,
    i1e,
    log_expit,
    log_ndtr,
    logit,
    ndtr,
    polygamma,
    rel_entr,
    xlog1py,
    xlogy,
)

psi = digamma

__all__ = [
    "betaln", "digamma", "entr", "erf", "erfc", "erfcx", "erfinv", "expit", "gammaln", "i0", "i0e", "i1", "i1e",
    "log_expit", "log_ndtr", "log_softmax", "logit", "logsumexp", "ndtr", "polygamma", "psi", "rel_entr", "softmax",
    "xlog1py", "xlogy",
]  # fmt: skip
