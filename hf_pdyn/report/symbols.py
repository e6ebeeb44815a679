"""The symbols of the papers, in words, for the place where a report uses them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Paper:
    """A paper. name: authors and year, as it is cited. link: where it can be read, None where it is on no server."""

    name: str
    title: str
    link: str | None


ALLOCATION_DYNAMICS = Paper(
    "Zhang et al.", "G. Zhang, D. Liu, W. Ren, Y. Sheng, Z. Wang, H. Liu: Information allocation dynamics", None
)
IMPLICIT_BIAS = Paper(
    "Cattaneo et al. 2023",
    "M. D. Cattaneo, J. M. Klusowski, B. Shigida: On the implicit bias of Adam",
    "https://arxiv.org/abs/2309.00079",
)
MIRROR_FLOW = Paper(
    "Jacobs et al. 2025",
    "T. Jacobs, C. Zhou, R. Burkholz: Mirror, mirror of the flow: how does regularization shape implicit bias?",
    "https://arxiv.org/abs/2504.12883",
)


@dataclass(frozen=True)
class Symbol:
    """A symbol and its meaning. paper: where it comes from, None for our own; at: which equation or theorem."""

    text: str
    meaning: str
    paper: Paper | None = None
    at: str = ""


_P = Symbol(
    "p", "exponent of the update m / (v + \u03b5)^p: 0 is momentum SGD, 1/2 is Adam", ALLOCATION_DYNAMICS, "Eq. 18"
)
_D = Symbol(
    "D_w, D_b",
    "L2 norms of the gradients of weights and of bias-like parameters before clipping, mean over a record's steps",
    ALLOCATION_DYNAMICS,
    "Eq. 31",
)
_G = Symbol("G_w/G_b", "D_w over D_b", ALLOCATION_DYNAMICS)
_U = Symbol("U_w, U_b (update w/b)", "L2 norms of the updates of weights and of bias-like parameters, and their ratio")
_A = Symbol("a_t", "minus the sum of learning rate times weight decay: the time of a mirror flow", MIRROR_FLOW)
_N = Symbol(
    "N_p",
    "\u03a3 (g\u00b2 + \u03b5)^(1-p) / (2 (1-p)), the norm of the gradient that the update penalises or protects",
    IMPLICIT_BIAS,
    "Theorem 3.1 for p = 1/2",
)

SYMBOLS = {
    "runs": (_P, _D, _G, _U, _A, _N),
    "balance": (_P, _D, _G),
    "control": (
        _D,
        Symbol(
            "branches",
            "rebound: D_b is above its smallest by more than the threshold, and p falls; bias_up: D_b rose and D_w did "
            "not, and p falls; bias_down: D_b fell and D_w did not rise, and p rises; hold: neither, and p stays",
            ALLOCATION_DYNAMICS,
            "Algorithm 1",
        ),
    ),
    "allocation": (_U, Symbol("c", "by how much raw updates at p are smaller than Adam's, by root mean squares")),
    "updates": (Symbol("v\u0302", "bias-corrected mean of squared gradients, Adam's second moment"), _N),
    "decay": (_A,),
}
"""By the section of a report, those that it uses."""
