"""The modified flow of the p-update: the differential equation whose solution its steps follow to second order.

Cattaneo, Klusowski and Shigida derive it for Adam (*On the implicit bias of Adam*, arXiv 2309.00079, IBA; Theorem 3.1).
The same expansion holds for every exponent p. Steps n = 0, 1, ... are theta <- theta - h_n m_hat / (v_hat + eps)^p with
bias-corrected moments that start at zero, as in `hf_pdyn.Padam`; p = 1/2 is IBA's Definition 2.1, with eps inside the
square root. Step n takes the time [t_n, t_n + h_n]. Symbols and shapes, for d parameters as one vector:

=============  =====================================================================================
`h_n`          learning rate of step n; beta and rho are the decay rates `betas` of the two moments
`E_k`          loss of step k's mini-batch, a function of theta; in the full-batch case always E
`w^b_{n,k}`    (1-b) b^(n-k) / (1-b^(n+1)), weight of gradient k in a bias-corrected average
`M`, `S`       (d,), sum_k w^beta_{n,k} grad E_k and sum_k w^rho_{n,k} (grad E_k)^2 + eps, all at one theta
`D`            (d,), M S^-p, the direction of step n
`N_p`          (), sum_i ((d_i E)^2 + eps)^(1-p) / (2 (1-p)); p = 1/2 is IBA's perturbed one-norm
`C_b(n)`       (), how far back an average looks, in half-steps: see `memory_coefficient`
=============  =====================================================================================

A loss maps parameters to a 0-d tensor and must be twice differentiable; fields have the structure of the parameters
(see `theory.flows`). `eps` must be positive. The arithmetic is that of the parameters' dtype, meant to be float64. `p`
may differ by entry, as a (d,) tensor. Numbers may be 0-d tensors, so that `torch.func.vmap` can go over them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from hf_pdyn.theory.flows import ParamsT, flatten, unflatten

Loss: TypeAlias = Callable[[ParamsT], Tensor]
Number: TypeAlias = float | Tensor


def modified_flow(
    loss: Loss[ParamsT],
    params: ParamsT,
    *,
    lr: Number,
    betas: tuple[Number, Number],
    eps: Number,
    p: Number,
    steps_done: int | None = None,
) -> ParamsT:
    """The full-batch flow theta' = -(grad E + bias) ((grad E)^2 + eps)^-p, with the bias of `implicit_bias`.

    Args:
        loss: E.
        params: theta.
        lr: h, the same in all steps. For schedules and weight decay use `minibatch_flow([loss] * (n + 1), ...)`.
        betas: beta and rho, each in [0, 1). beta = 0 is RMSProp.
        eps: added to v_hat inside the power, positive.
        p: the exponent, any finite number.
        steps_done: n, for the flow during step n. None is the limit n -> infinity (IBA Eqs. 2.2, 2.3), which holds
            only after some 1 / (1 - max(betas)) steps.
    """
    g, bias = _gradient_and_bias(loss, params, lr=lr, betas=betas, eps=eps, p=p, steps_done=steps_done)
    return unflatten(-(g + bias) * (g.square() + eps) ** -p, params)


def implicit_bias(
    loss: Loss[ParamsT],
    params: ParamsT,
    *,
    lr: Number,
    betas: tuple[Number, Number],
    eps: Number,
    p: Number,
    steps_done: int | None = None,
) -> ParamsT:
    """What finite steps add to the full-batch gradient (IBA Eq. 2.3, for any p and n); arguments as `modified_flow`.

    bias_j = (h/2) {C_beta(n) - 2 p C_rho(n) (d_j E)^2 / ((d_j E)^2 + eps)} d_j N_p. N_p is penalised where the braces
    are positive; where they are negative, its decrease is hindered.
    """
    _, bias = _gradient_and_bias(loss, params, lr=lr, betas=betas, eps=eps, p=p, steps_done=steps_done)
    return unflatten(bias, params)


def bias_coefficient(
    share: Number,
    *,
    lr: Number,
    betas: tuple[Number, Number],
    p: Number,
    steps_done: Number | None = None,
) -> Number:
    """What multiplies d_j N_p in `implicit_bias`: (h/2) {C_beta(n) - 2 p C_rho(n) share}.

    Args:
        share: (d_j E)^2 / ((d_j E)^2 + eps), in [0, 1]; or a mean of it, which gives the mean of the coefficients.
        lr: h, the same in all steps.
        betas: beta and rho, each in [0, 1).
        p: the exponent, any finite number.
        steps_done: n; None is the limit n -> infinity.
    """
    c_beta, c_rho = (memory_coefficient(b, steps_done) for b in betas)
    return lr / 2 * (c_beta - 2 * p * c_rho * share)


def memory_coefficient(b: Number, steps_done: Number | None = None) -> Number:
    """C_b(n) = sum_k w^b_{n,k} (2 (n-k) + 1), from 1 at n = 0 to (1+b) / (1-b) as n -> infinity (None).

    The gradient of n-k steps ago was taken n-k steps away, and the middle of step n is half a step on; the sum is twice
    the mean of both. It is about n + 1 for n far below 1 / (1-b).
    """
    _check_betas(b)
    limit = (1 + b) / (1 - b)
    if steps_done is None:
        return limit
    if not isinstance(steps_done, Tensor) and steps_done < 0:
        raise ValueError(f"steps_done counts steps, got {steps_done}. Pass 0 before the first, None for the limit.")
    power = b ** (steps_done + 1)
    return limit - 2 * (steps_done + 1) * power / (1 - power)


def momentum_coefficient(momentum: Number, *, nesterov: bool = False) -> Number:
    """C of torch's SGD as n -> infinity: C_beta with beta = momentum, smaller with Nesterov's momentum.

    SGD follows the flow of E + (h/2) C N_0 in the time h = lr (1-dampening) / (1-momentum) a step, with the sum C of
    `memory_coefficient`. Nesterov's momentum weighs the newest gradient by 1 - mu^2 and that of k steps ago by
    (1-mu) mu^(k+1), which has the mean age mu^2 / (1-mu).
    """
    _check_betas(momentum)
    return 1 + 2 * momentum**2 / (1 - momentum) if nesterov else memory_coefficient(momentum)


def neutral_exponent(betas: tuple[Number, Number], steps_done: Number | None = None) -> Number:
    """p*(n) = C_beta(n) / (2 C_rho(n)), where the bias changes sign for small eps.

    The p-update penalises N_p if p < p* and hinders its decrease if p > p*.

    Example:
        >>> f"{neutral_exponent((0.9, 0.999)):.4f}"
        '0.0048'
    """
    beta, rho = betas
    return memory_coefficient(beta, steps_done) / (2 * memory_coefficient(rho, steps_done))


def power_norm(loss: Loss[ParamsT], params: ParamsT, *, eps: Number, p: float) -> Tensor:
    """N_p at theta, 0-d. At p = 1 it is sum_i log((d_i E)^2 + eps) / 2, which has the gradient of that limit."""
    g, _ = _gradient(loss, params)
    S = g.square() + eps  # noqa: N806  (the papers' symbols, here and below)
    return S.log().sum() / 2 if p == 1 else (S ** (1 - p)).sum() / (2 * (1 - p))


def power_norm_gradient(loss: Loss[ParamsT], params: ParamsT, *, eps: Number, p: Number) -> ParamsT:
    """d_j N_p = sum_i E_ij E_i (E_i^2 + eps)^-p, one Hessian-vector product."""
    g, hessian = _gradient(loss, params)
    return unflatten(hessian(g * (g.square() + eps) ** -p), params)


def minibatch_flow(
    losses: Sequence[Loss[ParamsT]],
    params: ParamsT,
    *,
    lrs: Sequence[float],
    betas: tuple[Number, Number],
    eps: Number,
    p: Number,
    weight_decay: Number = 0.0,
) -> ParamsT:
    """The flow theta' during step n, from the losses of all steps so far (IBA Theorem 3.1, for any p).

    U^(l) = D^(l) + weight_decay theta is the update of step l. Gradient k was taken at the distance
    sum_{l=k}^{n-1} h_l U^(l) from theta^(n), to first order, and backward error analysis adds half of step n:
    Delta_k = sum_{l=k}^{n-1} h_l U^(l) + (h_n/2) U^(n). This changes m_hat by L and v_hat by 2 P. The field is

        L_j = sum_k w^beta_{n,k} sum_i E_{k,ij} Delta_{k,i}
        P_j = sum_k w^rho_{n,k} E_{k,j} sum_i E_{k,ij} Delta_{k,i}
        theta' = -U - L S^-p + 2 p M P S^(-p-1) - (h_n/2) weight_decay U.

    In IBA's Eq. 3.2 the half of step n stands apart, as L-bar and P-bar, and h before the bracket.

    Args:
        losses: E_0 to E_n. Steps with the same mini-batch should share one function: the cost is a gradient and two
            Hessian-vector products for each distinct function.
        params: theta.
        lrs: h_0 to h_n. For a run with `update_scale="adam"`, lr c_k with the factors c_k of its steps.
        betas: beta and rho, each in [0, 1).
        eps: added to v_hat inside the power, positive.
        p: the exponent, any finite number.
        weight_decay: decoupled, theta <- (1 - h_n weight_decay) theta. Decay that goes through the moments belongs
            into the losses.
    """
    if len(lrs) != len(losses):
        raise ValueError(f"Every step has a learning rate, got {len(lrs)} for {len(losses)} losses. Pass one each.")
    past = _past(losses, params, betas=betas, eps=eps, p=p, weight_decay=weight_decay)
    M, S, U = past.M[-1], past.S[-1], past.U[-1]  # noqa: N806
    half_step = lrs[-1] / 2
    moves = S.new_tensor([*lrs[:-1], half_step])[:, None] * past.U
    displacements = moves.flip(0).cumsum(0).flip(0)
    L, P = torch.zeros_like(M), torch.zeros_like(M)  # noqa: N806
    for b, (g, hessian) in enumerate(past.batches):
        on_batch = (past.batch_of == b).to(g)
        L = L + hessian((on_batch * past.m_weights[-1]) @ displacements)  # noqa: N806
        P = P + g * hessian((on_batch * past.v_weights[-1]) @ displacements)  # noqa: N806
    return unflatten(-U - L * S**-p + 2 * p * M * P * S ** (-p - 1) - half_step * weight_decay * U, params)


def zeroth_order_flow(
    losses: Sequence[Loss[ParamsT]],
    params: ParamsT,
    *,
    betas: tuple[Number, Number],
    eps: Number,
    p: Number,
    weight_decay: Number = 0.0,
) -> ParamsT:
    """The flow theta' = -U during step n, without correction. In the full-batch case `[loss]` is enough at any n."""
    return unflatten(-_past(losses, params, betas=betas, eps=eps, p=p, weight_decay=weight_decay).U[-1], params)


