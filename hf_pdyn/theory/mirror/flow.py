"""The interface of all mirror maps."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

Time = Tensor | float


class MirrorMap(ABC):
    """A parametrisation g, a regulariser h and an initialisation, with the time-dependent mirror flow they make."""

    @abstractmethod
    def g(self, w: Tensor) -> Tensor:
        """The x of trained parameters, (..., n)."""

    @abstractmethod
    def h(self, w: Tensor) -> Tensor:
        """The regulariser of the trained parameters, (...)."""

    @abstractmethod
    def w(self, mu: Tensor, a: Time) -> Tensor:
        """The trained parameters at (mu, a): the flow of grad g and grad h in closed form."""

    @abstractmethod
    def Q(self, mu: Tensor, a: Time) -> Tensor:  # noqa: N802  (the paper's symbol)
        """Q_a(mu), (...)."""

    @abstractmethod
    def gradient(self, x: Tensor, a: Time) -> Tensor:
        """Grad R_a(x), which is mu, (..., n)."""

    @abstractmethod
    def domain(self, a: Time) -> tuple[Tensor, Tensor]:
        """The open interval of mu, in every coordinate: lower and upper ends, (..., n). Empty where they cross."""

    def x(self, mu: Tensor, a: Time) -> Tensor:
        """The x at mu, which is grad Q_a(mu), (..., n)."""
        return self.g(self.w(mu, a))

    def potential(self, x: Tensor, a: Time) -> Tensor:
        """R_a(x) = x . mu - Q_a(mu) at mu = grad R_a(x), (...)."""
        mu = self.gradient(x, a)
        return (x * mu).sum(-1) - self.Q(mu, a)

    def slope(self, x: Tensor, a: Time) -> Tensor:
        """dR_a/da at x, which is -h, (...)."""
        return -self.h(self.w(self.gradient(x, a), a))

    def contracting(self, x: Tensor, a: Time) -> Tensor:
        """Whether dR_a/da <= 0 at x (Definition 3.2 asks for it at every x), bool (...)."""
        return self.slope(x, a) <= 0

    def minimum(self, a: Time) -> Tensor:
        """Where R_a is least, (..., n): x at mu = 0. NaN in the coordinates whose domain has lost 0."""
        low, _ = self.domain(a)
        return self.x(torch.zeros_like(low), a)
