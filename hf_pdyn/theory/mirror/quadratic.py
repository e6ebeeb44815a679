"""The mirror flow of commuting quadratic forms (TMF Theorem 3.3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hf_pdyn.theory.mirror.flow import MirrorMap, Time


@dataclass(frozen=True)
class QuadraticForms(MirrorMap):
    """G_i(w) = w'A_i w / 2 with H(w) = w'B w / 2, for symmetric matrices that commute with one another.

    Q_a(mu) = |exp(aB + sum of mu_i A_i) w0|^2 / 4. R_a has no closed form in general, and is contracting everywhere if
    B is positive semi-definite. The entries of a product of matrices, as K'Q or LoRA's BA, are quadratic forms that do
    not commute; the theorem covers such a product only where both factors stay diagonal in one basis.

    Args:
        A: (n, D, D).
        B: (D, D).
        w0: (D,), with A_1 w0, ..., A_n w0 linearly independent.
    """

    A: Tensor
    B: Tensor
    w0: Tensor

    def __post_init__(self) -> None:
        forms = torch.cat([self.A, self.B[None]])
        size = torch.finfo(forms.dtype).eps ** 0.75 * forms.abs().amax() ** 2 * forms.shape[-1]
        if bool(((forms - forms.mT).abs() > size).any()):
            raise ValueError("A and B must be symmetric; take (A + A.mT) / 2, which has the same quadratic form")
        products = forms[:, None] @ forms[None]
        apart = (products - products.transpose(0, 1)).abs().amax((-2, -1))
        if bool((apart > size).any()):
            i, j = divmod(int(apart.argmax()), len(forms))
            raise ValueError(
                f"A_1, ..., A_{len(self.A)} and B must commute; the products of matrices {i + 1} and {j + 1} of these "
                f"differ by {float(apart.max()):.3g} with their order"
            )
        if int(torch.linalg.matrix_rank(self.A @ self.w0)) < len(self.A):
            raise ValueError("A_i w0 must be linearly independent, else x does not determine mu; choose another w0")

    def g(self, w: Tensor) -> Tensor:
        """The quadratic forms w'A_i w / 2."""
        return torch.einsum("...i,nij,...j->...n", w, self.A, w) / 2

    def h(self, w: Tensor) -> Tensor:
        """The quadratic form w'B w / 2."""
        return torch.einsum("...i,ij,...j->...", w, self.B, w) / 2

    def w(self, mu: Tensor, a: Time) -> Tensor:
        """exp(aB + sum of mu_i A_i) w0, (..., D)."""
        a = torch.as_tensor(a, dtype=mu.dtype, device=mu.device)
        return torch.linalg.matrix_exp(a[..., None] * self.B + torch.einsum("...n,nij->...ij", mu, self.A)) @ self.w0

    def Q(self, mu: Tensor, a: Time) -> Tensor:  # noqa: N802
        """|w|^2 / 4."""
        return self.w(mu, a).square().sum(-1) / 4

    def gradient(self, x: Tensor, a: Time) -> Tensor:
        """Grad R_a(x), for one x of shape (n,), by Newton's method on the convex Q_a(mu) - x . mu.

        Raises:
            ValueError: x is not in the range of G, or too close to its border for the dtype.
        """
        mu = torch.zeros_like(x)
        for _ in range(200):
            tangents = self.A @ self.w(mu, a)  # (n, D)
            hessian, error = tangents @ tangents.mT, self.x(mu, a) - x  # of Q_a, as the A_i commute
            step, singular = torch.linalg.solve_ex(hessian, -error)
            if bool(singular) or not bool(step.isfinite().all()):
                break
            if bool(step.abs().max() <= torch.finfo(x.dtype).eps ** 0.5 * (1 + mu.abs().max())):
                return mu + step  # whose own error is the square of that
            mu = mu + step * self._step_length(mu, step, x, a)
        raise ValueError(f"x must be in the range of G, not too close to its border; got x = {x.tolist()} at a = {a}")

    def domain(self, a: Time) -> tuple[Tensor, Tensor]:
        """All of R, at every a."""
        infinite = torch.full_like(self.A[:, 0, 0] * a, torch.inf)
        return -infinite, infinite

    def _step_length(self, mu: Tensor, step: Tensor, x: Tensor, a: Time) -> float:
        """The largest of 1, 1/2, 1/4, ... with which Q_a(mu) - x . mu does not rise."""

        def objective(mu: Tensor) -> Tensor:
            return self.Q(mu, a) - x @ mu

        length, here = 1.0, objective(mu)
        while not bool(objective(mu + length * step) <= here) and length > torch.finfo(x.dtype).eps:
            length /= 2
        return length
