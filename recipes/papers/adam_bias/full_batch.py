"""Claim 5: full-batch Adam, the perturbed one-norm, and generalisation (IBA section 6, Figs. 4 to 6).

    python recipes/claim.py full_batch
    python recipes/claim.py full_batch --full --device cuda --data_dir cifar-10-batches-py --network resnet50

In the stable regime, a larger rho should raise the perturbed one-norm of the gradient and the test error, a larger
beta should lower both, and the norm should fall, rise and fall over epochs. Norms are taken without their floor, d
sqrt(eps) of d parameters, at the same numbers of epochs as in the paper, and at the same training losses: of two runs
at the same epoch, the one that has come farther has the smaller gradient, whatever its bias. Quick: a tanh network
and a small ResNet on 180 of scikit-learn's digits. A sweep over learning rates asks whether the effect is one of
finite steps, and one setting is in the spike regime, which the paper leaves out. Full: ResNet-50 or ResNet-101 on
CIFAR.

The paper's: full batch, p = 1/2, what is swept, and the networks and data of a full run. Ours: all values, quick
networks and data, equal losses, and the sweep over learning rates.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import nn
from transformers import set_seed

from _common.entry_point import RecipeError
from hf_pdyn.common.errors import check_choice
from hf_pdyn.sweep import statistics
from hf_pdyn.sweep.outcome import ALL_RULE, Outcome, all_of
from papers._claims import figures
from papers._claims.claim import Claim
from papers._claims.images import Images, Pixels, cifar, embedded_digits
from papers._claims.networks import RESNET50, RESNET101, ResNetSize, TanhNetwork, resnet
from papers._claims.options import DATA_DIR, Option, Options
from papers._claims.rows import Configuration, Result, Row, chosen
from papers._claims.verdict import Part, Verdict
from papers.adam_bias._full_batch import Adam, Observed, train

TANH, RESNET = "tanh network", "small ResNet"
SIZES = {"resnet50": RESNET50, "resnet101": RESNET101}
OPTIONS = (
    DATA_DIR,
    Option("network", f"one of {', '.join(SIZES)}", full="resnet50"),
    Option("lr", "the learning rate", type=float, full=1e-4),
    Option("epochs", "steps of training, each on all images", type=int, full=1000),
    Option("train_images", "how many images the batch has", type=int, full=50_000),
    Option("micro_batch", "how many of them go through the network at a time; BatchNorm's batch", type=int, full=500),
)
BETA, RHO = 0.9, 0.98
SWEEPS: dict[str, dict[float, tuple[float, float]]] = {
    "rho": {rho: (BETA, rho) for rho in (0.9, 0.95, 0.98, 0.99)},
    "beta": {beta: (beta, RHO) for beta in (0.0, 0.5, 0.8, 0.9, 0.95)},
}
SETTINGS = sorted({betas for sweep in SWEEPS.values() for betas in sweep.values()})
DIRECTIONS = {"rho": +1, "beta": -1}
"""What the paper says happens to the norm, and to the test error."""
QUICK = {TANH: {"lr": 2.5e-4, "epochs": 750}, RESNET: {"lr": 1e-3, "epochs": 300}}
SWEEP, RATES, SPIKES = "sweep", "learning rates", "spike regime"
LRS = (2e-3, 1e-3, 5e-4, 2.5e-4, 1.25e-4)
"""Learning rates of the tanh network with two values of rho; all runs last as long in epochs times learning rate."""
PAIR = (0.9, 0.95)
SPIKING: dict[str, Any] = {"beta": 0.0, "rho": 0.9, "lr": 2e-2, "eps": 1e-16, "epochs": 600}
"""Settings of the tanh network: decay rates of the moments far apart, and training until gradients are tiny."""
LEVELS = (1.0, 0.5, 0.25, 0.1)
"""Training losses at which runs are compared."""
STABLE, SMALLEST_LOSS = 1.2, 1e-6
"""How far a loss may rise above its smallest so far; the smallest that float32 tells from 0 well."""
TESTS = ("test error", "test loss")
BOUNDS = {"norm": 0.01, "test error": 0.005, "test loss": 0.01, "hill": 0.01}
SHARE, TOLERANCE = 0.5, 0.25
RULE = f"""In the stable regime, where the loss never rises above {STABLE:g} times its smallest so far (a run in which
it does has no number), the log of the perturbed one-norm less its floor rises with rho and falls with beta: trends,
over -log10 of 1 - rho or 1 - beta, in the mean over the training losses {", ".join(f"{level:g}" for level in LEVELS)}
as they are first reached, and after the last epoch, in each network. Bound: {BOUNDS["norm"]:g} of that log. Parts.
The conjecture on generalisation, of each network: the test error does the same, bound {BOUNDS["test error"]:g}; and
the log of the test loss does, bound {BOUNDS["test loss"]:g}. Rise and fall, in each ResNet: until the last of those
losses the norm falls, then rises, then falls, each an effect on its log in the mean over settings; and its largest
rise is a trend that rises with rho, and one that falls with beta; bound {BOUNDS["hill"]:g}. Finite steps, in the tanh
network: from rho = {PAIR[0]:g} to {PAIR[1]:g} the norm at equal losses changes, with a learning rate of
{LRS[-1]:g}, by {SHARE:g} of what it does with {LRS[-2]:g}: the ratio, seed by seed, agrees with that within
{TOLERANCE:g}. {ALL_RULE} {statistics.TREND_RULE} {statistics.EFFECT_RULE} {statistics.AGREEMENT_RULE}"""


def configurations(given: Options) -> list[Configuration]:
    """The sweeps of all networks; of a quick check also that of learning rates, and the spike regime."""
    runs: list[tuple[str, str, dict[str, Any]]] = [
        (network, SWEEP, {"beta": beta, "rho": rho}) for network in networks(given) for beta, rho in SETTINGS
    ]
    if not given.full:
        usual = QUICK[TANH]
        others = [{"lr": lr, "epochs": round(usual["lr"] * usual["epochs"] / lr)} for lr in LRS if lr != usual["lr"]]
        runs += [(TANH, RATES, {"beta": BETA, "rho": rho, **other}) for other in others for rho in PAIR]
        runs.append((TANH, SPIKES, SPIKING))
    return [
        {
            "network": network,
            "role": role,
            **_data(given),
            "eps": 1e-8,
            **_training(given, network),
            **own,
            "seed": seed,
        }
        for network, role, own in runs
        for seed in range(given.seeds)
    ]


def networks(given: Options) -> list[str]:
    """The networks of this size."""
    if given.full:
        check_choice("--network", given["network"], list(SIZES))
        return [given["network"]]
    return list(QUICK)


def _data(given: Options) -> Configuration:
    if not given.full:
        return {"data": "digits", "test_share": 0.9}
    return {"data": given["data_dir"], **{name: given[name] for name in ("train_images", "micro_batch")}}


def _training(given: Options, network: str) -> Configuration:
    return {name: given[name] for name in ("lr", "epochs")} if given.full else QUICK[network]


def run(configuration: Configuration, given: Options) -> Result:
    """Train one network; return what rules and figures read."""
    images = _images(given)
    set_seed(configuration["seed"])
    adam = Adam(**{field.name: configuration[field.name] for field in dataclasses.fields(Adam)})
    model = _network(configuration["network"], images)
    observed = train(model, images, adam, configuration["seed"], given.device, configuration.get("micro_batch"))
    return _result(observed, every_epoch=configuration["role"] == SPIKES)


@functools.cache
def _images(given: Options) -> Images:
    if not given.full:
        return embedded_digits(range(10), _data(given)["test_share"])
    images, count = cifar(given["data_dir"]), given["train_images"]
    if count > len(images.train) or count % given["micro_batch"]:
        raise RecipeError(
            f"--train_images must be a multiple of --micro_batch and at most {len(images.train)}, got {count} and"
            f" {given['micro_batch']}; choose others"
        )
    first = Pixels(images.train.pixels[:count], images.train.labels[:count])
    return dataclasses.replace(images, train=first)


def _network(name: str, images: Images) -> nn.Module:
    if name == TANH:
        return TanhNetwork(inputs=64, hidden=64, classes=images.classes)
    if name == RESNET:
        return resnet(ResNetSize((8, 16), (1, 1)), images.channels, images.classes)
    return resnet(SIZES[name], images.channels, images.classes, bottleneck=True)


def _result(observed: Observed, *, every_epoch: bool) -> Result:
    """at_losses: at LEVELS. at_end: after the last epoch. hill: logs of how far the norm fell, rose and fell.

    curve: at every epoch, or at some, of which there are fewer the later it is.
    """
    tests = {"test loss": np.log(observed.test_loss), "test error": observed.test_error}
    tested = observed.loss[observed.steps[:-1]]  # of the parameters after so many steps
    at_losses = {"norm": _at_levels(observed.loss, np.log(observed.norm))}
    at_losses |= {name: _at_levels(tested, values[:-1]) for name, values in tests.items()}
    loss = np.maximum(observed.loss, SMALLEST_LOSS)
    jumps = loss / np.minimum.accumulate(loss)
    epochs = len(loss)
    shown = np.arange(1, epochs + 1) if every_epoch else np.unique(np.geomspace(1, epochs, 60).astype(int))
    return {
        "at_losses": at_losses,
        "at_end": {"norm": float(np.log(observed.norm[-1])), **{name: float(of[-1]) for name, of in tests.items()}},
        "last_loss": float(observed.loss[-1]),
        "hill": _hill(np.log(observed.norm[: int(np.argmax(observed.loss <= LEVELS[-1])) or None])),
        "largest_jump": float(jumps.max()),
        "spikes": int((jumps > 2).sum()),
        "curve": {
            "epoch": shown.tolist(),
            "loss": [_short(value) for value in observed.loss[shown - 1]],
            "norm": [_short(value) for value in observed.norm[shown - 1]],
        },
    }


def _at_levels(loss: np.ndarray, values: np.ndarray) -> list[float]:
    """Values where the loss first comes down to each of LEVELS, on a line in its log; NaN where it does not."""
    found = []
    for level in LEVELS:
        (below,) = np.nonzero(loss <= level)
        if not len(below) or below[0] == 0:
            found.append(np.nan)
            continue
        before, after = below[0] - 1, below[0]
        share = np.log(loss[before] / level) / np.log(loss[before] / loss[after])
        found.append(float(values[before] + share * (values[after] - values[before])))
    return found


def _hill(log_norm: np.ndarray) -> dict[str, float]:
    """The largest rise, and what was before and after it."""
    lowest = np.minimum.accumulate(log_norm)
    top = int(np.argmax(log_norm - lowest))
    return {
        "fell": float(log_norm[0] - lowest[top]),
        "rose": float(log_norm[top] - lowest[top]),
        "fell again": float(log_norm[top] - log_norm[-1]),
    }


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def stable(row: Row) -> bool:
    """Whether a run was in the stable regime all the time."""
    return bool((row["result"]["largest_jump"] or np.inf) <= STABLE)


def measured(rows: Sequence[Row], network: str, sweep: str, value: Callable[[Result], float | None]) -> np.ndarray:
    """A number of each result, (values, seeds); NaN outside the stable regime."""
    by_value = [_of(rows, network, betas) for betas in SWEEPS[sweep].values()]
    numbers = [[value(row["result"]) if stable(row) else np.nan for row in of_value] for of_value in by_value]
    return np.array(numbers, float)


def at_losses(name: str) -> Callable[[Result], float | None]:
    """The mean over LEVELS."""
    return lambda result: float(np.mean(np.array(result["at_losses"][name], float)))


def at_end(name: str) -> Callable[[Result], float | None]:
    """After the last epoch."""
    return lambda result: result["at_end"][name]


WHERE = {"at equal losses": at_losses, "after the last epoch": at_end}


def _x(sweep: str) -> list[float]:
    return [-float(np.log10(1 - value)) for value in SWEEPS[sweep]]


def judge(rows: Sequence[Row], given: Options) -> Verdict:
    """By RULE."""
    judged = {network: _judged(rows, network, "norm") for network in networks(given)}
    return Verdict(
        number=5,
        claim="Full-batch Adam: the perturbed one-norm of the gradient rises with rho and falls with beta",
        paper="in the stable regime it does, with ResNet-50 on CIFAR-10, at equal epochs (Figs. 4, 5; no numbers)",
        measured="; ".join(f"{network}: {told}" for network, (_, told) in judged.items()),
        verdict=all_of(outcome for outcome, _ in judged.values()),
        reason="" if given.full else _spikes(rows),
        parts={
            **{
                f"conjecture on generalisation, {name}, {network}": Part(*_judged(rows, network, name))
                for network in networks(given)
                for name in TESTS
            },
            "rise and fall over epochs": _rise_and_fall(rows, given),
            **({} if given.full else {"an effect of finite steps": _finite_steps(rows)}),
        },
        figures={
            f"{network}, {sweep}": {
                f"{name}, {where}": {
                    f"{value:g}": str(statistics.mean_of(of_value))
                    for value, of_value in zip(SWEEPS[sweep], measured(rows, network, sweep, take(name)), strict=True)
                }
                for name in ("norm", *TESTS)
                for where, take in WHERE.items()
            }
            for network in networks(given)
            for sweep in SWEEPS
        },
    )


def _judged(rows: Sequence[Row], network: str, name: str) -> tuple[Outcome, str]:
    """The outcome of all trends of a quantity, over both sweeps and both ways to compare, and each in words."""
    outcomes, told = [], []
    for sweep, (where, take) in itertools.product(SWEEPS, WHERE.items()):
        change = statistics.trend(_x(sweep), measured(rows, network, sweep, take(name)))
        outcomes.append(statistics.effect(change, BOUNDS[name], direction=DIRECTIONS[sweep]))
        told.append(f"{_change(name, change)} with {sweep} {where} ({outcomes[-1]})")
    return all_of(outcomes), ", ".join(told)


def _change(name: str, mean: statistics.Mean) -> str:
    """A change in words: an error in percentage points, a log as a factor."""
    if name == "test error":
        return f"{100 * mean.mean:+.2f} ± {100 * mean.spread:.2f} points"
    return f"{np.exp(mean.mean):.3f} ± {np.exp(mean.mean) * mean.spread:.3f} x"


def _rise_and_fall(rows: Sequence[Row], given: Options) -> Part:
    outcomes, told = [], []
    for network in (network for network in networks(given) if network != TANH):
        for part in ("fell", "rose", "fell again"):
            by_sweep = [measured(rows, network, sweep, _of_hill(part)) for sweep in SWEEPS]
            mean = statistics.mean_of(np.concatenate(by_sweep).mean(0))
            outcomes.append(statistics.effect(mean, BOUNDS["hill"]))
            told.append(f"{part} by {_change('hill', mean)} ({outcomes[-1]})")
        for sweep in SWEEPS:
            change = statistics.trend(_x(sweep), measured(rows, network, sweep, _of_hill("rose")))
            outcomes.append(statistics.effect(change, BOUNDS["hill"], direction=DIRECTIONS[sweep]))
            told.append(f"with {sweep} the rise changes by {_change('hill', change)} ({outcomes[-1]})")
    return Part(all_of(outcomes), f"the norm {', '.join(told)}")


def _of_hill(part: str) -> Callable[[Result], float | None]:
    return lambda result: result["hill"][part]


def changes_by_lr(rows: Sequence[Row]) -> np.ndarray:
    """How the tanh network's log norm at equal losses differs between the two rho of PAIR: (learning rates, seeds)."""
    norm = at_losses("norm")
    by_rho = [
        [[norm(row["result"]) for row in chosen(rows, network=TANH, beta=BETA, rho=rho, lr=lr)] for lr in LRS]
        for rho in PAIR
    ]
    low, high = np.array(by_rho, float)
    return np.array(high - low)


