import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hf_pdyn import Padam, StepStatistics
from hf_pdyn.measure import implicit_bias
from hf_pdyn.measure.windows import Scope
from hf_pdyn.optim.step_work import StepSums
from hf_pdyn.tensors import norms
from hf_pdyn.tensors.sharding import Piece
from hf_pdyn.theory import modified_flow
from hf_pdyn.theory.flows import flatten

# float32 has 24 bits.
SUM_TOLERANCE = 1e-6


@pytest.mark.parametrize("p", [-0.4, 0.0, 0.25, 0.5, 0.9])
def test_power_norm_has_the_gradient_of_the_modified_flow(p: float) -> None:
    """d_j N_p = g_j / (g_j^2 + eps)^p, from which the modified flow of the p-update is written."""
    grad = torch.randn(50, dtype=torch.float64, requires_grad=True)
    eps = 1e-3
    (derivative,) = torch.autograd.grad(_differentiable_power_norm(grad, p, eps), grad)
    torch.testing.assert_close(derivative, grad.detach() / (grad.detach() ** 2 + eps) ** p)
    value = implicit_bias.power_norm(grad.detach(), p=p, eps=eps)
    torch.testing.assert_close(value, _differentiable_power_norm(grad, p, eps).detach())


def _differentiable_power_norm(grad: torch.Tensor, p: float, eps: float) -> torch.Tensor:
    return ((grad**2 + eps) ** (1 - p)).sum() / (2 * (1 - p))


def test_power_norm_at_its_named_exponents() -> None:
    grad, eps = torch.randn(100, dtype=torch.float64), 1e-6
    one_norm = implicit_bias.perturbed_one_norm(grad, eps=eps)
    torch.testing.assert_close(implicit_bias.power_norm(grad, p=0.5, eps=eps), one_norm)
    torch.testing.assert_close(one_norm, (grad**2 + eps).sqrt().sum())
    torch.testing.assert_close(implicit_bias.power_norm(grad, p=0.0, eps=0.0), grad.square().sum() / 2)
    torch.testing.assert_close(implicit_bias.power_norm(grad, p=1.0, eps=eps), (grad**2 + eps).log().sum() / 2)


@pytest.mark.parametrize(("p", "sign"), [(0.2, 1), (0.3, -1), (0.0, 1), (-0.2, 1), (0.5, -1)])
def test_the_sign_of_the_implicit_bias_changes_at_p_star(p: float, sign: int) -> None:
    """On E = theta^2 / 2 a penalty of N_p makes the p-update faster than its flow, theta' = -theta^(1-2p).

    At betas of 0.2 and 0.5, C is 1.5 and 3, and p* = 1.5 / (2 * 3) = 1/4.
    """
    lr, steps = 1e-3, 300
    theta = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
    optimizer = Padam([theta], lr=lr, betas=(0.2, 0.5), p=p, eps=1e-30, weight_decay=0.0)
    for _ in range(steps):
        theta.grad = theta.detach().clone()
        optimizer.step()
    flow = math.exp(-lr * steps) if p == 0 else (1 - 2 * p * lr * steps) ** (1 / (2 * p))
    assert math.copysign(1, flow - theta.item()) == sign
    assert abs(flow - theta.item()) < lr  # of second order, not another flow


def test_norms_of_low_precision_and_complex_gradients() -> None:
    grad = torch.randn(64, generator=torch.Generator().manual_seed(0)) * 1e-4
    half = grad.half()
    expected = (half.double() ** 2 + 1e-16).sqrt().sum()
    torch.testing.assert_close(implicit_bias.perturbed_one_norm(half, eps=1e-16), expected, rtol=SUM_TOLERANCE, atol=0)
    z = torch.randn(8, dtype=torch.complex64)
    torch.testing.assert_close(
        implicit_bias.perturbed_one_norm(z, eps=1e-6), implicit_bias.perturbed_one_norm(torch.view_as_real(z), eps=1e-6)
    )


# The live coefficient