class _Past(NamedTuple):
    """Directions of steps 0..n, all at one theta: rows are steps."""

    batches: list[tuple[Tensor, Callable[[Tensor], Tensor]]]  # gradient and Hessian-vector product of distinct losses
    batch_of: Tensor  # (n+1,)
    m_weights: Tensor  # (n+1, n+1), w^beta
    v_weights: Tensor  # (n+1, n+1), w^rho
    M: Tensor  # (n+1, d)
    S: Tensor  # (n+1, d)
    U: Tensor  # (n+1, d)


def _past(
    losses: Sequence[Loss[ParamsT]],
    params: ParamsT,
    *,
    betas: tuple[Number, Number],
    eps: Number,
    p: Number,
    weight_decay: Number,
) -> _Past:
    if not losses:
        raise ValueError("The flow during step n needs the losses of steps 0 to n, got none. Pass at least one.")
    _check_betas(*betas)
    distinct = {loss: b for b, loss in enumerate(dict.fromkeys(losses))}
    batches = [_gradient(loss, params) for loss in distinct]
    batch_of = torch.tensor([distinct[loss] for loss in losses], device=batches[0][0].device)
    grads = torch.stack([g for g, _ in batches])[batch_of]
    m_weights, v_weights = (_weights(b, len(losses), grads) for b in betas)
    M, S = m_weights @ grads, v_weights @ grads.square() + eps  # noqa: N806
    return _Past(batches, batch_of, m_weights, v_weights, M, S, M * S**-p + weight_decay * flatten(params))