def _finite_steps(rows: Sequence[Row]) -> Part:
    changes = changes_by_lr(rows)
    ratio = statistics.mean_of(changes[-1] / changes[-2])
    by_lr = ", ".join(
        f"{_change('norm', statistics.mean_of(change))} at {lr:g}" for lr, change in zip(LRS, changes, strict=True)
    )
    return Part(
        statistics.agreement(ratio, SHARE, TOLERANCE),
        f"{TANH}, rho {PAIR[0]:g} to {PAIR[1]:g} at equal losses: {by_lr}; ratio of the last two logs {ratio}",
    )


def _spikes(rows: Sequence[Row]) -> str:
    """What those runs did that no rule is about."""
    spiking = [row["result"] for row in chosen(rows, role=SPIKES)]
    above = np.mean([result["spikes"] for result in spiking])
    worst, calm = (
        np.array([row["result"]["largest_jump"] for row in chosen(rows, role=role)], float).max()
        for role in (SPIKES, SWEEP)
    )
    ends = np.array([at_end("test error")(result) for result in spiking], float)
    errors = statistics.mean_of(100 * ends)
    steady = statistics.mean_of(100 * measured(rows, TANH, "rho", at_end("test error")).mean(0))
    setting = ", ".join(f"{name} {value:g}" for name, value in SPIKING.items())
    return (
        f"In the sweeps the loss is at most {calm:.2f} times its smallest so far. In the spike regime ({TANH}, "
        f"{setting}) {above:.0f} steps have more than twice that, the worst {worst:.0e} times it. There the test error "
        f"ends at {errors} %, in the mean over the sweep of rho at {steady} %."
    )