class Network:
    """48 weights and 9 biases on 64 samples, in float64, and its losses as functions of the parameters."""

    def __init__(self, seed: int = 0) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.module = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 1)).double()
        for param in self.module.parameters():
            nn.init.normal_(param, std=0.6, generator=self.generator)
        self.x = torch.randn(64, 5, generator=self.generator, dtype=torch.float64)
        self.y = torch.sin(2 * self.x.sum(1, keepdim=True))

    def loss(self, batch: slice = slice(None)) -> Callable[[dict[str, Tensor]], Tensor]:
        x, y = self.x[batch], self.y[batch]
        return lambda params: (torch.func.functional_call(self.module, params, (x,)) - y).square().mean() / 2

    @property
    def params(self) -> dict[str, Tensor]:
        return {name: param.detach().clone() for name, param in self.module.named_parameters()}

    def of(self, pathway: str, values: dict[str, Tensor]) -> Tensor:
        return flatten(
            {name: value for name, value in values.items() if name.endswith("bias") != (pathway == "weight")}
        )

    def train(self, optimizer: torch.optim.Optimizer, losses: list[Any]) -> tuple[dict[str, float], dict[str, Tensor]]:
        """The coefficients that telemetry reads off the last step, by pathway, and the parameters before that step."""
        statistics = StepStatistics(optimizer, self.module)
        window = statistics.window()
        for step, loss in enumerate(losses, start=1):
            before = self.params
            optimizer.zero_grad()
            loss(dict(self.module.named_parameters())).backward()
            if step == len(losses):
                statistics.measure_next_step()
            optimizer.step()
        found = window.read().quantities["implicit_bias"]
        return {pathway: found[Scope(pathway)] for pathway in ("weight", "bias_like")}, before


EXPONENTS = (-0.3, 0.0, 0.25, 0.5)
BETAS = (0.9, 0.95)


@pytest.mark.parametrize("p", EXPONENTS)
@pytest.mark.parametrize("steps", [1, 4, 60])
def test_coefficients_are_those_of_the_exact_term(p: float, steps: int) -> None:
    """bias_j / dN_p_j by Hessian-vector products, at eps far below and far above g^2: one number for all elements.

    v_hat is a mean of squared gradients that change by O(lr) within 1 / (1-beta2) steps; here by 1e-5, relatively, and
    shares of v_hat / (v_hat + eps) that are not 0 or 1 by less than eps / g^2 or g^2 / eps, 1e-4 for most elements.
    """
    lr = 1e-7
    for eps, share in ((1e-14, 1.0), (1e6, 0.0)):
        network = Network()
        loss = network.loss()
        optimizer = Padam(network.module.parameters(), lr=lr, betas=BETAS, eps=eps, p=p, weight_decay=0.0)
        found, before = network.train(optimizer, [loss] * steps)
        options = {"betas": BETAS, "eps": eps, "p": p}
        bias = modified_flow.implicit_bias(loss, before, lr=lr, steps_done=steps - 1, **options)
        d_norm = modified_flow.power_norm_gradient(loss, before, eps=eps, p=p)
        size = lr * modified_flow.memory_coefficient(BETAS[1], steps - 1)
        for pathway, coefficient in found.items():
            exact, direction = network.of(pathway, bias), network.of(pathway, d_norm)
            assert coefficient == pytest.approx((exact @ direction / direction.square().sum()).item(), abs=1e-4 * size)
            assert (exact - coefficient * direction).norm() < 1e-3 * size * direction.norm()
        assert found["weight"] == pytest.approx(
            modified_flow.bias_coefficient(share, lr=lr, betas=BETAS, p=p, steps_done=steps - 1), abs=1e-4 * size
        )


