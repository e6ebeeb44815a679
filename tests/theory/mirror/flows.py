"""Simulated gradient flow on f(g(w)) + alpha_t h(w), to hold the closed forms against. It knows no mirror map."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

Array = np.ndarray
Map = Callable[[Array], Array]
Field = Callable[[Array, Array, float], Array]
"""(w, -grad f(x), alpha) -> dw/dt"""

Z = np.array([[1.0, -0.4], [0.3, 0.8], [-0.2, 0.5]])
TARGET = np.array([0.9, -0.7, 0.2])


class Flow(NamedTuple):
    x: Tensor
    """(T, n)"""
    mu: Tensor
    """(T, n): -integral of weight(a) grad f"""
    a: Tensor
    """(T, 1): -integral of alpha"""


def alpha(t: float) -> float:
    """A strength of regularisation that varies with time."""
    return 0.12 * (1 + 0.8 * math.sin(5 * t))


def grad_f(x: Array) -> Array:
    """Gradient of a least-squares problem in two coordinates plus a term that is not quadratic."""
    return Z.T @ (Z @ x - TARGET) + 0.3 * np.sin(3 * x)


def product(scale: float) -> tuple[Map, Field]:
    """G and the flow of m * w, h = scale (m^2 + w^2); w = (m, w), (2, n)."""
    return (lambda w: w[0] * w[1]), (lambda w, force, alpha: w[::-1] * force - 2 * scale * alpha * w)


def deep_product(scale: float) -> tuple[Map, Field]:
    """G and the flow of w_1 ... w_k, h = scale |w|^2; w (k, n)."""

    def field(w: Array, force: Array, alpha: float) -> Array:
        others = np.stack([np.delete(w, i, axis=0).prod(0) for i in range(len(w))])
        return others * force - 2 * scale * alpha * w

    return (lambda w: w.prod(0)), field


def power_difference(k: int, scale: float = 1.0) -> tuple[Map, Field]:
    """G and the flow of u^2k - v^2k, h = scale (u^2k + v^2k); w = (u, v), (2, n)."""

    def field(w: Array, force: Array, alpha: float) -> Array:
        return 2 * k * w ** (2 * k - 1) * np.stack([force - scale * alpha, -force - scale * alpha])

    return (lambda w: w[0] ** (2 * k) - w[1] ** (2 * k)), field


def log_difference() -> tuple[Map, Field]:
    """G and the flow of log u - log v, h = log u + log v; w = (u, v), (2, n)."""
    return (lambda w: np.log(w[0] / w[1])), (lambda w, force, alpha: np.stack([force - alpha, -force - alpha]) / w)


def quadratic_forms(matrices: Tensor, of_h: Tensor) -> tuple[Map, Field]:
    """G and the flow of w'A_i w / 2, h = w'B w / 2; w (D,)."""
    forms, regulariser = matrices.numpy(), of_h.numpy()
    return (lambda w: forms @ w @ w / 2), (
        lambda w, force, alpha: np.tensordot(force, forms, 1) @ w - alpha * regulariser @ w
    )


def simulate(
    g: Map,
    field: Field,
    w0: Tensor,
    *,
    until: float = 1.5,
    grad_f: Map = grad_f,
    alpha: Callable[[float], float] = alpha,
    weight: Callable[[float], float] = lambda a: 1.0,
) -> Flow:
    """By Runge-Kutta (order 8) at a relative error of 1e-12 a step, on w, mu and a together; at T = 31 times."""
    start, n = w0.numpy(), len(g(w0.numpy()))

    def velocity(t: float, state: Array) -> Array:
        w = state[: start.size].reshape(start.shape)
        force = -grad_f(g(w))
        return np.concatenate([field(w, force, alpha(t)).ravel(), weight(state[-1]) * force, [-alpha(t)]])

    initial = np.concatenate([start.ravel(), np.zeros(n + 1)])
    times = np.linspace(0, until, 31)
    solution = solve_ivp(velocity, (0, until), initial, "DOP853", times, rtol=1e-12, atol=1e-14).y.T
    x = np.stack([g(w.reshape(start.shape)) for w in solution[:, : start.size]])
    return Flow(*(torch.from_numpy(np.array(part)) for part in (x, solution[:, start.size : -1], solution[:, -1:])))