def draw(rows: Sequence[Row], given: Options) -> None:
    """A row of panels for each network and sweep: the norm over epochs and at equal losses, and the test error."""
    panels = list(itertools.product(networks(given), SWEEPS))
    with figures.panels(len(panels), 3, height=2.0) as (figure, grid):
        for of_rho, of_beta in zip(grid[::2], grid[1::2], strict=True):
            of_beta[0].sharey(of_rho[0])
            of_beta[2].sharey(of_rho[2])
        for axes, (network, sweep) in zip(grid, panels, strict=True):
            _draw_epochs(axes[0], rows, network, sweep)
            _draw_losses(axes[1], rows, network, sweep)
            _draw_errors(axes[2], rows, network, sweep)
        figures.legend(figure, columns=6)
        figures.save(figure, given.directory / "figure.png")
    if not given.full:
        _draw_controls(rows, given)


def _draw_epochs(axes: Any, rows: Sequence[Row], network: str, sweep: str) -> None:
    for (value, betas), colour in zip(SWEEPS[sweep].items(), figures.colours(len(SWEEPS[sweep])), strict=True):
        curves = [row["result"]["curve"] for row in _of(rows, network, betas)]
        norm = np.array([curve["norm"] for curve in curves], float).mean(0)
        axes.semilogx(curves[0]["epoch"], norm, color=colour, label=f"{_symbol(sweep)} = {value:g}")
    figures.logarithmic(axes)
    axes.set(title=f"{network}, {_symbol(sweep)}", xlabel="epoch", ylabel="norm less floor")


