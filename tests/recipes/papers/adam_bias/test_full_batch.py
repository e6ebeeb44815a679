import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import set_seed

from _common.entry_point import RecipeError
from hf_pdyn.sweep.outcome import CONFIRMED, INCONCLUSIVE, NO_EFFECT, OPPOSITE, Outcome
from papers._claims.networks import TanhNetwork
from papers._claims.options import Options
from papers.adam_bias import full_batch
from papers.adam_bias._full_batch import Adam, Observed, train
from papers.adam_bias.full_batch import LEVELS, LRS, RESNET, SPIKES, TANH
from tests.recipes.cifar import write_cifar100
from tests.recipes.papers.judging import UNEVEN, judged

Slopes = dict[str, float]
AS_THE_PAPER: Slopes = {"rho": 0.3, "beta": -0.3}


def row(
    c: dict[str, Any],
    norm: Slopes = AS_THE_PAPER,
    tests: Slopes = AS_THE_PAPER,
    at_end: Slopes | None = None,
    rise: Slopes = AS_THE_PAPER,
    noise: tuple[float, ...] = (0, 0.01, -0.01),
    slowest: float = 0.5,
    hill: tuple[float, float, float] = (1.0, 1.0, 1.0),
    jump: float = 1.0,
) -> dict[str, Any]:
    """Slopes of logs over -log10 of 1 - rho and of 1 - beta; of the test error, a tenth of them."""
    x = {name: -math.log10(1 - c[name]) for name in ("rho", "beta")}
    random = noise[c["seed"]]

    def value(slopes: Slopes) -> float:
        return sum(slope * x[name] for name, slope in slopes.items()) * (1 + random) + random / 10

    share = slowest + random if c["lr"] == LRS[-1] else 1.0
    at_losses = {"norm": [share * value(norm)] * len(LEVELS), "test loss": [value(tests)] * len(LEVELS)}
    fell, rose, again = hill
    return {
        "at_losses": at_losses | {"test error": [value(tests) / 10] * len(LEVELS)},
        "at_end": {"norm": value(at_end or norm), "test loss": value(tests), "test error": value(tests) / 10},
        "last_loss": 0.01,
        "hill": {"fell": fell, "rose": rose + value(rise), "fell again": again},
        "largest_jump": 1e4 if c["role"] == SPIKES else jump,
        "spikes": 200 if c["role"] == SPIKES else 0,
        "curve": {"epoch": [1, 10], "loss": [2.0, 0.01], "norm": [1.0, math.exp(value(norm))]},
    }


@pytest.mark.parametrize(
    ("results", "expected"),
    [
        ({}, CONFIRMED),
        ({"norm": {"rho": 0.3, "beta": 0.3}}, OPPOSITE),
        ({"norm": {"rho": 1e-4, "beta": -0.3}, "noise": (0, 1e-3, -1e-3)}, NO_EFFECT),
        ({"at_end": {"rho": -0.3, "beta": -0.3}}, OPPOSITE),
        ({"noise": UNEVEN}, INCONCLUSIVE),
        ({"norm": {"rho": math.nan}}, INCONCLUSIVE),
        ({"jump": 1.5}, INCONCLUSIVE),
        ({"jump": None}, INCONCLUSIVE),
    ],
)
def test_rule(options: Options, results: dict[str, Any], expected: Outcome) -> None:
    found = judged(full_batch, options, lambda c: row(c, **results), draw=True)
    assert found.verdict is expected
    assert "200 steps" in found.reason and "worst 1e+04" in found.reason


@pytest.mark.parametrize(
    ("results", "part", "expected"),
    [
        ({}, "conjecture on generalisation, test error, tanh network", CONFIRMED),
        ({"tests": {"rho": -0.5}}, "conjecture on generalisation, test error, small ResNet", OPPOSITE),
        ({"tests": {"rho": 1e-2, "beta": -1e-2}}, "conjecture on generalisation, test error, tanh network", NO_EFFECT),
        ({"tests": {"rho": -0.5}}, "conjecture on generalisation, test loss, small ResNet", OPPOSITE),
        ({}, "rise and fall over epochs", CONFIRMED),
        ({"hill": (0.0, 1.0, 1.0)}, "rise and fall over epochs", NO_EFFECT),
        ({"rise": {"rho": 1e-4, "beta": -0.3}, "noise": (0, 1e-3, -1e-3)}, "rise and fall over epochs", NO_EFFECT),
        ({"rise": {"rho": 0.3, "beta": 0.3}}, "rise and fall over epochs", OPPOSITE),
        ({}, "an effect of finite steps", CONFIRMED),
        ({"slowest": 0.0, "noise": (0, 1e-3, -1e-3)}, "an effect of finite steps", NO_EFFECT),
        ({"slowest": 1.0}, "an effect of finite steps", OPPOSITE),
        ({"slowest": 0.75}, "an effect of finite steps", INCONCLUSIVE),
    ],
)
def test_parts(options: Options, results: dict[str, Any], part: str, expected: Outcome) -> None:
    """The verdict does not hang on them."""
    found = judged(full_batch, options, lambda c: row(c, **results))
    assert found.parts[part].verdict is expected and found.verdict is CONFIRMED


