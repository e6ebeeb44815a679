import math

import numpy as np
import pytest
import torch
from torch import Tensor

from hf_pdyn.theory.mirror import Product, depth
from tests.theory.mirror import flows
from tests.theory.mirror.test_maps import close, f64

W0 = torch.tensor([[0.9, -0.6], [0.7, 0.8], [1.1, 0.5], [0.8, 1.2]], dtype=torch.float64)


@pytest.mark.parametrize("k", [2, 3, 4])
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_decay_factors_out_of_a_product(k: int, scale: float) -> None:
    """x_t = e^(2ka) x^(mu^_t); both sides are integrated with errors near 1e-13."""
    flow = flows.simulate(
        *flows.deep_product(scale), W0[:k], weight=lambda a: float(depth.discount(a, k=k, scale=scale))
    )
    close(depth.product(W0[:k], flow.mu, flow.a, scale=scale), flow.x, 1e-11)


def test_two_factors_are_the_mirror_map() -> None:
    mu_hat, a = f64(0.3, -0.4), -0.2
    close(depth.product(W0[:2], mu_hat, a), Product(W0[0], W0[1]).x(mu_hat, a), 1e-13)


def test_undecayed_flow_from_the_paper_s_initialisation() -> None:
    """m = 0, w = z = 1: m = tan(mu^) and w = z = 1 / cos(mu^), infinite at pi / 2."""
    mu_hat = f64(-1.2, 0.3, 1.2)[:, None]
    exact = mu_hat.tan() / mu_hat.cos().square()
    close(depth.undecayed(f64(0, 1, 1)[:, None], mu_hat), exact, 1e-9)


@pytest.mark.parametrize("k", [3, 4])
def test_bound_of_mu_hat_under_the_strongest_pull(k: int) -> None:
    """A gradient that stays at its bound makes mu^ equal to the bound at every time; a weaker one stays below."""
    alpha, bound = 0.4, 0.3

    def mu_hat(grad_f) -> Tensor:
        return flows.simulate(
            *flows.deep_product(1.0),
            W0[:k],
            until=3.0,
            grad_f=grad_f,
            alpha=lambda t: alpha,
            weight=lambda a: float(depth.discount(a, k=k)),
        ).mu[-1]

    limit = depth.mu_hat_bound(bound, alpha=alpha, k=k, t=3.0)
    close(mu_hat(lambda x: np.array([-bound, bound])), f64(limit, -limit), 1e-11)
    assert (mu_hat(lambda x: bound * np.tanh(x)).abs() < limit).all()
    assert limit < depth.mu_hat_bound(bound, alpha=alpha, k=k) == pytest.approx(bound / (2 * (k - 2) * alpha))


def test_bound_is_infinite_where_nothing_is_discounted() -> None:
    assert depth.mu_hat_bound(0.3, alpha=0.4, k=2) == math.inf
    assert depth.mu_hat_bound(0.3, alpha=0.0, k=3, t=2.0) == pytest.approx(0.6)
    assert depth.mu_hat_bound(0.3, alpha=0.4, k=3, scale=0.5) == pytest.approx(0.3 / 0.4)


def test_one_factor_is_no_product() -> None:
    with pytest.raises(ValueError, match=r"at least 2 factors, .* got shape \(1, 2\)"):
        depth.undecayed(W0[:1], f64(0.1, 0.2))


def test_range_of_three_factors_shrinks_under_decay() -> None:
    """|f'| <= 0.5 and alpha = 0.5 give |mu^| <= 0.5 < pi / 2, so x <= e^(6a) x^(0.5), however long one pulls."""
    start = f64(0, 1, 1)[:, None]
    flow = flows.simulate(
        *flows.deep_product(1.0), start, until=4.0, grad_f=lambda x: np.array([-0.5]), alpha=lambda t: 0.5
    )
    bound = depth.undecayed(start, f64(depth.mu_hat_bound(0.5, alpha=0.5, k=3)))
    assert (flow.x <= torch.exp(6 * flow.a) * bound).all()
    assert float(flow.x[-1]) < 1e-4