def _weights(b: Number, steps: int, like: Tensor) -> Tensor:
    """w^b_{l,k} at row l and column k; zero for k > l."""
    k = torch.arange(steps, dtype=like.dtype, device=like.device)
    powers = torch.tril(b ** (k[:, None] - k).clamp(min=0))
    return powers / powers.sum(dim=1, keepdim=True)


def _gradient_and_bias(
    loss: Loss[ParamsT],
    params: ParamsT,
    *,
    lr: Number,
    betas: tuple[Number, Number],
    eps: Number,
    p: Number,
    steps_done: int | None,
) -> tuple[Tensor, Tensor]:
    g, hessian = _gradient(loss, params)
    S = g.square() + eps  # noqa: N806
    coefficient = bias_coefficient(g.square() / S, lr=lr, betas=betas, p=p, steps_done=steps_done)
    return g, coefficient * hessian(g * S**-p)


def _gradient(loss: Loss[ParamsT], params: ParamsT) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """The gradient, (d,), and v -> Hessian v. Reverse over reverse mode: more operations have it than forward mode."""

    def at(x: Tensor) -> Tensor:
        return loss(unflatten(x, params))

    result: Any = torch.func.vjp(torch.func.grad(at), flatten(params))
    g, pullback = result
    return g, lambda v: pullback(v)[0]


def _check_betas(*betas: Number) -> None:
    for b in betas:
        if not isinstance(b, Tensor) and not 0 <= b < 1:
            raise ValueError(f"A moment's decay rate must be in [0, 1), got {b}. Adam's are (0.9, 0.999).")
