"""Singular values of a product of two thin matrices, and what they say about its rank.

Weight decay moves the implicit bias of a product such as K^T Q or LoRA's B A from the Frobenius norm (the L2 norm of
its singular values) to the nuclear norm (their L1 norm): *Time-dependent mirror flows* (TMF), sections 4 and 5. The
ratio of the two lies between 1 (rank one) and sqrt(rank) (all singular values alike).

Products are never formed where their rank is below their size: with thin QR factorisations left = U S and right = V T,
left @ right^T has the singular values of the small S @ T^T. They are `svdvals` of that, in float32 or better, hence
good to a few float32 roundings of the largest. Eigenvalues of the Gram matrix would be cheaper in float32, but their
roots are good to 3e-4 of the largest only, and a nuclear norm adds up all of them; in float64 they take as long.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

QUANTITIES = ("nuc_over_fro", "nuclear", "frobenius", "effective_rank", "stable_rank")
"""What a spectrum has under these names, in that order."""


@dataclass(frozen=True)
class Spectrum:
    """What the singular values s of a matrix, not all zero, add up to.

    nuclear: sum s.
    frobenius: sqrt(sum s^2).
    effective_rank: exp of the entropy of s / sum s (Roy & Vetterli, 2007); from 1 to the rank.
    stable_rank: sum s^2 / max s^2 (Rudelson & Vershynin, 2007); from 1 to the rank.
    """

    nuclear: float
    frobenius: float
    effective_rank: float
    stable_rank: float

    @property
    def nuc_over_fro(self) -> float:
        """TMF's ratio, from 1 to the root of the rank."""
        return self.nuclear / self.frobenius

    @classmethod
    def of(cls, values: Tensor) -> Spectrum | None:
        """The spectrum of singular values, shape (n,); None where all are zero or one is not finite."""
        values = values.double()
        largest = values.max() if len(values) else torch.zeros(())
        if not (torch.isfinite(values).all() and largest > 0):
            return None
        scaled = values / largest  # whose squares neither overflow nor vanish
        shares = scaled / scaled.sum()
        squares = scaled.square().sum()
        return cls(
            nuclear=float(values.sum()),
            frobenius=float(squares.sqrt() * largest),
            effective_rank=float(torch.special.entr(shares).sum().exp()),
            stable_rank=float(squares),
        )


def singular_values(left: Tensor, right: Tensor) -> Tensor:
    """The singular values of left @ right^T, largest first.

    Args:
        left: (..., m, r) of any floating dtype; below float32 it is taken as float32.
        right: (..., n, r), on the same device; leading dimensions broadcast.

    Returns:
        (..., min(m, n, r)); NaN for a matrix of the batch that has a factor with NaN or infinity, or overflows.
    """
    dtype = torch.promote_types(torch.promote_types(left.dtype, right.dtype), torch.float32)
    core = _reduced(left.to(dtype)) @ _reduced(right.to(dtype)).mT
    finite = core.isfinite().all(-1).all(-1)
    # svdvals raises for a whole batch where one of its matrices is not finite.
    values = torch.linalg.svdvals(torch.where(finite[..., None, None], core, 0.0))
    rank = min(left.shape[-2], right.shape[-2], left.shape[-1])
    return torch.where(finite[..., None], values[..., :rank], torch.nan)


def summary(spectra: Sequence[Spectrum | None]) -> dict[str, float]:
    """QUANTITIES over several products, those that have no spectrum left out; empty where none has.

    nuc_over_fro is the ratio of the mean norms, as in TMF section 5; the others are means.
    """
    found = [spectrum for spectrum in spectra if spectrum is not None]
    if not found:
        return {}
    means = {name: sum(getattr(spectrum, name) for spectrum in found) / len(found) for name in QUANTITIES}
    return means | {"nuc_over_fro": means["nuclear"] / means["frobenius"]}


def _reduced(factor: Tensor) -> Tensor:
    """(..., min(m, r), r) with the singular values, also of any product from the right, of (..., m, r)."""
    rows, columns = factor.shape[-2:]
    return torch.linalg.qr(factor, mode="r").R if rows > columns else factor
