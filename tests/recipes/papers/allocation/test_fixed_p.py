"""The rules of the claims about fixed p, on results of which it is known what they say."""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from hf_pdyn.sweep.outcome import CONFIRMED, INCONCLUSIVE, NO_EFFECT, OPPOSITE, Outcome
from papers._claims.options import Options
from papers._claims.rows import Row
from papers._claims.stacked_training import Training
from papers.allocation import (
    _curves,
    _fixed_p,
    _setting,
    gradient_ratio,
    hard_samples,
    lr_decay,
    one_curve,
    own_effect,
    sample_losses,
)
from tests.recipes.papers.allocation.made_up import TESTED, Configuration, diverged, network
from tests.recipes.papers.conftest import rows_of
from tests.recipes.papers.judging import judged, options_of

Result = Callable[[Configuration], dict[str, Any]]
MODULES = (gradient_ratio, sample_losses, hard_samples, lr_decay, own_effect, one_curve)


@pytest.fixture
def given(options: Options) -> Options:
    """Enough seeds for an exact permutation to say something."""
    return dataclasses.replace(options, seeds=6)


def exponential(**slopes: float) -> Result:
    """Quantities that go as exp(slope p) from what they usually are."""
    usual = {"ratio": 5.0, "invariant": 30.0, "norm": 20.0, "p50": 0.1, "p95": 3.0, "p99": 6.0}
    return lambda c: network(c, **{name: usual[name] * math.exp(of * c["p"]) for name, of in slopes.items()})


def hard_by(*, p_matters: bool, rate_matters: bool = False) -> Result:
    """Thirty samples of the setting, and ten of the seed."""

    def result(c: Configuration) -> dict[str, Any]:
        of_setting = round(100 * c["p"]) if p_matters else 0
        of_setting += {0.01: 0, 0.03: 20, 0.1: 40, 0.3: 60, 1.0: 80, 3.0: 100}[c["lr"]] if rate_matters else 0
        start, own = 100 + of_setting, (7 * c["seed"]) % 60
        return network(
            c, p50=c["lr"] ** -0.3 * math.exp(-2 * c["p"]), hard=[*range(start, start + 30), *range(own, own + 10)]
        )

    return result


def hard_where_trained(c: Configuration) -> dict[str, Any]:
    """Trained networks agree, the others with nobody: which is no migration between the two most distant p."""
    if c["p"] > 0:
        return network(c, hard=[*range(40)])
    random = np.random.default_rng(c["seed"])
    return network(c, hard=random.permutation(TESTED)[:40].tolist())


def rising(cosine: float, constant: float) -> Result:
    return lambda c: network(c, rise={"cosine": cosine, "constant": constant}[c["lr_scheduler"]])


def own(*, raw: float, matched: float) -> Result:
    """Slopes of G_w/G_b, and nothing else moves."""
    return lambda c: exponential(ratio=raw if c["update_scale"] == "raw" else matched)(c)


def one_variable(left: float) -> Result:
    """p and the learning rate move everything by one variable; `left` is what p does beside it."""

    def result(c: Configuration) -> dict[str, Any]:
        x = 0.5 * math.log(c["lr"]) + 3 * c["p"]
        wave = 0.3 * math.sin(50 * x + c["seed"])
        more = math.exp(left * c["p"])
        return network(
            c,
            p50=0.1 * math.exp(-x),
            norm=20 * math.exp(0.4 * x),
            p95=3 * math.exp(0.1 * x) * more,
            p99=6 * math.exp(0.1 * x) * more,
            accuracy=0.8 - 0.01 * x**2 + 0.2 * left * c["p"],
            ratio=5 * math.exp(-0.3 * x) * more,
            invariant=30 * math.exp(0.2 * x) * more,
            std=1 + 0.0 * wave,
        )

    return result


