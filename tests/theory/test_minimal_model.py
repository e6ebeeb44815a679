import math

import pytest
import torch
from torch import Tensor, nn

from hf_pdyn import Padam
from hf_pdyn.theory import minimal_model

EXPONENTS = (-0.4, -0.1, 0.0, 0.25, 0.3, 0.5, 1.0)
EPS = 1e-10


class Problem:
    """A minimal model in float64, its Padam and the gradients so far."""

    def __init__(self, p: float, betas: tuple[float, float], *, n: int = 12, d: int = 5) -> None:
        random = torch.Generator().manual_seed(0)
        self.X = torch.randn(n, d, generator=random, dtype=torch.float64)
        self.y = torch.randn(n, generator=random, dtype=torch.float64)
        self.w = nn.Parameter(torch.randn(d, generator=random, dtype=torch.float64))
        self.b = nn.Parameter(torch.randn((), generator=random, dtype=torch.float64))
        self.lr = 0.05
        self.optimizer = Padam([self.w, self.b], lr=self.lr, betas=betas, eps=EPS, p=p, weight_decay=0.0)

    def residual(self) -> Tensor:
        return minimal_model.residual(self.X, self.w, self.b, self.y)

    def step(self) -> None:
        self.optimizer.zero_grad()
        (self.residual().square().sum() / (2 * len(self.y))).backward()
        self.optimizer.step()

    def moments(self, param: Tensor, t: int) -> tuple[Tensor, Tensor]:
        beta1, beta2 = self.optimizer.param_groups[0]["betas"]
        state = self.optimizer.state[param]
        return state["exp_avg"] / (1 - beta1**t), state["exp_avg_sq"] / (1 - beta2**t)


@pytest.mark.parametrize("p", EXPONENTS)
@pytest.mark.parametrize("betas", [(0.0, 0.0), (0.9, 0.999)])
def test_residual_update_is_what_padam_does(p: float, betas: tuple[float, float]) -> None:
    """Exact up to the rounding of sums of a dozen float64 numbers of size 1 to 100: 1e-12 of the largest."""
    problem = Problem(p, betas)
    for t in range(1, 6):
        before = problem.residual().detach()
        problem.step()
        (m_w, v_w), (m_b, v_b) = problem.moments(problem.w, t), problem.moments(problem.b, t)
        taken = minimal_model.corrections(problem.X, m_w, m_b, v_w, v_b, lr=problem.lr, p=p, eps=EPS)
        after = problem.residual().detach()
        scale = float(before.abs().max() + after.abs().max())
        torch.testing.assert_close(before - taken.weight - taken.bias, after, rtol=0, atol=1e-12 * scale)


