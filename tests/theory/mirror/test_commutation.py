import math

import pytest
import sympy

from hf_pdyn.theory.mirror.commutation import commute, lie_bracket

u, v, m, w = sympy.symbols("u v m w", positive=True)


@pytest.mark.parametrize(
    ("functions", "parameters", "expected"),
    [
        ([m * w, m**2 + w**2], [m, w], True),
        ([u**2 - v**2, u**2 + v**2], [u, v], True),
        ([u**2 - v**2, 3 * u**2 - 2 * v**2], [u, v], True),
        ([u**6 - v**6, u**6 + v**6], [u, v], True),
        ([u**4 - v**4, u**2 + v**2], [u, v], False),
        ([sympy.log(u) - sympy.log(v), sympy.log(u) + sympy.log(v)], [u, v], True),
        ([sympy.log(u) - sympy.log(v), u**2 + v**2], [u, v], False),
        ([m * w, (m * w) ** 2], [m, w], False),
    ],
)
def test_which_regularisers_commute(functions, parameters, expected: bool) -> None:
    assert commute(functions, parameters) is expected


@pytest.mark.parametrize("g", [u**2, u**4, sympy.log(u), sympy.exp(u)])
def test_separable_regularisers_are_multiples_of_g(g) -> None:
    """Corollary 3.1. In one parameter commuting is g'h'' - g''h' = 0, linear of second order in h.

    Its solutions are g and 1, which are independent, and so c g + d; the paper leaves out d.
    """
    h, c, d = sympy.Function("h")(u), *sympy.symbols("c d")
    (bracket,) = lie_bracket(g, h, [u])
    assert sympy.simplify(bracket - (g.diff(u) * h.diff(u, 2) - g.diff(u, 2) * h.diff(u))) == 0
    assert commute([g, c * g + d], [u])
    assert sympy.simplify(sympy.wronskian([g, sympy.Integer(1)], u)) != 0


def test_only_linear_regularisers_commute_with_the_identity() -> None:
    """Corollary B.1: the bracket of x_i and h is column i of h's Hessian."""
    x, y, c, d, e = sympy.symbols("x y c d e")
    h = sympy.Function("h")(x, y)
    for i, x_i in enumerate((x, y)):
        assert lie_bracket(x_i, h, [x, y]) == sympy.hessian(h, [x, y])[:, i]
    assert commute([x, y, c * x + d * y + e], [x, y])
    assert not commute([x, y, x**2 + y**2], [x, y])


@pytest.mark.parametrize("k", [2, 3, 4, 5])
def test_deep_products_and_weight_decay(k: int) -> None:
    """Theorem B.3: the bracket is (4 - 2k) times the products of all factors but one, zero for k = 2 alone."""
    factors = sympy.symbols(f"w1:{k + 1}")
    bracket = lie_bracket(math.prod(factors), sum(f**2 for f in factors), factors)
    expected = [(4 - 2 * k) * math.prod(f for f in factors if f is not own) for own in factors]
    assert bracket == sympy.Matrix(expected)
    assert commute([math.prod(factors), sum(f**2 for f in factors)], factors) is (k == 2)


def test_entries_of_a_product_of_matrices_do_not_commute() -> None:
    """K'Q (and BA): Theorem 3.3 covers diagonal K and Q alone."""
    names = sympy.symbols("k0:4 q0:4")
    keys, queries = sympy.Matrix(2, 2, names[:4]), sympy.Matrix(2, 2, names[4:])
    entries, decay = list(keys.T * queries), sum(x**2 for x in names)
    assert not commute(entries[:2], names)
    assert all(commute([entry, decay], names) for entry in entries)
    off_diagonal = dict.fromkeys([*names[1:3], *names[5:7]], 0)
    diagonal = [entry.subs(off_diagonal) for entry in (entries[0], entries[3])]
    assert commute([*diagonal, decay], names)