CASES: list[tuple[ModuleType, Result, Outcome]] = [
    (gradient_ratio, exponential(ratio=-3.0), CONFIRMED),
    (gradient_ratio, exponential(ratio=+3.0), OPPOSITE),
    (gradient_ratio, exponential(ratio=0.0), NO_EFFECT),
    (sample_losses, exponential(p50=-5.0, p95=1.0, p99=1.0), CONFIRMED),
    (sample_losses, exponential(p50=-5.0, p95=-1.0, p99=1.0), OPPOSITE),
    (sample_losses, exponential(p50=+5.0, p95=1.0, p99=1.0), OPPOSITE),
    (sample_losses, exponential(p50=-5.0, p95=0.0, p99=1.0), NO_EFFECT),
    (hard_samples, hard_by(p_matters=True), CONFIRMED),
    (hard_samples, hard_by(p_matters=False), NO_EFFECT),
    (hard_samples, hard_where_trained, CONFIRMED),
    (lr_decay, rising(1.5, 1.0), CONFIRMED),
    (lr_decay, rising(1.5, 1.5), NO_EFFECT),
    (lr_decay, rising(0.7, 0.5), OPPOSITE),
    (own_effect, own(raw=-3.0, matched=-3.0), CONFIRMED),
    (own_effect, own(raw=-3.0, matched=0.0), NO_EFFECT),
    (own_effect, own(raw=-3.0, matched=+3.0), OPPOSITE),
    (own_effect, own(raw=0.0, matched=-3.0), INCONCLUSIVE),
    (one_curve, one_variable(left=1.0), CONFIRMED),
    (one_curve, one_variable(left=0.0), NO_EFFECT),
]
NAMES = [f"{module.CLAIM.name}-{i}" for i, (module, *_) in enumerate(CASES)]


@pytest.mark.parametrize(("module", "result", "expected"), CASES, ids=NAMES)
def test_rule(given: Options, module: ModuleType, result: Result, expected: Outcome) -> None:
    own = options_of(module, given)
    rows = rows_of(list(module.CLAIM.configurations(own)), result)
    found = module.CLAIM.judged(rows, own)
    assert found.verdict == expected, found
    assert found.claim and found.paper and found.rule and found.measured
    module.CLAIM.draw(rows, own)
    assert (own.directory / "figure.png").stat().st_size > 10_000
    found.write(own.directory)
    json.loads((own.directory / "verdict.json").read_text(), parse_constant=pytest.fail)  # JSON has no NaN


@pytest.mark.parametrize("module", MODULES)
def test_a_diverged_run_confirms_nothing(given: Options, module: ModuleType) -> None:
    """Where p = 0.3 diverged, there is no trend; and figures are drawn all the same."""

    def result(c: Configuration) -> dict[str, Any]:
        found = next(result for one, result, _ in CASES if one is module)(c)
        return diverged(found) if c["p"] == 0.3 else found

    own = options_of(module, given)
    rows = rows_of(list(module.CLAIM.configurations(own)), result)
    module.CLAIM.draw(rows, own)
    found = module.CLAIM.judge(rows, own)
    if module not in (hard_samples, one_curve):  # which compare hard samples, and the runs that there are
        assert found.verdict == INCONCLUSIVE
    found.write(own.directory)
    json.loads((own.directory / "verdict.json").read_text(), parse_constant=pytest.fail)


def test_configurations_are_a_run_each(given: Options) -> None:
    for module in MODULES:
        found = [repr(sorted(c.items())) for c in module.CLAIM.configurations(options_of(module, given))]
        assert len(set(found)) == len(found) > 0, module
    counts = {module: len(module.CLAIM.configurations(options_of(module, given))) for module in MODULES}
    assert counts[gradient_ratio] == counts[sample_losses] == 8 * 2 * 6
    # Raw and matched, four learning rates more with p = 0, and both ends at another eps.
    assert counts[own_effect] == 2 * 8 * 2 * 6 + 4 * 6 + 2 * 2 * 6
    assert counts[lr_decay] == 2 * 3 * 2 * 6


def test_the_extremes_are_run_first(given: Options) -> None:
    found = [one["p"] for one in gradient_ratio.configurations(options_of(gradient_ratio, given))]
    assert set(found[: 3 * 2 * 6]) == set(_fixed_p.EXTREMES)


def test_runs_lie_where_other_claims_find_them(given: Options) -> None:
    folders = {
        module: {_setting.folder_of(one) for one in module.CLAIM.configurations(options_of(module, given))}
        for module in MODULES
    }
    assert folders[gradient_ratio] == folders[sample_losses] == {"gradient_ratio"}
    assert folders[lr_decay] == {"gradient_ratio", "lr_decay"}
    assert folders[own_effect] == folders[one_curve] == {"gradient_ratio", "own_effect"}
    assert folders[hard_samples] == {"gradient_ratio", "own_effect", "hard_samples"}