def test_gradients_are_those_of_the_loss() -> None:
    problem = Problem(0.5, (0.9, 0.999))
    (problem.residual().square().sum() / (2 * len(problem.y))).backward()
    g_w, g_b = minimal_model.gradients(problem.X, problem.residual().detach())
    torch.testing.assert_close(g_w, problem.w.grad, rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(g_b, problem.b.grad, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("p", EXPONENTS)
def test_the_matrices_of_eq_26(p: float) -> None:
    """The corrections are X Q_w X^T r and 11^T r, each times lr / n, as the paper writes them."""
    problem = Problem(p, (0.9, 0.999))
    r = problem.residual().detach()
    g_w, g_b = minimal_model.gradients(problem.X, r)
    v_w, v_b = g_w.square() * 3, g_b.square() * 2
    taken = minimal_model.corrections(problem.X, g_w, g_b, v_w, v_b, lr=0.05, p=p, eps=EPS)
    Q_w = torch.diag((v_w + EPS) ** -p)  # noqa: N806
    ones = torch.ones_like(r)
    torch.testing.assert_close(taken.weight, 0.05 / len(r) * problem.X @ Q_w @ problem.X.T @ r, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(
        taken.bias, 0.05 / len(r) * (v_b + EPS) ** -p * torch.outer(ones, ones) @ r, rtol=1e-11, atol=1e-13
    )


def test_bias_corrects_the_mean_alone() -> None:
    problem = Problem(0.5, (0.9, 0.999))
    r = problem.residual().detach()
    g_w, g_b = minimal_model.gradients(problem.X, r)
    taken = minimal_model.corrections(problem.X, g_w, g_b, g_w**2, g_b**2, lr=1.0, p=0.0, eps=EPS)
    torch.testing.assert_close(taken.bias, r.mean().expand(len(r)))


def test_shares_of_one_output_and_of_many() -> None:
    X = torch.tensor([[3.0, 0.0], [0.0, 4.0]], dtype=torch.float64)  # noqa: N806
    # ||X dw|| = 5, ||db 1|| = 2 sqrt(2).
    share = minimal_model.weight_share(X, torch.ones(2, dtype=torch.float64), torch.tensor(2.0, dtype=torch.float64))
    assert float(share) == pytest.approx(5 / (5 + 2 * math.sqrt(2)), rel=1e-15)
    both = minimal_model.weight_share(
        X, torch.ones(1, 2, dtype=torch.float64), torch.tensor([2.0], dtype=torch.float64)
    )
    assert float(both) == float(share)
    one = torch.ones(3, 2, dtype=torch.float64)
    assert float(minimal_model.weight_share(X, one, torch.zeros(3, dtype=torch.float64))) == 1.0
    assert float(minimal_model.weight_share(X, 0 * one, torch.ones(3, dtype=torch.float64))) == 0.0
    assert math.isnan(minimal_model.weight_share(X, 0 * one, torch.zeros(3, dtype=torch.float64)))


@pytest.mark.parametrize("mean", [0.0, 0.7])
@pytest.mark.parametrize("batch", [1, 8])
def test_second_moment_of_sparse_coordinates(batch: int, mean: float) -> None:
    """Against sampling: 2^20 batches, whose mean of g^2 is good to 1 % at the rarest coordinate (pi = 0.02)."""
    random = torch.Generator().manual_seed(1)
    for pi in (0.02, 0.2, 1.0):
        total = torch.zeros(2**20, dtype=torch.float64)
        for _ in range(batch):
            active = torch.rand(2**20, generator=random) < pi
            total += active * (mean + torch.randn(2**20, generator=random, dtype=torch.float64))
        sampled = (total / batch).square().mean()
        expected = minimal_model.sparse_second_moment(
            torch.tensor(pi, dtype=torch.float64), sigma_sq=1 + mean**2, mean=mean, batch=batch
        )
        assert float(sampled) == pytest.approx(float(expected), rel=0.03)


@pytest.mark.parametrize("p", EXPONENTS)
@pytest.mark.parametrize(("eps", "mean"), [(0.0, 0.0), (1e-3, 0.0), (0.0, 1.0), (1e-3, 1.0)])
def test_slope_is_the_derivative_of_the_gain(p: float, eps: float, mean: float) -> None:
    """By central differences in log pi, off by their square, 1e-6."""
    log_pi = torch.linspace(math.log(0.005), 0, 9, dtype=torch.float64)

    def log_gain(at: Tensor) -> Tensor:
        v = minimal_model.sparse_second_moment(at.exp(), sigma_sq=1.0, mean=mean, batch=16)
        return minimal_model.gain(v, p=p, eps=eps).log()

    h = 1e-4
    slope = (log_gain(log_pi + h) - log_gain(log_pi - h)) / (2 * h)
    expected = minimal_model.sparse_gain_slope(log_pi.exp(), p=p, eps=eps, sigma_sq=1.0, mean=mean, batch=16)
    torch.testing.assert_close(slope, expected, rtol=1e-6, atol=1e-8)


def test_limits_of_the_slope() -> None:
    pi = torch.tensor([1e-3], dtype=torch.float64)
    slope = minimal_model.sparse_gain_slope
    assert float(slope(pi, p=0.3, eps=0.0, sigma_sq=1.0)) == pytest.approx(-0.3, rel=1e-15)
    assert float(slope(pi, p=0.3, eps=1e6, sigma_sq=1.0)) == pytest.approx(0.0, abs=1e-8)
    assert float(slope(pi, p=0.3, eps=0.0, sigma_sq=1e-9, mean=1.0, batch=64)) == pytest.approx(-0.6, rel=1e-4)
