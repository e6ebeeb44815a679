"""What TMF prints beside what holds, at the end of one simulated flow each."""

import math

import pytest
import torch
from torch.func import grad

from hf_pdyn.theory import mirror
from hf_pdyn.theory.mirror import as_printed
from tests.theory.mirror import flows
from tests.theory.mirror.test_maps import CASES, close, end, f64


def test_eq_8_is_wrong_for_a_product() -> None:
    x, mu, a = end(CASES["m*w"])
    product = CASES["m*w"].map
    u0, v0 = (product.m0 + product.w0) / 2**0.5, (product.m0 - product.w0) / 2**0.5
    assert mu.tolist() == pytest.approx([0.0193, -0.3263], abs=1e-4)
    assert grad(as_printed.printed_product)(x, a, u0, v0).tolist() == pytest.approx([-0.1061, 0.0292], abs=1e-4)


def test_eq_8_puts_the_minimum_away_from_the_initialisation() -> None:
    """At a = 0 R_a is least at x0 = m0 w0; as printed at 2 m0 w0, and then at 2 e^(2a) m0 w0 for e^(4a) m0 w0."""
    u0, v0, x0 = f64(1.6 / 2**0.5), f64(0.8 / 2**0.5), 1.2 * 0.4
    for a in (0.0, -0.2):
        close(grad(as_printed.printed_product)(f64(2 * math.exp(2 * a) * x0), a, u0, v0), f64(0), 1e-15)
        close(mirror.Product(f64(1.2), f64(0.4)).minimum(a), f64(math.exp(4 * a) * x0), 1e-15)


def test_eq_8_is_right_for_a_difference_of_squares_with_half_the_squares() -> None:
    x, mu, a = end(CASES["u^2-v^2, half"])
    squares = CASES["u^2-v^2, half"].map
    close(grad(as_printed.printed_product)(x, a, squares.u0, squares.v0), mu, 1e-10)
    close(as_printed.printed_product(x, a, squares.u0, squares.v0), squares.potential(x, a), 1e-15)


def test_eq_9_is_wrong_whatever_its_constants_are() -> None:
    """c_u = u0^(2-2k), and K u0^(2-2k), with which at least x0 is right."""
    x, mu, a = end(CASES["u^4-v^4"])
    powers = CASES["u^4-v^4"].map
    printed = as_printed.printed_power_difference
    assert x.tolist() == pytest.approx([0.2183, -0.3380], abs=1e-4)
    assert printed(mu, a, powers.c_u, powers.c_v, 2).tolist() == pytest.approx([5.8843, -8.5735], abs=1e-4)
    c_u, c_v = powers.K * powers.c_u, powers.K * powers.c_v
    assert printed(mu, a, c_u, c_v, 2).tolist() == pytest.approx([0.1625, -0.1813], abs=1e-4)
    close(printed(f64(0, 0), 0.0, c_u, c_v, 2), powers.x(f64(0, 0), 0.0), 1e-15)


@pytest.mark.parametrize("k", [2, 3, 7])
def test_eq_9_falls_with_mu_on_a_domain_that_shrinks(k: int) -> None:
    c_u, c_v = f64(2), f64(3)
    low, high = as_printed.printed_power_difference_domain(-0.5, c_u, c_v)
    mu = (low + (high - low) * torch.linspace(0.01, 0.99, 99, dtype=torch.float64))[:, None]
    assert (as_printed.printed_power_difference(mu, -0.5, c_u, c_v, k).diff(dim=0) < 0).all()
    earlier = as_printed.printed_power_difference_domain(0.0, c_u, c_v)
    assert (high - low < earlier[1] - earlier[0]).all()


def test_the_logs_have_the_wrong_sign_of_a() -> None:
    x, mu, a = end(CASES["log u-log v"])
    logs = CASES["log u-log v"].map
    printed = grad(as_printed.printed_log_difference)
    assert mu.tolist() == pytest.approx([0.0804, 0.0493], abs=1e-4)
    assert printed(x, a, logs.u0, logs.v0).tolist() == pytest.approx([0.1875, -0.1221], abs=1e-4)
    close(printed(x, -a, logs.u0, logs.v0), mu, 1e-10)


def test_the_balanced_logs_are_half_of_the_general_ones_and_keep_their_shape() -> None:
    """R_a is a factor times log(2 cosh x): what it is least at, among any set of x, does not depend on a."""
    x, beta, a = torch.linspace(-3, 3, 13, dtype=torch.float64)[:, None], 1.2, -0.3
    printed = as_printed.printed_log_difference(x, a, f64(beta), f64(beta))
    close(2 * as_printed.printed_balanced_log_difference(x, a, beta), printed, 1e-14)
    balanced = mirror.LogDifference(f64(beta), f64(beta))
    ratio = balanced.gradient(x[x != 0], a) / balanced.gradient(x[x != 0], 0.0)
    close(ratio, torch.full_like(ratio, (beta**2 + 2 * a) / beta**2), 1e-14)


def test_the_paper_s_initialisation_of_a_product_is_outside_its_condition() -> None:
    """Appendix B.1 starts at m = 0, w = 1, where |w0| < m0 fails and the log of Eq. 8 is not real."""
    assert as_printed.printed_product(f64(0.1), 0.0, f64(1 / 2**0.5), f64(-1 / 2**0.5)).isnan()
    product = mirror.Product(f64(0, 0), f64(1, 1))
    flow = flows.simulate(*flows.product(1.0), product.w(f64(0, 0), 0.0))
    close(product.gradient(flow.x, flow.a), flow.mu, 1e-10)