def test_the_growth_of_norms_explains_a_fall(given: Options) -> None:
    """G_w/G_b falls as the norm grows, and the scale-invariant ratio stays."""
    explained = judged(gradient_ratio, dataclasses.replace(given, seeds=3), exponential(ratio=-2.0, norm=2.0))
    assert explained.parts["the fall is the growth of norms (ours)"].verdict is CONFIRMED
    assert explained.parts["norms of convolutions rise with p"].verdict is CONFIRMED
    assert explained.parts["scale-invariant"].verdict is NO_EFFECT
    own = judged(gradient_ratio, dataclasses.replace(given, seeds=3), exponential(ratio=-2.0, invariant=-2.0))
    assert own.parts["the fall is the growth of norms (ours)"].verdict is OPPOSITE
    assert own.parts["scale-invariant"].verdict is CONFIRMED


def test_layers_are_kept_with_the_normalisation_after_them() -> None:
    convolution, normalization = (
        f"resnet.encoder.stages.1.layers.0.layer.1.{of}" for of in ("convolution", "normalization")
    )
    gradients = {f"{convolution}.weight": 5.0, f"{normalization}.weight": 0.6, f"{normalization}.bias": 0.8}
    gradients |= {"classifier.1.weight": 3.0, "classifier.1.bias": 2.0}
    found = _setting.by_layer(gradients, dict.fromkeys(gradients, 7.0))
    assert found == {"stage 1.0 conv 1": (5.0, 1.0, 7.0), "classifier": (3.0, 2.0, 7.0)}
    assert _fixed_p.layer_ratios({"layers": found}) == {"stage 1.0 conv 1": 5.0, "classifier": 1.5}
    assert _fixed_p.layer_ratios({"layers": found}, invariant=True) == {"stage 1.0 conv 1": 35.0, "classifier": 10.5}
    assert _fixed_p.layer_ratios({"layers": {"stem": [1.0, 0.0, 1.0], "classifier": [None, 1.0, 1.0]}}) == {
        "stem": None,
        "classifier": None,
    }


@pytest.mark.parametrize(
    ("epochs", "kept"), [(1, [1]), (8, [*range(1, 9)]), (50, [*range(2, 51, 2)]), (80, [*range(4, 81, 4)])]
)
def test_rows_keep_about_twenty_epochs_and_the_last(epochs: int, kept: list[int]) -> None:
    assert _setting.thinned(range(1, epochs + 1)) == kept


def test_the_papers_own_table_is_one_curve() -> None:
    """What the issue's figures say: R^2 of .9938, .9979, .9984 and .9912."""
    columns = {name: _curves.paper_column(name) for name in ("p50", *sample_losses.TAILS)}
    curve = _curves.along(columns["p50"])
    found = [_curves.r_squared(columns[name], *curve) for name in sample_losses.TAILS]
    assert found == pytest.approx([0.9938, 0.9979, 0.9984, 0.9912], abs=5e-4)


def test_an_exchange_rate() -> None:
    """Where the larger learning rate has the median that the smaller one has at a p that is 0.2 larger."""
    exponents = np.array([0.0, 0.1, 0.2, 0.3, 0.4])
    medians = {0.1: -2 * exponents, 1.0: -2 * (exponents + 0.2)}
    assert _curves.shift_of_p(medians, exponents) == pytest.approx(0.2)
    assert math.isnan(_curves.shift_of_p({0.1: exponents, 1.0: exponents + 9}, exponents))


def test_what_is_left_for_p() -> None:
    random = np.random.default_rng(0)
    x, p = random.normal(size=(2, 40))
    assert _curves.left_for(p, x**2 - x + 0.7 * p, x) == pytest.approx(0.7)
    assert _curves.r_squared(x**2 - x, *_curves.along(x)) == pytest.approx(1)