@pytest.mark.parametrize("p", [0.25, 0.5])
def test_between_small_and_large_eps_it_is_the_mean_over_elements(p: float) -> None:
    """Shares from 0 to 1. The ratio of the exact term to dN_p along dN_p weighs elements otherwise, and is another."""
    network, lr, eps = Network(), 1e-6, 1e-4
    loss = network.loss()
    optimizer = Padam(network.module.parameters(), lr=lr, betas=BETAS, eps=eps, p=p, weight_decay=0.0)
    found, before = network.train(optimizer, [loss] * 30)
    bias = modified_flow.implicit_bias(loss, before, lr=lr, betas=BETAS, eps=eps, p=p, steps_done=29)
    d_norm = modified_flow.power_norm_gradient(loss, before, eps=eps, p=p)
    along = {}
    for pathway, coefficient in found.items():
        exact, direction = network.of(pathway, bias), network.of(pathway, d_norm)
        # v_hat has changed by 1e-4 of it, which shows where shares are neither 0 nor 1.
        assert coefficient == pytest.approx((exact / direction).mean().item(), rel=1e-3)
        along[pathway] = (exact @ direction / direction.square().sum()).item()
    # Elements with large gradients count for more along dN_p, so the mean protects less.
    assert along["weight"] < found["weight"] - 0.1 * abs(found["weight"])