def test_values_at_equal_losses() -> None:
    """On a line in the log of the loss; nothing where the loss starts below, or stays above."""
    loss = np.array([2.0, 0.5, 0.6, 0.125, 0.0625])
    found = full_batch._at_levels(loss, np.array([0.0, 2.0, 9.0, 1.0, 0.0]))
    expected = [1.0, 2.0, 1.0 + 8 * math.log(2) / math.log(4.8), math.log(0.1 / 0.0625) / math.log(2)]
    np.testing.assert_allclose(found, expected)
    assert math.isnan(full_batch._at_levels(np.array([0.9, 0.4]), np.zeros(2))[0])
    assert math.isnan(full_batch._at_levels(np.array([2.0, 0.4]), np.zeros(2))[-1])


def test_hills() -> None:
    found = full_batch._hill(np.array([3.0, 1.0, 2.0, 1.5, 4.0, 0.0]))
    assert found == {"fell": 2.0, "rose": 3.0, "fell again": 4.0}
    assert full_batch._hill(np.array([3.0, 2.0, 0.0])) == {"fell": 0.0, "rose": 0.0, "fell again": 3.0}


def test_a_hill_ends_where_losses_are_compared_last() -> None:
    """And a loss that rounding makes 0 is no spike."""
    loss = np.array([2.0, 0.5, 0.09, 0.0, 1e-7])
    found = full_batch._result(
        Observed(loss, np.exp([1.0, 0.0, 0.5, 3.0, 9.0]), np.array([0, 5]), np.ones(2), np.ones(2)), every_epoch=True
    )
    assert found["curve"]["epoch"] == [1, 2, 3, 4, 5]
    assert found["hill"]["rose"] == 0.0 and found["largest_jump"] == 1.0 and found["spikes"] == 0


@pytest.mark.parametrize("micro_batch", [None, 60])
def test_observed_are_loss_and_norm_of_all_images(options: Options, micro_batch: int | None) -> None:
    """Of the first step, by hand: the sum over sqrt(g^2 + eps), less its value at 0; to float32."""
    images = full_batch._images(options)
    count = 120
    images = dataclasses.replace(
        images, train=full_batch.Pixels(images.train.pixels[:count], images.train.labels[:count])
    )
    set_seed(0)
    model = TanhNetwork(64, 8, 10)
    outputs = model(images.train.pixels, images.train.labels)["logits"]
    loss = cross_entropy(outputs, images.train.labels)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    eps = 1e-8
    norm = sum(float(((g.double().square() + eps).sqrt() - eps**0.5).sum()) for g in gradients)
    found = train(model, images, Adam(0.9, 0.99, 1e-3, epochs=2, eps=eps), 0, "cpu", micro_batch)
    assert len(found.loss) == len(found.norm) == 2
    assert found.loss[0] == pytest.approx(loss.item(), rel=1e-4)
    assert found.norm[0] == pytest.approx(norm, rel=1e-4)
    assert found.steps.tolist() == [0, 1, 2] and len(found.test_loss) == 3
    assert 0.5 < found.test_error[0] <= 1


@pytest.mark.parametrize("network", [TANH, RESNET])
def test_a_short_run(options: Options, network: str) -> None:
    c = next(c for c in full_batch.configurations(options) if c["network"] == network)
    found = full_batch.run({**c, "epochs": 12, "lr": 0.02}, options)
    assert np.isfinite(found["at_losses"]["norm"][0]) and found["last_loss"] < 1
    assert found["curve"]["epoch"] == [*range(1, 13)]


@pytest.mark.parametrize("network", ["resnet50", "resnet101"])
def test_the_papers_networks_on_cifar_100(options: Options, tmp_path: Path, network: str) -> None:
    write_cifar100(tmp_path / "cifar", count=6)
    own = {"data_dir": str(tmp_path / "cifar"), "network": network, "lr": 1e-4, "epochs": 1}
    own |= {"train_images": 4, "micro_batch": 2}
    given = dataclasses.replace(options, full=True, own=tuple(own.items()))
    runs = full_batch.configurations(given)
    assert len(runs) == 3 * 8 and {c["network"] for c in runs} == {network}
    found = full_batch.run(runs[0], given)
    assert found["curve"]["epoch"] == [1] and found["at_end"]["norm"] > 0
    layers = [m for m in full_batch._network(network, full_batch._images(given)).modules() if hasattr(m, "kernel_size")]
    assert len(layers) == {"resnet50": 53, "resnet101": 104}[network]  # with four shortcuts


def test_full_verdicts_are_of_one_network(options: Options) -> None:
    own = {"data_dir": "cifar", "network": "resnet50", "lr": 1e-4, "epochs": 9, "train_images": 4, "micro_batch": 2}
    given = dataclasses.replace(options, full=True, own=tuple(own.items()), claim="full_batch")
    rows = [{"configuration": c, "result": row(c)} for c in full_batch.configurations(given)]
    full_batch.draw(rows, given)
    found = full_batch.judge(rows, given)
    assert found.verdict is CONFIRMED and "resnet50" in found.measured and TANH not in found.measured
    assert "an effect of finite steps" not in found.parts


@pytest.mark.parametrize(("images", "micro_batch"), [(8, 2), (5, 2)])
def test_batches_that_do_not_fit(options: Options, tmp_path: Path, images: int, micro_batch: int) -> None:
    write_cifar100(tmp_path / "cifar", count=6)
    own = (("data_dir", str(tmp_path / "cifar")), ("train_images", images), ("micro_batch", micro_batch))
    with pytest.raises(RecipeError, match=f"at most 6, got {images} and {micro_batch}"):
        full_batch._images(dataclasses.replace(options, full=True, own=own))


def test_an_unknown_network(options: Options) -> None:
    with pytest.raises(ValueError, match="resnet50"):
        full_batch.networks(dataclasses.replace(options, full=True, own=(("network", "resnet500"),)))