def test_tails_at_equal_medians(given: Options) -> None:
    """Two learning rates on one curve, and one with a tail of its own."""

    def result(c: Configuration, more: float) -> dict[str, Any]:
        x = math.log(c["lr"]) + 5 * c["p"]
        return network(c, p50=0.1 * math.exp(-x), p99=6 * math.exp(0.1 * x + more * (c["lr"] == 1.0)))

    for more, expected in ((0.0, NO_EFFECT), (0.5, CONFIRMED)):
        found = judged(sample_losses, dataclasses.replace(given, seeds=3), lambda c, more=more: result(c, more))
        assert found.parts["tails differ at equal medians (ours)"].verdict is expected


def test_signs_are_permuted_exactly() -> None:
    assert hard_samples.permutation(np.array([0.1, 0.2, 0.3, 0.2, 0.1, 0.3])) == 2 / 64
    assert hard_samples.permutation(np.array([1.0, -1.0])) == 1
    assert hard_samples.judged(np.array([0.1, 0.2, 0.3, 0.2, 0.1])) is INCONCLUSIVE  # 2 of 32 are above 0.05
    assert hard_samples.judged(np.array([0.1, 0.2, 0.3, 0.2, 0.1, 0.3])) is CONFIRMED


def test_migration_against_a_learning_rate(given: Options) -> None:
    """Learning rates move hard samples by less than these two p do, or by as much."""
    for matters, expected in ((False, CONFIRMED), (True, NO_EFFECT)):
        own = options_of(hard_samples, given)
        result = hard_by(p_matters=True, rate_matters=matters)
        rows = rows_of(list(hard_samples.CLAIM.configurations(own)), result)
        found = hard_samples.judge(rows, own)
        assert found.parts["less than a learning rate's change to the same medians (ours)"].verdict is expected


def test_the_nearest_medians(given: Options) -> None:
    """With median lr^-0.3 exp(-2p), p = -0.4 at lr = 1 is p = 0 at 0.07, and p = 0.3 at 7."""
    own = options_of(hard_samples, given)
    rows = rows_of(list(hard_samples.CLAIM.configurations(own)), hard_by(p_matters=True))
    assert hard_samples.nearest_rates(rows, own, 1.0) == (0.1, 3.0)


def test_equal_loss_is_found_anywhere_in_training() -> None:
    """A constant run whose G_w/G_b follows its loss as the cosine run's does, at other epochs."""
    loss = np.geomspace(2, 0.1, 8)
    cosine, constant = ({"curves": {"loss": l.tolist(), "G_w_over_G_b": (l**-0.5).tolist()}} for l in (loss, loss[::2]))
    assert lr_decay.at_equal_loss(cosine, constant) == pytest.approx(0, abs=1e-6)
    cosine["curves"]["G_w_over_G_b"] = (1.2 * loss**-0.5).tolist()
    assert lr_decay.at_equal_loss(cosine, constant) == pytest.approx(math.log(1.2))
    constant["curves"]["loss"] = (loss[::2] * 100).tolist()
    assert math.isnan(lr_decay.at_equal_loss(cosine, constant))


@pytest.mark.parametrize(
    ("raw", "matched", "expected"),
    [
        (-3.0, 0.0, "the learning rate in disguise"),
        (-3.0, -3.0, "p's own"),
        (-3.0, +3.0, "the learning rate in disguise"),
        (0.0, -3.0, "raw no effect, matched confirmed"),
        (0.0, 0.0, "raw no effect, matched no effect"),
    ],
)
def test_effects_are_told_apart(given: Options, raw: float, matched: float, expected: str) -> None:
    found = judged(own_effect, dataclasses.replace(given, seeds=3), own(raw=raw, matched=matched))
    told = dict(part.split(": ") for part in found.measured.split("; "))
    assert told["G_w/G_b falls"] == expected
    assert told["median test loss falls"] == "raw no effect, matched no effect"


def test_step_sizes_alone_and_eps(given: Options) -> None:
    """G_w/G_b falls with p, and with the learning rate where p is 0; another eps doubles it, and updates follow p."""

    def result(c: Configuration) -> dict[str, Any]:
        raw, times = c["update_scale"] == "raw", 2.0 if c["eps"] == own_effect.LARGE_EPS else 1.0
        ratio = 5 * math.exp(-3 * c["p"]) * c["lr"] ** -0.5 if raw else 5.0
        return network(c, ratio=times * ratio, updates=4 * math.exp(c["p"]))

    found = judged(own_effect, dataclasses.replace(given, seeds=3), result)
    assert found.verdict is NO_EFFECT
    assert found.parts["step sizes alone"].verdict == CONFIRMED
    assert found.parts["prediction 1"].verdict is CONFIRMED
    assert found.parts["eps = 1e-08 is another optimizer"].verdict is CONFIRMED


