"""The minimal model of *Information allocation dynamics* (IAD, section 3): how weight and bias share a residual.

One linear output z = X w + b 1 under L = ||r||^2 / 2n with the residual r = z - y (Eqs. 8-10). Symbols and shapes:

==============  =====================================================================
`X`             (n, d), the inputs
`w`, `b`        (d,) and (), the weight and the bias
`y`, `r`        (n,), the target and the residual
`g_w`, `g_b`    (d,) and (), gradients, or the first moments m_hat in their place
`v_w`, `v_b`    (d,) and (), second moments v_hat
`pi`            probability that an input is not zero
==============  =====================================================================

Every function takes tensors of any floating dtype and computes in it; identities of the paper hold to its rounding.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from hf_pdyn.optim.equation import update_directions


class Corrections(NamedTuple):
    """What an update takes out of the residual, (n,) each: r+ = r - weight - bias (IAD Eq. 16)."""

    weight: Tensor
    bias: Tensor


def residual(X: Tensor, w: Tensor, b: Tensor, y: Tensor) -> Tensor:  # noqa: N803  (the paper's symbol)
    """R = X w + b 1 - y (IAD Eq. 9)."""
    return X @ w + b - y


def gradients(X: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:  # noqa: N803
    """g_w = X^T r / n and g_b = 1^T r / n, the mean of the residual (IAD Eqs. 11, 12)."""
    return X.mT @ r / len(r), r.mean()


def gain(v_hat: Tensor, *, p: float, eps: float) -> Tensor:
    """a(p) = (v_hat + eps)^-p, the diagonal of Q_w(p) and q_b(p) (IAD Eqs. 19, 25)."""
    return _preconditioned(torch.ones_like(v_hat), v_hat, p=p, eps=eps)


def corrections(
    X: Tensor,  # noqa: N803
    g_w: Tensor,
    g_b: Tensor,
    v_w: Tensor,
    v_b: Tensor,
    *,
    lr: float,
    p: float,
    eps: float,
) -> Corrections:
    """What the p-update takes out of the residual, by the path it takes (IAD Eqs. 24-26).

    weight: lr X Q_w(p) g_w, which keeps what correlates with the inputs. bias: lr q_b(p) g_b 1, the mean alone.
    """
    weight = lr * (X @ _preconditioned(g_w, v_w, p=p, eps=eps))
    bias = lr * _preconditioned(g_b, v_b, p=p, eps=eps)
    return Corrections(weight, bias.expand(len(X)))


def weight_share(X: Tensor, delta_w: Tensor, delta_b: Tensor) -> Tensor:  # noqa: N803
    """||X dw|| / (||X dw|| + ||db 1||), the share of the weight path in what an update does to the outputs.

    For `delta_w` of shape (k, d) and `delta_b` of shape (k,), as in `nn.Linear`, the norms are over all k outputs.
    NaN where nothing changed.
    """
    by_weight = torch.linalg.vector_norm(X @ delta_w.mT) if delta_w.ndim > 1 else torch.linalg.vector_norm(X @ delta_w)
    by_bias = torch.linalg.vector_norm(delta_b) * len(X) ** 0.5
    return by_weight / (by_weight + by_bias)


def sparse_second_moment(pi: Tensor, *, sigma_sq: float, mean: float = 0.0, batch: int = 1) -> Tensor:
    """E[g_j^2] of a coordinate whose input is not zero with probability `pi` (IAD Eq. 28, and beyond).

    g_j is the mean over a batch of independent products x_ij r_i, which, where x_ij is not zero, have the mean `mean`
    and the mean square `sigma_sq`:

        E[g_j^2] = pi sigma_sq / batch + (1 - 1/batch) pi^2 mean^2.

    The paper's pi sigma_sq is the first term; the second, of inputs that correlate with the residual, is ours.
    """
    noise, drift = _noise_and_drift(pi, sigma_sq, mean, batch)
    return noise + drift


def sparse_gain_slope(
    pi: Tensor, *, p: float, eps: float, sigma_sq: float, mean: float = 0.0, batch: int = 1
) -> Tensor:
    """D log a_j(p) / d log pi for the second moment above.

    -p where noise dominates (IAD Eq. 30), -2p where correlation does, and 0 where eps does.
    """
    noise, drift = _noise_and_drift(pi, sigma_sq, mean, batch)
    return -p * (noise + 2 * drift) / (noise + drift + eps)


def _noise_and_drift(pi: Tensor, sigma_sq: float, mean: float, batch: int) -> tuple[Tensor, Tensor]:
    return pi * sigma_sq / batch, (1 - 1 / batch) * pi**2 * mean**2


def _preconditioned(m_hat: Tensor, v_hat: Tensor, *, p: float, eps: float) -> Tensor:
    """m_hat / (v_hat + eps)^p, by the optimizer's own equation; with both betas 0 moments need no bias correction."""
    return update_directions([m_hat], [v_hat], times=[1.0], beta1=0.0, beta2=0.0, p=p, eps=eps)[0]
