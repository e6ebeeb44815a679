"""Which regularisers commute with which parametrisations (TMF Definition A.3), in symbols.

Theorem 3.1 needs the gradients of g_1, ..., g_n and h to commute as vector fields. That is sufficient; the paper's "if
and only if" (Corollaries 3.1 and B.1) holds of commuting, not of being a time-dependent mirror flow.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import sympy  # every torch requires it


def lie_bracket(f: sympy.Expr, g: sympy.Expr, w: Sequence[sympy.Symbol]) -> sympy.Matrix:
    """[grad f, grad g] = (Hessian of g) grad f - (Hessian of f) grad g, simplified (Definition A.2)."""

    def gradient(of: sympy.Expr) -> sympy.Matrix:
        return sympy.Matrix([of]).jacobian(w).T

    bracket = sympy.hessian(g, w) * gradient(f) - sympy.hessian(f, w) * gradient(g)
    return bracket.applyfunc(sympy.simplify)


def commute(functions: Sequence[sympy.Expr], w: Sequence[sympy.Symbol]) -> bool:
    """Whether the gradients of all functions of w commute, by symbols that sympy can simplify to 0.

    Example:
        >>> m, w = sympy.symbols("m w", positive=True)
        >>> commute([m * w, m**2 + w**2], [m, w])
        True
    """
    return all(lie_bracket(f, g, w).is_zero_matrix for f, g in combinations(functions, 2))