def test_table_2_has_ours_and_the_papers(given: Options) -> None:
    own = options_of(sample_losses, given)
    rows = rows_of(list(sample_losses.CLAIM.configurations(own)), exponential(p50=-5.0))
    sample_losses.judge(rows, own)
    lines = (own.directory / "table_2.md").read_text().splitlines()
    assert len([line for line in lines if line.startswith("| 0.1 |")]) == 2 * 8
    assert "| 0.01 | -0.4 | 77.6 |" in "\n".join(lines)


def test_a_run_of_the_setting(options: Options) -> None:
    """Of the digits, which are always there; short."""
    words = {"data": "digits", "train_images": 40, "test_images": 30, "width": 2, "epochs": 4, "batch_size": 8}
    given = options_of(gradient_ratio, options)
    given = dataclasses.replace(given, own=tuple((dict(given.own) | words).items()))
    runs = [_setting.configuration(given, Training(p, 0.1, seed), split=seed) for p in (0.0, 0.3) for seed in (0, 1)]
    found = _setting.run_together(runs, given)
    assert [result["curves"]["p"] for result in found] == [[0.0], [0.0], [0.3], [0.3]]
    assert all(list(result["measured"]) == ["2", "4"] for result in found)
    assert found[0]["samples"] == {"train": 40, "test": 30}
    assert len(_fixed_p.layer_ratios(found[0])) == 10
    rows: list[Row] = [{"configuration": one, "result": result} for one, result in zip(runs, found, strict=True)]
    assert np.isfinite(_fixed_p.by_p(rows, _fixed_p.RATIOS["G_w/G_b falls"].value)).all()
    validated = _setting.train(runs[:1], given, tested_on="validation", measured_after=[4])
    assert list(validated[0]["measured"]) == ["4"] and validated[0]["samples"]["test"] == 1000


def test_half_of_the_runs_where_all_find_no_room(options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    done = []

    def train(configurations: list[Any], given: Options, measured_after: list[int]) -> list[Any]:
        assert measured_after == [4, 8]
        if len(configurations) > 2:
            raise torch.OutOfMemoryError
        done.append(len(configurations))
        return configurations

    monkeypatch.setattr(_setting, "train", train)
    monkeypatch.setattr(_setting, "kept", lambda result: result["run"])
    runs = [{"epochs": 8, "run": i} for i in range(7)]
    assert _setting.run_together(runs, options) == [*range(7)]
    assert sum(done) == 7 and max(done) == 2


def test_cifar_in_full(options: Options, tmp_path: Path) -> None:
    """ResNet-18, with crops and flips; cut short."""
    from tests.recipes.cifar import write_cifar100

    write_cifar100(tmp_path / "cifar", count=6)
    own = {option.name: option.full for option in gradient_ratio.CLAIM.options} | {"data_dir": str(tmp_path / "cifar")}
    given = dataclasses.replace(options, full=True, own=tuple(own.items()))
    configuration = gradient_ratio.configurations(given)[0]
    assert (configuration["epochs"], configuration["batch_size"], configuration["network"]["blocks"]) == (
        200,
        128,
        (2,) * 4,
    )
    (result,) = _setting.run_together([configuration | {"epochs": 1, "train_images": 4, "batch_size": 2}], given)
    assert len(_fixed_p.layer_ratios(result)) == 21  # 17 convolutions, three shortcuts, the classifier


def test_a_larger_run_says_so(given: Options) -> None:
    own = options_of(gradient_ratio, given)
    larger = dataclasses.replace(own, own=tuple((dict(own.own) | {"width": 32}).items()))
    for options, size in ((own, "quick"), (larger, "larger")):
        rows = rows_of(list(gradient_ratio.CLAIM.configurations(options)), exponential(ratio=-3.0))
        assert gradient_ratio.CLAIM.judged(rows, options).size == size
