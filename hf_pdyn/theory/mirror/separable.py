"""Mirror maps of separable differences (TMF Corollary 3.1) beyond squares: u^2k - v^2k and log u - log v."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hf_pdyn.theory.mirror.flow import MirrorMap, Time


@dataclass(frozen=True)
class PowerDifference(MirrorMap):
    """u^2k - v^2k for k > 1, with h = sum of u^2k + v^2k, u0 and v0 positive; contracting everywhere.

    With K = 2k(2k - 2), c_u = u0^(2-2k) and c_v = v0^(2-2k), the flow adds to u^(2-2k) and v^(2-2k):
    s = c_u - K(a + mu) and r = c_v - K(a - mu). Their sum depends on a alone. x takes every real value at every a, and
    the domain of mu grows as a falls: nothing shrinks but the x that are reached with |mu| below a bound.
    """

    u0: Tensor
    v0: Tensor
    k: int

    def __post_init__(self) -> None:
        if self.k < 2:
            raise ValueError(f"k must be at least 2 (SquareDifference is k = 1), got {self.k}")
        _check_positive(self.u0, self.v0)

    @property
    def K(self) -> int:  # noqa: N802
        """2k(2k - 2)."""
        return 4 * self.k * (self.k - 1)

    @property
    def c_u(self) -> Tensor:
        """u0^(2-2k)."""
        return self.u0 ** (2 - 2 * self.k)

    @property
    def c_v(self) -> Tensor:
        """v0^(2-2k)."""
        return self.v0 ** (2 - 2 * self.k)

    def g(self, w: Tensor) -> Tensor:
        """u^2k - v^2k."""
        return w[0] ** (2 * self.k) - w[1] ** (2 * self.k)

    def h(self, w: Tensor) -> Tensor:
        """Sum of u^2k + v^2k."""
        return (w ** (2 * self.k)).sum((0, -1))

    def w(self, mu: Tensor, a: Time) -> Tensor:
        """s^(-1/(2k-2)) and r^(-1/(2k-2))."""
        s, r = self.c_u - self.K * (a + mu), self.c_v - self.K * (a - mu)
        sums = torch.stack([s, r])
        return torch.where(sums > 0, sums, torch.nan) ** (-1 / (2 * self.k - 2))

    def Q(self, mu: Tensor, a: Time) -> Tensor:  # noqa: N802
        """(|u|^2 + |v|^2) / 4k (ours)."""
        return self.w(mu, a).square().sum((0, -1)) / (4 * self.k)

    def gradient(self, x: Tensor, a: Time) -> Tensor:
        """Grad R_a(x) by Newton's method: it has no closed form.

        The smaller of s and r, called z, solves z^-q - (total - z)^-q = |x| with q = k / (k - 1). The left-hand side
        falls and is convex up to total / 2, and at z0 = (|x| + (total / 2)^-q)^(-1/q) it is at least |x|: from there
        Newton's steps grow z and never pass the solution.
        """
        q, total = self.k / (self.k - 1), self.c_u + self.c_v - 2 * self.K * a
        total = torch.where(total > 0, total, torch.nan)
        z = (x.abs() + (total / 2) ** -q) ** (-1 / q)
        for _ in range(100):
            r = total - z
            step = (z**-q - r**-q - x.abs()) / (q * (z ** (-q - 1) + r ** (-q - 1)))
            z = z + step
            if not bool((step.abs() > 4 * torch.finfo(z.dtype).eps * z).any()):
                break
        return torch.where(x >= 0, (self.c_u - z) / self.K - a, (z - self.c_v) / self.K + a)

    def domain(self, a: Time) -> tuple[Tensor, Tensor]:
        """(a - c_v / K, c_u / K - a). TMF prints (-c_u - a, c_v + a), which shrinks by an error of sign."""
        return a - self.c_v / self.K, self.c_u / self.K - a


@dataclass(frozen=True)
class LogDifference(MirrorMap):
    """Log u - log v with h = sum of log u + log v, u0 and v0 positive.

    h < 0 where u v < 1, so it is contracting only where 2 cosh x <= u0^2 + v0^2 + 4a, and Theorem 3.2 does not apply to
    all of R. Decay is finite: R_a exists while u0^2 + v0^2 + 4a > 0, and has a minimum while a > -min(u0^2, v0^2) / 2.
    """

    u0: Tensor
    v0: Tensor

    def __post_init__(self) -> None:
        _check_positive(self.u0, self.v0)

    def g(self, w: Tensor) -> Tensor:
        """Log u - log v."""
        return torch.log(w[0]) - torch.log(w[1])

    def h(self, w: Tensor) -> Tensor:
        """Sum of log u + log v."""
        return torch.log(w).sum((0, -1))

    def w(self, mu: Tensor, a: Time) -> Tensor:
        """u^2 = u0^2 + 2(a + mu), v^2 = v0^2 + 2(a - mu)."""
        u_sq, v_sq = self._squares(a)
        squares = torch.stack([u_sq + 2 * mu, v_sq - 2 * mu])
        return torch.where(squares > 0, squares, torch.nan).sqrt()

    def Q(self, mu: Tensor, a: Time) -> Tensor:  # noqa: N802
        """Sum of s(log s - 1) / 4 over s = u^2 and v^2 (ours)."""
        squares = self.w(mu, a).square()
        return (squares * (torch.log(squares) - 1)).sum((0, -1)) / 4

    def gradient(self, x: Tensor, a: Time) -> Tensor:
        """((v0^2 + 2a) s(2x) - (u0^2 + 2a) s(-2x)) / 2, s logistic."""
        u_sq, v_sq = self._squares(a)
        return (v_sq * torch.sigmoid(2 * x) - u_sq * torch.sigmoid(-2 * x)) / 2

    def potential(self, x: Tensor, a: Time) -> Tensor:
        """Sum of [(u0^2 + 2a) log(1 + e^-2x) + (v0^2 + 2a) log(1 + e^2x)] / 4 - W(log W - 1) / 4, W = u0^2 + v0^2 + 4a.

        TMF prints -2a, which is right for a := +integral of alpha, and leaves out the term in W, which has no x.
        """
        u_sq, v_sq = self._squares(a)
        zero = torch.zeros_like(x)  # softplus() is cut off at 20, which is an error of 2e-9
        shape = u_sq * torch.logaddexp(zero, -2 * x) + v_sq * torch.logaddexp(zero, 2 * x)
        return ((shape - (u_sq + v_sq) * (torch.log(u_sq + v_sq) - 1)) / 4).sum(-1)

    def domain(self, a: Time) -> tuple[Tensor, Tensor]:
        """(-(u0^2 + 2a) / 2, (v0^2 + 2a) / 2), which shrinks as a falls."""
        u_sq, v_sq = self._squares(a)
        return -u_sq / 2, v_sq / 2

    def _squares(self, a: Time) -> tuple[Tensor, Tensor]:
        """u^2 and v^2 at mu = 0; NaN once no mu keeps both positive."""
        u_sq, v_sq = self.u0.square() + 2 * a, self.v0.square() + 2 * a
        left = u_sq + v_sq > 0
        return torch.where(left, u_sq, torch.nan), torch.where(left, v_sq, torch.nan)


def _check_positive(u0: Tensor, v0: Tensor) -> None:
    if bool(((u0 <= 0) | (v0 <= 0)).any()):
        raise ValueError(f"u0 and v0 must be positive, got u0 = {u0.tolist()}, v0 = {v0.tolist()}")
