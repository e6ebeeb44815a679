"""Mirror maps whose R_a is the hyperbolic entropy: m * w and u^2 - v^2."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hf_pdyn.theory.mirror.flow import MirrorMap, Time


class _Hyperbolic(MirrorMap):
    """The flow x = c sinh(rate mu + log_ratio) with c = c0 e^(4 scale a)."""

    scale: float
    rate: ClassVar[int]

    @property
    @abstractmethod
    def c0(self) -> Tensor:
        """The entropy's parameter at a = 0, (n,): small is nearer to L1, large nearer to L2."""

    @property
    @abstractmethod
    def log_ratio(self) -> Tensor:
        """log|u0 / v0|, (n,), which places the minimum."""

    def h(self, w: Tensor) -> Tensor:
        """The sum of squares, times scale."""
        return self.scale * w.square().sum((0, -1))

    def Q(self, mu: Tensor, a: Time) -> Tensor:  # noqa: N802
        """A quarter of the sum of squares, which is Theorem 3.3's."""
        return self.w(mu, a).square().sum((0, -1)) / 4

    def c(self, a: Time) -> Tensor:
        """The entropy's parameter, (n,): decay makes it small, which takes the entropy from L2 to L1."""
        exponent = torch.as_tensor(4 * self.scale * a, dtype=self.c0.dtype, device=self.c0.device)
        return self.c0 * torch.exp(exponent)

    def gradient(self, x: Tensor, a: Time) -> Tensor:
        """(arcsinh(x / c) - log_ratio) / rate."""
        return (torch.asinh(x / self.c(a)) - self.log_ratio) / self.rate

    def potential(self, x: Tensor, a: Time) -> Tensor:
        """The hyperbolic entropy over rate."""
        return hyperbolic_entropy(x, self.c(a), self.log_ratio) / self.rate

    def domain(self, a: Time) -> tuple[Tensor, Tensor]:
        """All of R, at every a."""
        infinite = torch.full_like(self.c(a), torch.inf)
        return -infinite, infinite


@dataclass(frozen=True)
class Product(_Hyperbolic):
    """m * w with h = scale * (|m|^2 + |w|^2); contracting everywhere.

    With u = (m + w) / sqrt(2) and v = (m - w) / sqrt(2), R_a is half the hyperbolic entropy with c = e^(4 scale a)
    |u0 v0|. TMF Eq. 8 prints a quarter of it with c = 2 e^(2a) u0 v0, which is `SquareDifference` with scale = 1/2.
    TMF asks for |w0| < m0; |w0| != |m0| is enough, and holds where one factor starts at 0, as in LoRA.
    """

    m0: Tensor
    w0: Tensor
    scale: float = 1.0
    rate: ClassVar[int] = 2

    def __post_init__(self) -> None:
        if bool((self.m0.abs() == self.w0.abs()).any()):
            raise ValueError(
                "|m0| and |w0| must differ in every coordinate, as m * w cannot change its sign where they are equal; "
                f"got m0 = {self.m0.tolist()}, w0 = {self.w0.tolist()}"
            )

    @property
    def c0(self) -> Tensor:
        """|u0 v0|."""
        return (self.m0.square() - self.w0.square()).abs() / 2

    @property
    def log_ratio(self) -> Tensor:
        """log|u0 / v0|."""
        return torch.log(((self.m0 + self.w0) / (self.m0 - self.w0)).abs())

    def g(self, w: Tensor) -> Tensor:
        """The product of m and w."""
        return w[0] * w[1]

    def w(self, mu: Tensor, a: Time) -> Tensor:
        """From u = u0 e^(2a + mu) and v = v0 e^(2a - mu)."""
        a = self.scale * a
        u, v = (self.m0 + self.w0) * torch.exp(2 * a + mu), (self.m0 - self.w0) * torch.exp(2 * a - mu)
        return torch.stack([u + v, u - v]) / 2


@dataclass(frozen=True)
class SquareDifference(_Hyperbolic):
    """u^2 - v^2 with h = scale * (|u|^2 + |v|^2), u0 and v0 not 0; contracting everywhere.

    R_a is a quarter of the hyperbolic entropy with c = 2 e^(4 scale a) |u0 v0|.
    """

    u0: Tensor
    v0: Tensor
    scale: float = 1.0
    rate: ClassVar[int] = 4

    def __post_init__(self) -> None:
        if bool(((self.u0 == 0) | (self.v0 == 0)).any()):
            raise ValueError(
                "u0 and v0 must not be 0, where they would stay and x could not change its sign; "
                f"got u0 = {self.u0.tolist()}, v0 = {self.v0.tolist()}"
            )

    @property
    def c0(self) -> Tensor:
        """2 |u0 v0|."""
        return 2 * (self.u0 * self.v0).abs()

    @property
    def log_ratio(self) -> Tensor:
        """log|u0 / v0|."""
        return torch.log((self.u0 / self.v0).abs())

    def g(self, w: Tensor) -> Tensor:
        """u^2 - v^2."""
        return w[0].square() - w[1].square()

    def w(self, mu: Tensor, a: Time) -> Tensor:
        """The pair u = u0 e^(2(a + mu)), v = v0 e^(2(a - mu))."""
        a = self.scale * a
        return torch.stack([self.u0 * torch.exp(2 * (a + mu)), self.v0 * torch.exp(2 * (a - mu))])


def hyperbolic_entropy(x: Tensor, c: Tensor, log_ratio: Tensor) -> Tensor:
    """Sum of x arcsinh(x / c) - sqrt(x^2 + c^2) - x log_ratio, (...); least at x = c sinh(log_ratio)."""
    return (x * torch.asinh(x / c) - torch.hypot(x, c) - x * log_ratio).sum(-1)