@pytest.mark.parametrize(("batches", "least", "most"), [(1, 0.99, 1.01), (2, 0.8, 0.97), (16, 0.5, 0.9)])
def test_mini_batches_protect_less_than_the_coefficient_says(batches: int, least: float, most: float) -> None:
    """What protects, 2 p C_beta2 S, against the same part of the exact term along dN_p of the full batch.

    The parameters hardly move (lr = 1e-9), so all gradients are taken at one point, as in the expansion.
    """
    lr, p, eps, betas, steps = 1e-9, 0.5, 1e-12, (0.9, 0.99), 160
    shares = []
    for seed in range(4):
        network = Network(seed)
        parts = [network.loss(slice(i, None, batches)) for i in range(batches)]
        order = torch.cat([torch.randperm(batches, generator=network.generator) for _ in range(steps // batches)])
        losses = [parts[i] for i in order]
        optimizer = Padam(network.module.parameters(), lr=lr, betas=betas, eps=eps, p=p, weight_decay=0.0)
        found, before = network.train(optimizer, losses)
        options = {"betas": betas, "eps": eps, "p": p}
        first = modified_flow.zeroth_order_flow(losses, before, **options)
        field = modified_flow.minibatch_flow(losses, before, lrs=[lr] * steps, **options)
        bias = {
            name: (first[name] - field[name]) * (second_moment(optimizer, param) + eps) ** p
            for name, param in network.module.named_parameters()
        }
        direction = full_batch_direction(network, before, optimizer, eps, p)
        exact = (flatten(bias) @ direction / direction.square().sum()).item()
        penalising = modified_flow.bias_coefficient(0.0, lr=lr, betas=betas, p=p, steps_done=steps - 1)
        shares.append((penalising - exact) / (penalising - found["weight"]))
    assert least < sum(shares) / len(shares) < most


def second_moment(optimizer: torch.optim.Optimizer, param: Tensor) -> Tensor:
    state = optimizer.state[param]
    return state["exp_avg_sq"] / (1 - optimizer.param_groups[0]["betas"][1] ** state["step"].double())


def full_batch_direction(network: Network, at: dict[str, Tensor], optimizer: Any, eps: float, p: float) -> Tensor:
    """The Hessian times g (v_hat + eps)^-p, with the gradient of all samples: dN_p where v_hat is g^2."""
    gradient, pullback = torch.func.vjp(torch.func.grad(network.loss()), at)
    scaled = {
        name: gradient[name] * (second_moment(optimizer, param) + eps) ** -p
        for name, param in network.module.named_parameters()
    }
    return flatten(pullback(scaled)[0])


@pytest.mark.parametrize(
    "options",
    [{}, {"momentum": 0.8}, {"momentum": 0.6, "dampening": 0.3}, {"momentum": 0.6, "nesterov": True}],
    ids=["plain", "momentum", "dampening", "nesterov"],
)
def test_sgd_follows_the_flow_of_its_modified_loss(options: dict[str, Any]) -> None:
    """On E = a x^2 / 2, whose steps are a matrix: its largest root is the flow's factor, but for lr^3."""
    a, errors = 1.0, []
    for lr in (0.002, 0.001):
        x = nn.Parameter(torch.ones(1, dtype=torch.float64))
        optimizer = torch.optim.SGD([x], lr=lr, **options)
        mu, damping = options.get("momentum", 0.0), 1 - options.get("dampening", 0.0)
        of_x, of_buffer = (damping, mu) if not options.get("nesterov") else (1 + mu, mu**2)
        step = torch.tensor([[1 - lr * a * of_x, -lr * of_buffer], [a * damping, mu]], dtype=torch.float64)
        root = torch.linalg.eigvals(step).real.max().item()
        coefficient, ruled_by_eps, moved = implicit_bias.coefficient_sums(optimizer, [Piece(x)])[0].tolist()
        assert moved == 1 and math.isnan(ruled_by_eps)
        time = lr * damping / (1 - mu)
        errors.append(abs(math.log(root) + time * (a + coefficient * a**2)))
        assert errors[-1] < abs(math.log(root) + time * a) / 5
    assert math.log2(errors[0] / errors[1]) == pytest.approx(3, abs=0.3)


def stepped(optimizer_of: Callable[[nn.Module], torch.optim.Optimizer], steps: int = 3) -> dict[Scope, float]:
    """The coefficients, by scope, after steps of a weight with 12 elements and a bias with 3."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3))
    optimizer = optimizer_of(model)
    statistics = StepStatistics(optimizer, model)
    window = statistics.window()
    for step in range(steps):
        for i, param in enumerate(model.parameters()):
            param.grad = torch.full_like(param, 1.0 + step + i)
        statistics.measure_next_step()
        optimizer.step()
        if step < steps - 1:
            window.read()
    return dict(window.read().quantities["implicit_bias"])


def formula(steps: int, *, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), p: float = 0.5) -> float:
    return modified_flow.bias_coefficient(1.0, lr=lr, betas=betas, p=p, steps_done=steps - 1)


def test_groups_have_coefficients_of_their_own_and_scopes_their_means() -> None:
    def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
        weight, bias = model[0].weight, model[0].bias
        groups = [{"params": [weight], "p": 0.2, "lr": 1e-2}, {"params": [bias], "betas": (0.5, 0.6)}]
        return Padam(groups, lr=1e-3)

    found = stepped(optimizer_of)
    weight, bias = formula(3, lr=1e-2, p=0.2), formula(3, betas=(0.5, 0.6))
    expected = {Scope("weight"): weight, Scope("weight", "0"): weight, Scope("bias_like"): bias}
    assert {scope: found[scope] for scope in expected} == pytest.approx(expected)


@pytest.mark.parametrize("amsgrad", [False, True])
def test_adamw_has_the_coefficient_of_the_padam_it_equals(amsgrad: bool) -> None:
    for optimizer_of in (torch.optim.AdamW, torch.optim.Adam, Padam):
        found = stepped(lambda model, build=optimizer_of: build(model.parameters(), lr=1e-3, amsgrad=amsgrad))
        assert found == ({} if amsgrad else pytest.approx(dict.fromkeys(found, formula(3))))
        assert amsgrad or {Scope("weight"), Scope("bias_like", "0")} <= found.keys()


def test_matched_updates_have_the_learning_rate_of_their_step() -> None:
    kept: list[Padam] = []

    def optimizer_of(model: nn.Module) -> Padam:
        kept.append(Padam(model.parameters(), lr=1e-3, p=0.2, update_scale="adam"))
        return kept[0]

    found = stepped(optimizer_of)
    assert kept[0].last_scale is not None
    c_t = kept[0].last_scale.item()
    assert abs(c_t - 1) > 0.1
    assert found[Scope("weight")] == pytest.approx(formula(3, lr=1e-3 * c_t, p=0.2))


def test_a_step_count_on_the_device_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors in float64, which nothing reads."""
    for eps in (1e-8, 0.0):
        build = lambda model, eps=eps: torch.optim.AdamW(model.parameters(), lr=1e-3, eps=eps)  # noqa: E731
        expected = stepped(build, steps=2)
        with monkeypatch.context() as patch:
            patch.setattr(implicit_bias, "_times", lambda steps: torch.stack(steps).double())
            assert stepped(build, steps=2) == pytest.approx(expected, rel=1e-12)


def test_elements_without_any_gradient_do_not_count() -> None:
    """Unused rows of an embedding: with them, three quarters of it would look penalised."""
    for eps in (1e-8, 0.0):
        embedding = nn.Embedding(8, 4)
        optimizer = Padam(embedding.parameters(), eps=eps)
        embedding(torch.tensor([1, 5])).square().sum().backward()
        optimizer.step()
        coefficient, _, moved = implicit_bias.coefficient_sums(optimizer, [Piece(embedding.weight)])[0].tolist()
        assert moved == 8
        assert coefficient / moved == pytest.approx(formula(1), abs=1e-7)
        untouched = nn.Embedding(2, 2)
        optimizer.add_param_group({"params": list(untouched.parameters())})
        untouched.weight.grad = torch.zeros_like(untouched.weight)
        optimizer.step()
        assert implicit_bias.coefficient_sums(optimizer, [Piece(untouched.weight)]).tolist() == [[0, 0, 0]]


@pytest.mark.parametrize(
    ("optimizer_of", "reason"),
    [
        (lambda params: torch.optim.RMSprop(params), "RMSprop is no p-update"),
        (lambda params: torch.optim.NAdam(params), "NAdam is no p-update"),
        (lambda params: torch.optim.Adam(params, amsgrad=True), "no average"),
        (lambda params: Padam(params, bias_correction="padam"), "bias_correction='padam'"),
        (lambda params: torch.optim.SGD(params, momentum=1.0), "never forgets"),
    ],
)
def test_where_there_is_none_a_reason_says_why(optimizer_of: Any, reason: str) -> None:
    param = nn.Parameter(torch.ones(3))
    optimizer = optimizer_of([param])
    assert reason in str(implicit_bias.why_no_coefficient(optimizer, optimizer.param_groups[0]))
    param.grad = torch.ones(3)
    optimizer.step()
    assert implicit_bias.coefficient_sums(optimizer, [Piece(param)]).isnan().all()


def test_it_is_read_part_by_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums over parts are those of the whole, also of bf16 moments, transposed tensors, zeros and an eps of 0."""
    v = torch.rand(37, 11).square().mT
    v[3] = 0.0
    for values in (v, v.bfloat16()):
        tensors = [values, torch.zeros(5), values[:0], values[0]]
        expected = [(0.1 / (x[x > 0].double() + 0.1)).sum().item() for x in tensors]
        for part in (2**16, 10):
            monkeypatch.setattr(norms, "_PART", part)
            found = norms.shares_of_eps(tensors, [0.1, 0.1, 0.1, 0.0])
            assert found[:, 0].tolist() == pytest.approx([*expected[:3], 0.0], rel=1e-6)
            assert found[:, 1].tolist() == [(x > 0).sum() for x in tensors]


@pytest.mark.parametrize("fused", [True, False])
def test_a_step_sums_what_the_state_says(fused: bool) -> None:
    """A step's own columns are those of a pass over v, to 1e-6; some rows have met no gradient."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(30, 40), nn.LayerNorm(40))
    groups = [{"params": [param], "eps": 10.0 ** -(3 + 2 * i)} for i, param in enumerate(model.parameters())]
    optimizer = Padam(groups, p=0.3, fused=fused)
    pieces = [Piece(param) for param in model.parameters()]
    for _ in range(3):
        for param in model.parameters():
            param.grad = torch.randn_like(param)
            param.grad[: len(param) // 2] = 0.0
        request = StepSums(pieces, measure=True)
        optimizer.sum_next_step(request)
        optimizer.step()
    assert request.rows is not None
    summed = implicit_bias.coefficient_sums(optimizer, pieces, request.rows[:, -2:])
    read = implicit_bias.coefficient_sums(optimizer, pieces)
    torch.testing.assert_close(summed, read, rtol=1e-6, atol=0)
    assert read[:, 2].tolist() == [param.numel() / 2 for param in model.parameters()]
