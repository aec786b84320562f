"""Transformations of functions of Tensors: derivatives in both directions, many samples at once, recomputation.

    gn.grad(f), gn.value_and_grad(f)      the gradient of a function to a scalar
    gn.vjp(f, x), gn.jvp(f, (x,), (dx,))  gradients taken back, directions taken forward
    gn.jacobian(f), gn.hessian(f)         all derivatives, and second ones
    gn.vmap(f)                            a function of one sample as a function of many
    gn.checkpoint(f, x)                   computed again for the derivative, instead of kept

They nest in any order, and `f` may use Tensors that are on the tape already.
"""

from gpunet.transforms.anomaly import detect_anomaly
from gpunet.transforms.batching import vmap
from gpunet.transforms.forward import jvp
from gpunet.transforms.recompute import checkpoint
from gpunet.transforms.reverse import grad_of, hessian, jacobian, value_and_grad, vjp

__all__ = ["checkpoint", "detect_anomaly", "grad_of", "hessian", "jacobian", "jvp", "value_and_grad", "vjp", "vmap"]