def _draw_losses(axes: Any, rows: Sequence[Row], network: str, sweep: str) -> None:
    """Over the norm of the setting that both sweeps have, seed by seed."""
    runs = [_of(rows, network, betas) for betas in [(BETA, RHO), *SWEEPS[sweep].values()]]
    logs = np.array([[row["result"]["at_losses"]["norm"] for row in of_value] for of_value in runs], float)
    for ratios, colour in zip(np.exp(logs[1:] - logs[0]), figures.colours(len(logs) - 1), strict=True):
        figures.band(axes, LEVELS, ratios, color=colour, marker="o", markersize=3)
    ylabel = f"over {_symbol('beta')}, {_symbol('rho')} = {BETA:g}, {RHO:g}"
    axes.set(title="norm at equal losses", xlabel="training loss", ylabel=ylabel)
    _logarithmic_x(axes, LEVELS)
    axes.set_xlim(1.2 * LEVELS[0], LEVELS[-1] / 1.2)  # training goes from left to right


def _draw_errors(axes: Any, rows: Sequence[Row], network: str, sweep: str) -> None:
    for (where, take), line in zip(WHERE.items(), ("-", "--"), strict=True):
        errors = 100 * measured(rows, network, sweep, take("test error"))
        style = {"color": "C3", "linestyle": line, "marker": "o", "markersize": 3, "label": where}
        figures.band(axes, range(len(errors)), errors.T, **style)
    axes.set_xticks(range(len(SWEEPS[sweep])), [f"{value:g}" for value in SWEEPS[sweep]])
    axes.set(title="test error, %", xlabel=_symbol(sweep))


