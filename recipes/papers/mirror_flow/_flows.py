"""Simulated gradient flows on f(g(w)) + alpha_t h(w), which know of a mirror map its g and h alone."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from hf_pdyn.theory.mirror import MirrorMap

RELATIVE_ERROR, ABSOLUTE_ERROR = 1e-12, 1e-14
"""What a step of the solver, Runge-Kutta of order 8, may be off by."""


class Flow(NamedTuple):
    """A simulated flow at T times. w: (T, ...). x, mu: (T, n). a: (T, 1)."""

    w: Tensor
    x: Tensor
    mu: Tensor
    a: Tensor


def simulate(
    g: Callable[[Tensor], Tensor],
    h: Callable[[Tensor], Tensor],
    w0: Tensor,
    *,
    grad_f: Callable[[Tensor], Tensor],
    alpha: Callable[[float], float],
    times: Sequence[float],
    weight: Callable[[float], float] = lambda a: 1.0,
) -> Flow:
    """The flow from w0 at `times`, the first of which is its start.

    grad_f: of x. mu is -integral of weight(a) grad f, and a is -integral of alpha.
    """
    n = len(g(w0))

    def velocity(t: float, state: np.ndarray) -> np.ndarray:
        w = torch.from_numpy(state[: w0.numel()]).view(w0.shape).requires_grad_()
        x = g(w)
        force = -grad_f(x.detach())
        (slope,) = torch.autograd.grad(x @ force - alpha(t) * h(w), w)
        return np.concatenate([slope.flatten().numpy(), weight(state[-1]) * force.numpy(), [-alpha(t)]])

    start = np.concatenate([w0.flatten().numpy(), np.zeros(n + 1)])
    solved = solve_ivp(
        velocity, (times[0], times[-1]), start, "DOP853", times, rtol=RELATIVE_ERROR, atol=ABSOLUTE_ERROR
    )
    if not solved.success:
        raise ArithmeticError(f"the flow ends at t = {solved.t[-1] if len(solved.t) else times[0]}: {solved.message}")
    states = torch.from_numpy(np.ascontiguousarray(solved.y.T))
    w = states[:, : w0.numel()].view(-1, *w0.shape)
    return Flow(w, torch.stack([g(one) for one in w]), states[:, w0.numel() : -1], states[:, -1:])


def settled(
    g: Callable[[Tensor], Tensor], w0: Tensor, *, grad_f: Callable[[Tensor], Tensor], within: float, until: float
) -> Flow:
    """The flow without regularisation at times that double, until no entry of grad f is larger than `within`."""
    pieces = [simulate(g, lambda w: w.sum(), w0, grad_f=grad_f, alpha=lambda t: 0.0, times=[0.0, 1.0])]
    length = 1.0
    while float(grad_f(pieces[-1].x[-1]).abs().max()) > within and length < until:
        last = pieces[-1]
        piece = simulate(g, lambda w: w.sum(), last.w[-1], grad_f=grad_f, alpha=lambda t: 0.0, times=[0.0, length])
        pieces.append(piece._replace(mu=last.mu[-1] + piece.mu))
        length *= 2
    return Flow(*(torch.stack([piece[i][-1] for piece in pieces]) for i in range(4)))


def start(of: MirrorMap) -> Tensor:
    """The trained parameters at mu = 0 and a = 0."""
    low, _ = of.domain(0.0)
    return of.w(torch.zeros_like(low), 0.0)


def least(of: MirrorMap, a: Sequence[float], Z: Tensor, y: Tensor) -> Tensor:  # noqa: N803
    """Where R_a is least among the x with Z x = y, for the last a: grad R_a is Z' nu there, so x = grad Q_a(Z' nu).

    Newton's method on the convex Q_a(Z' nu) - y . nu, for one a after the other.
    """
    nu = torch.zeros_like(y)
    for at in a:
        nu = _newton(of, at, Z, y, nu)
    return of.x(Z.mT @ nu, a[-1])


def _newton(of: MirrorMap, a: float, Z: Tensor, y: Tensor, nu: Tensor) -> Tensor:  # noqa: N803
    def objective(nu: Tensor) -> Tensor:
        return of.Q(Z.mT @ nu, a) - y @ nu

    for _ in range(100):
        metric = torch.autograd.functional.jacobian(lambda mu: of.x(mu, a), Z.mT @ nu, vectorize=True)
        step = torch.linalg.solve(Z @ metric @ Z.mT, y - Z @ of.x(Z.mT @ nu, a))
        length, here = 1.0, objective(nu)
        while not bool(objective(nu + length * step) <= here) and length > 1e-12:  # NaN outside the domain
            length /= 2
        nu = nu + length * step
        if float(step.abs().max()) < 1e-12 * (1 + float(nu.abs().max())):
            break
    return nu
