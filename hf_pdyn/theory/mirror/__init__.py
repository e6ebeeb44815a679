"""Time-dependent mirror flows (TMF): the Legendre function R_a of a parametrisation under explicit regularisation.

Gradient flow on f(g(w)) + alpha_t h(w) moves x = g(w) so that grad R_a(x_t) = mu_t (TMF Theorem 3.1), where g and h
commute (`commutation`). Symbols and shapes:

=============  =======================================================================================
`x`            (..., n), the parameters that the loss f sees
`w`            the trained parameters; (2, ..., n) for the maps of pairs, (..., D) for quadratic forms
`mu`           (..., n), -integral of grad f(x_s) ds
`a`            a number, or a tensor that broadcasts against mu (such as (..., 1)): -integral of alpha_s ds, so a <= 0
`Q_a`, `R_a`   the potentials with grad Q_a(mu) = x and dQ_a/da = h, and with grad R_a(x) = mu: a Legendre pair
`scale`        factor of h: 1 for the paper's sum of squares, 1/2 for the weight decay of optimizers
=============  =======================================================================================

R_a(x) = min over y of [R(x, y) - a y], for the Legendre function R(x, y) of the pair (g, h). Hence dR_a/da = -h (ours),
and R_a is contracting (Definition 3.2) exactly where h >= 0. That definition depends on what is added to R_a as a
function of a alone; R_a here is the conjugate of Q_a, which leaves no such freedom.

Several formulas that TMF prints do not hold; `as_printed` has them. `depth` has products of more than two factors,
which the theorem does not cover. Functions compute in the dtype of their tensors: use float64. Where mu or a lies
outside the domain the result is NaN.
"""

from hf_pdyn.theory.mirror.flow import MirrorMap
from hf_pdyn.theory.mirror.hyperbolic import Product, SquareDifference, hyperbolic_entropy
from hf_pdyn.theory.mirror.quadratic import QuadraticForms
from hf_pdyn.theory.mirror.separable import LogDifference, PowerDifference

__all__ = [
    "LogDifference",
    "MirrorMap",
    "PowerDifference",
    "Product",
    "QuadraticForms",
    "SquareDifference",
    "hyperbolic_entropy",
]