def _draw_controls(rows: Sequence[Row], given: Options) -> None:
    """The change of the norm over learning rates; losses in the spike regime, beside those of a stable run."""
    with figures.panels(1, 2, height=2.4) as (figure, ((rates, spikes),)):
        percent = 100 * np.expm1(changes_by_lr(rows))
        label = f"{_symbol('rho')} = {PAIR[1]:g} over {PAIR[0]:g}"
        figures.band(rates, LRS, percent.T, marker="o", markersize=3, label=label)
        line = percent[-1].mean() * np.array(LRS[2:]) / LRS[-1]
        rates.plot(LRS[2:], line, ":", color="0.5", label="in proportion to lr")
        _logarithmic_x(rates, LRS)
        rates.set(title="norm at equal losses, change in %", xlabel="learning rate")
        for row in (chosen(rows, role=SPIKES)[0], _of(rows, TANH, (BETA, RHO))[0]):
            curve, setting = row["result"]["curve"], row["configuration"]
            betas = f"{_symbol('beta')}, {_symbol('rho')} = {setting['beta']:g}, {setting['rho']:g}"
            loss = np.maximum(np.array(curve["loss"], float), SMALLEST_LOSS)
            spikes.semilogy(curve["epoch"], loss, linewidth=0.8, label=f"{betas}, lr = {setting['lr']:g}")
        spikes.set(title="training loss, first seed", xlabel="epoch")
        figures.control([rates, spikes])
        figures.legend(figure)
        figures.save(figure, given.directory / "controls.png")


def _logarithmic_x(axes: Any, ticks: Sequence[float]) -> None:
    axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()


def _symbol(sweep: str) -> str:
    return {"rho": r"$\rho$", "beta": r"$\beta$"}[sweep]


def _of(rows: Sequence[Row], network: str, betas: tuple[float, float]) -> list[Row]:
    return chosen(rows, network=network, role=SWEEP, beta=betas[0], rho=betas[1])


CLAIM = Claim(__name__, __doc__, RULE, configurations, run, judge, draw, options=OPTIONS)
