"""Mirror maps against simulated flows (Runge-Kutta of order 8 at 1e-12 a step; u^14 - v^14 is off by 1e-11)."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd.functional import hessian

from hf_pdyn.theory import mirror
from tests.theory.mirror import flows

FLOW_ERROR = 1e-10


def f64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


ZERO = f64(0, 0)
BASIS = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))[0]
A = torch.stack([BASIS @ f64(*values).diag() @ BASIS.mT for values in ((1, -1, 0.5, 0.2), (0.3, 0.4, -0.7, -0.8))])
B = BASIS @ f64(1, 0.5, 0, 1.5).diag() @ BASIS.mT
W0 = f64(1, 0.8, -0.6, 0.9)


@dataclass
class Case:
    map: mirror.MirrorMap
    g: flows.Map
    field: flows.Field

    @property
    def w0(self) -> Tensor:
        return self.map.w(ZERO, 0.0)

    @cached_property
    def flow(self) -> flows.Flow:
        return flows.simulate(self.g, self.field, self.w0)


def powers(k: int) -> Case:
    return Case(mirror.PowerDifference(f64(0.8, 0.6), f64(0.7, 0.75), k), *flows.power_difference(k))


CASES = {
    "m*w": Case(mirror.Product(f64(1.2, 0.9), f64(0.4, -0.3)), *flows.product(1.0)),
    "m*w, |w0| > |m0|": Case(mirror.Product(f64(0, -0.5), f64(1, 0.8), scale=0.5), *flows.product(0.5)),
    "u^2-v^2": Case(mirror.SquareDifference(f64(1, 0.6), f64(0.7, -0.9)), *flows.power_difference(1)),
    "u^2-v^2, half": Case(mirror.SquareDifference(f64(1, 0.6), f64(0.7, 0.9), 0.5), *flows.power_difference(1, 0.5)),
    "u^4-v^4": powers(2),
    "u^6-v^6": powers(3),
    "u^14-v^14": powers(7),
    "log u-log v": Case(mirror.LogDifference(f64(1.5, 1.1), f64(1.3, 1.7)), *flows.log_difference()),
    "quadratic forms": Case(mirror.QuadraticForms(A, B, W0), *flows.quadratic_forms(A, B)),
}
every_map = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
pairs = pytest.mark.parametrize("case", list(CASES.values())[:-1], ids=list(CASES)[:-1])


def end(case: Case) -> tuple[Tensor, Tensor, float]:
    flow = case.flow
    return flow.x[-1], flow.mu[-1], float(flow.a[-1])


def close(actual: Tensor, expected: Tensor, within: float) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=within)


@every_map
def test_gradient_along_a_flow_is_the_integral_of_grad_f(case: Case) -> None:
    """Theorem 3.1: grad R_a(x_t) = mu_t and grad Q_a(mu_t) = x_t, at every time."""
    flow = case.flow
    close(case.map.x(flow.mu, flow.a), flow.x, FLOW_ERROR)
    for x, mu, a in list(zip(flow.x, flow.mu, flow.a, strict=True))[::10]:
        close(case.map.gradient(x, float(a)), mu, FLOW_ERROR)


@pairs
def test_gradient_of_a_whole_flow_at_once(case: Case) -> None:
    flow = case.flow
    close(case.map.gradient(flow.x, flow.a), flow.mu, FLOW_ERROR)


@every_map
def test_q_and_r_are_a_legendre_pair(case: Case) -> None:
    """Q_a(mu) + R_a(x) = mu . x, grad Q_a = x, grad R_a = mu, dQ_a/da = h and dR_a/da = -h, with autograd's gradients.

    x and mu are of a simulated flow, so its error is in here: 1e-12 for u^14 - v^14, whose flow is stiff, else 5e-14.
    """
    x, mu, a = end(case)
    h = case.map.h(case.map.w(mu, a))
    close(case.map.Q(mu, a) + case.map.potential(x, a), x @ mu, 1e-12)
    x_again, h_again = gradients(case.map.Q, mu, a)
    close(x_again, x, FLOW_ERROR)
    close(h_again, h, FLOW_ERROR)
    mu_again, slope = gradients(case.map.potential, x, a)
    close(mu_again, mu, FLOW_ERROR)
    close(slope, -h, FLOW_ERROR)
    close(case.map.slope(x, a), -h, FLOW_ERROR)


def gradients(potential: Callable[[Tensor, Tensor], Tensor], at: Tensor, a: float) -> tuple[Tensor, ...]:
    arguments = (at.clone().requires_grad_(), torch.tensor(a, dtype=torch.float64, requires_grad=True))
    return torch.autograd.grad(potential(*arguments), arguments)


@pytest.mark.parametrize("name", ["m*w", "u^2-v^2", "log u-log v"])
def test_metric_and_regulariser_on_the_manifold(name: str) -> None:
    """Eq. 7: (Hessian of R_a) x' = -(grad f + alpha grad_x y), y = -dR_a/da; x' by differences, to 1e-9."""
    case, alpha = CASES[name], 0.3
    x, mu, a = end(case)
    w, force = case.map.w(mu, a).numpy(), -flows.grad_f(x.numpy())
    dw = 1e-5 * case.field(w, force, alpha)
    velocity = torch.from_numpy((case.g(w + dw) - case.g(w - dw)) / 2e-5)
    x.requires_grad_()
    (slope_gradient,) = torch.autograd.grad(case.map.slope(x, a), x)
    metric = hessian(lambda x: case.map.potential(x, a), x.detach())
    close(metric @ velocity, torch.from_numpy(force) + alpha * slope_gradient, 1e-8)


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_minimum_of_a_product_moves_to_zero(scale: float) -> None:
    m0, w0, a = f64(1.2, 0.3), f64(0.4, -0.9), -0.35
    product = mirror.Product(m0, w0, scale)
    close(product.minimum(a), math.exp(4 * scale * a) * m0 * w0, 1e-15)
    close(product.gradient(product.minimum(a), a), ZERO, 1e-15)
    nearby = product.minimum(a) + 1e-3 * torch.randn(50, 2, dtype=torch.float64)
    assert (product.potential(nearby, a) >= product.potential(product.minimum(a), a)).all()


def test_decay_moves_the_minimum_of_powers_to_zero_and_that_of_logs_away() -> None:
    powers = [float(mirror.PowerDifference(f64(0.8), f64(0.7), 2).minimum(a)) for a in (0.0, -0.3, -0.6)]
    logs = [float(mirror.LogDifference(f64(1.5), f64(1.3)).minimum(a)) for a in (0.0, -0.3, -0.6)]
    assert powers == sorted(powers, reverse=True) and powers[-1] > 0
    assert logs == sorted(logs)


@pytest.mark.parametrize("name", [name for name in CASES if name != "log u-log v"])
def test_squares_and_powers_are_contracting(name: str) -> None:
    """R_a rises as a falls, at all x: the proof of Theorem 3.3 prints (R_(a+h) - R_a) / h >= 0, the wrong way round."""
    case = CASES[name]
    for mu in (f64(0.1, -0.2), f64(-0.15, 0.1)):
        x = case.map.x(mu, -0.4)
        assert case.map.contracting(x, -0.4)
        assert case.map.potential(x, -0.4) < case.map.potential(x, -0.5)


def test_logs_are_contracting_only_where_uv_is_at_least_one() -> None:
    logs, a = mirror.LogDifference(f64(1.5), f64(1.3)), -0.1
    border = math.acosh((1.5**2 + 1.3**2 + 4 * a) / 2)
    u, v = logs.w(logs.gradient(f64(border), a), a)
    close(u * v, f64(1), 1e-14)
    for x in (0.999 * border, -0.999 * border):
        assert logs.contracting(f64(x), a)
    for x in (1.001 * border, -1.001 * border):
        assert not logs.contracting(f64(x), a)


def test_quadratic_forms_are_contracting_only_with_a_semidefinite_regulariser() -> None:
    assert not mirror.QuadraticForms(A, B - torch.eye(4, dtype=torch.float64), W0).contracting(CASE_X, 0.0)
    assert mirror.QuadraticForms(A, B, W0).contracting(CASE_X, 0.0)


CASE_X = CASES["quadratic forms"].map.x(ZERO, 0.0)


def test_product_is_a_quadratic_form() -> None:
    """Theorem 3.3 with A = [[0, 1], [1, 0]] and B = 2 scale I."""
    forms = mirror.QuadraticForms(f64(0, 1, 1, 0).view(1, 2, 2), torch.eye(2, dtype=torch.float64), f64(1.2, 0.4))
    product = mirror.Product(f64(1.2), f64(0.4), scale=0.5)
    for x, a in ((0.3, -0.2), (-4.0, -0.7), (50.0, 0.0)):
        close(forms.gradient(f64(x), a), product.gradient(f64(x), a), 1e-13)
        close(forms.potential(f64(x), a), product.potential(f64(x), a), 1e-11)


@pytest.mark.parametrize("k", [2, 3, 7])
def test_domain_of_powers_grows_and_x_takes_every_value(k: int) -> None:
    """x is as exact as u^(2-2k) - u0^(2-2k), which loses digits where x is far from x0, most for large k."""
    powers = mirror.PowerDifference(f64(0.8, 0.6), f64(0.7, 0.75), k)
    for earlier, later in ((0.0, -0.2), (-0.2, -2.0)):
        assert (powers.domain(later)[0] < powers.domain(earlier)[0]).all()
        assert (powers.domain(later)[1] > powers.domain(earlier)[1]).all()
    for a in (0.0, -0.2, -2.0):
        x = torch.tensor([[100, -100], [-3, 3], [1e-3, -1e-3], [0, 0]], dtype=torch.float64)
        mu = powers.gradient(x, a)
        low, high = powers.domain(a)
        assert ((low < mu) & (mu < high)).all()
        torch.testing.assert_close(powers.x(mu, a), x, rtol=1e-9, atol=1e-12)
        assert powers.x(high + 1e-9, a).isnan().all() and powers.x(low - 1e-9, a).isnan().all()


@pytest.mark.parametrize("k", [2, 3])
def test_range_at_bounded_mu_shrinks_by_a_power_of_a(k: int) -> None:
    """What decay does take: x(m) - x(-m) goes as |a|^-(q + 1), q = k / (k - 1), within 1 % at a = -1000 and -2000."""
    powers = mirror.PowerDifference(f64(0.8), f64(0.7), k)
    near, far = (float(powers.x(f64(0.1), a) - powers.x(f64(-0.1), a)) for a in (-1000.0, -2000.0))
    assert math.log2(near / far) == pytest.approx(k / (k - 1) + 1, rel=0.01)
    product = mirror.Product(f64(1.2), f64(0.4))
    near, far = (float(product.x(f64(0.1), a) - product.x(f64(-0.1), a)) for a in (-1.0, -2.0))
    assert math.log(near / far) == pytest.approx(4)


def test_logs_outlive_the_smaller_parameter_at_mu_zero() -> None:
    """The flow goes on, and R_a exists, until u0^2 + v0^2 + 4a is 0; R_a has a minimum until a = -min(u0^2, v0^2) / 2.

    Here u0^2 / 2 = 0.125, and a ends at -0.4.
    """
    logs = mirror.LogDifference(f64(0.5, 0.5), f64(2, 2))
    flow = flows.simulate(
        *flows.log_difference(),
        logs.w(ZERO, 0.0),
        until=2.0,
        grad_f=lambda x: np.array([-0.4, -0.5]),
        alpha=lambda t: 0.2,
    )
    a = float(flow.a[-1])
    assert a == pytest.approx(-0.4)
    close(logs.gradient(flow.x, flow.a), flow.mu, FLOW_ERROR)
    assert logs.minimum(-0.12).isfinite().all() and logs.minimum(a).isnan().all()
    spent = -(0.25 + 4) / 4
    assert logs.potential(flow.x[-1], spent + 1e-6).isfinite() and logs.potential(flow.x[-1], spent - 1e-6).isnan()
    low, high = logs.domain(-0.3)
    assert (low > logs.domain(0.0)[0]).all() and (high < logs.domain(0.0)[1]).all()


def test_log_potential_is_exact_far_from_zero() -> None:
    """R_a(x) -> (v0^2 + 2a) x / 2 + terms without x; torch's softplus would be off by 2e-9 at 2x = 20."""
    logs = mirror.LogDifference(f64(1.5), f64(1.3))
    for x in (10.5, 300.0):
        exact = 0.25 * (
            (2.25 - 0.2) * math.log1p(math.exp(-2 * x)) + (1.69 - 0.2) * (2 * x + math.log1p(math.exp(-2 * x)))
        )
        w = 2.25 + 1.69 - 0.4
        close(logs.potential(f64(x), -0.1), f64(exact - w * (math.log(w) - 1) / 4)[0], 1e-13 * x)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: mirror.Product(f64(1, 1), f64(0, -1)), r"\|m0\| and \|w0\| must differ"),
        (lambda: mirror.SquareDifference(f64(1), f64(0)), "u0 and v0 must not be 0"),
        (lambda: mirror.PowerDifference(f64(1), f64(1), 1), "SquareDifference is k = 1"),
        (lambda: mirror.PowerDifference(f64(-1), f64(1), 2), "u0 and v0 must be positive, got u0 = .-1.0."),
        (lambda: mirror.LogDifference(f64(1), f64(0)), "u0 and v0 must be positive"),
        (lambda: mirror.QuadraticForms(A, f64(1, 2, 3, 4).diag(), W0), "must commute; .* matrices 1 and 3"),
        (lambda: mirror.QuadraticForms(A + f64(0, 1, 0, 0), B, W0), "must be symmetric"),
        (lambda: mirror.QuadraticForms(A, B, f64(0, 0, 0, 0)), "linearly independent"),
        (lambda: mirror.QuadraticForms(A[:1] @ A[:1], B, W0).gradient(f64(-1), -0.1), r"range of G.* x = \[-1.0\]"),
    ],
)
def test_bad_input_is_refused(make, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make()
