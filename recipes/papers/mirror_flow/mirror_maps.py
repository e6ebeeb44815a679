"""Claim 1: gradient flow with explicit regularisation is a time-dependent mirror flow (TMF Eqs. 5-9, Thms. 3.1-3.3).

    python recipes/claim.py mirror_maps
    python recipes/papers/mirror_flow/mirror_maps.py

Gradient flows on f(g(w)) + alpha_t h(w) are simulated with an error of 1e-12 a step, for eight parametrisations;
alpha_t varies with time and ends at 0. Each flow is compared with `hf_pdyn.theory.mirror`, whose formulas hold, and
with what the paper prints. Then the three effects of Fig. 1 are read off the potentials R_a. Quick and full are the
same, and take seconds: nothing here is trained.

The paper's: the parametrisations, regularisers and formulas. Ours: all numbers.
"""

import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

if __name__ == "__main__":  # run as a file, this is the module of its name, found from recipes/
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    from _common.entry_point import run_recipe
    from papers import claim

    run_recipe(lambda: claim(Path(__file__).stem).main(sys.argv[1:]))
    sys.exit()

import numpy as np
import torch
from scipy.optimize import brentq
from torch import Tensor

from hf_pdyn.sweep import statistics
from hf_pdyn.sweep.outcome import Identity, Outcome
from hf_pdyn.theory import mirror
from hf_pdyn.theory.mirror import as_printed
from papers._claims import figures
from papers._claims.claim import Claim
from papers._claims.options import Options
from papers._claims.rows import Configuration, Result, Row, chosen
from papers._claims.verdict import Part, Verdict
from papers.mirror_flow._flows import Flow, least, settled, simulate, start

TOLERANCE = 1e-8
END_TOLERANCE = 1e-6
BOUND = 0.05
A_VALUES = (0.0, -0.1, -0.2, -0.3, -0.4, -0.5)
SWITCHED_OFF, END, SETTLED = 2.0, 5000.0, 1e-11
POWERS = {"u^4-v^4": 2, "u^6-v^6": 3, "u^14-v^14": 7}
FLOWS = ("m*w", "m*w, half", "u^2-v^2, half", *POWERS, "log u-log v", "quadratic forms")
"""half: with half the sum of squares as h, which is what the weight decay of optimizers is the gradient of."""
SHAPES = ("m*w", "u^4-v^4", "log u-log v")

RULE = f"""Identities, each of a largest relative error over maps, seeds and times, with a tolerance of {TOLERANCE:g}:
along simulated flows grad R_a(x_t) is -integral of grad f (the verdict); dR_a/da is -h; what the paper prints, in place
of the former, by formula (for Eq. 9 with the better of two readings of its constants); the minimum of Eq. 8 is that of
R_a; the printed R_a of log u-log v for u0 = v0 is the printed one for any u0 and v0. With a tolerance of
{END_TOLERANCE:g}: after the shutoff the flow ends where R_a is least among all solutions (Theorem 3.2). With a
tolerance of 0: the share of points (x, a) at which R_a is contracting where it should not be, or is not where it
should: everywhere for m*w and u^4-v^4, for 2 cosh x <= u0^2 + v0^2 + 4a for log u-log v. Effects of Fig. 1, over random
initialisations, as a falls from 0 to {A_VALUES[-1]:g}: the type of bias is the exponent x R_a'(x) / (R_a(x) - R_a(0))
at x = 1 from a balanced initialisation, 2 for L2 and 1 for L1; the position is log|argmin R_a|; the range is the log
width of the domain of mu. Bound: {BOUND:g} in each. {statistics.TREND_RULE} {statistics.EFFECT_RULE}"""


def configurations(given: Options) -> list[Configuration]:
    """A flow for each map, and the shape of some potentials."""
    flows = [{"check": "flow", "map": name, "end": END} for name in FLOWS]
    shapes = [{"check": "shape", "map": name, "a": list(A_VALUES)} for name in SHAPES]
    return [one | {"seed": seed} for one in flows + shapes for seed in range(given.seeds)]


def run(configuration: Configuration, _: Options) -> Result:
    """Simulate a flow, or measure a potential."""
    generator = torch.Generator().manual_seed(configuration["seed"])
    if configuration["check"] == "shape":
        return _shape(configuration["map"], configuration["a"], generator)
    return _flow(configuration["map"], configuration["end"], generator)


def make(name: str, generator: torch.Generator, n: int = 4, *, balanced: bool = False) -> mirror.MirrorMap:
    """A map of n coordinates from a random initialisation; balanced: one with x = 0."""

    def between(low: float, high: float, size: int = n) -> Tensor:
        return low + (high - low) * torch.rand(size, generator=generator, dtype=torch.float64)

    def pair(low: float, high: float) -> tuple[Tensor, Tensor]:
        u0 = between(low, high)
        return u0, u0 if balanced else between(low, high)

    if name.startswith("m*w"):
        w0 = torch.zeros(n, dtype=torch.float64) if balanced else between(-0.6, 0.6)
        return mirror.Product(between(0.9, 1.3), w0, scale=0.5 if name.endswith("half") else 1.0)
    if name == "u^2-v^2, half":
        return mirror.SquareDifference(*pair(0.6, 1.0), scale=0.5)
    if name in POWERS:
        return mirror.PowerDifference(*pair(0.6, 0.9), POWERS[name])
    if name == "log u-log v":
        return mirror.LogDifference(*pair(1.2, 1.7))
    basis, _ = torch.linalg.qr(torch.randn(4, 4, generator=generator, dtype=torch.float64))
    A = torch.stack([basis @ between(-1, 1, 4).diag() @ basis.mT for _ in range(2)])  # noqa: N806
    return mirror.QuadraticForms(A, basis @ between(0, 1.5, 4).diag() @ basis.mT, between(1, 1.5, 4))


def alpha(t: float) -> float:
    """A strength of regularisation that varies, until it is switched off."""
    return 0.15 * (1 + 0.8 * math.sin(5 * t)) if t <= SWITCHED_OFF else 0.0


def _flow(name: str, end: float, generator: torch.Generator) -> Result:
    of = make(name, generator)
    x0 = of.g(start(of))
    n = len(x0)
    # Half as many equations as unknowns, whose solutions include an x that the map can reach.
    Z = torch.randn(n // 2, n, generator=generator, dtype=torch.float64)  # noqa: N806
    push = torch.randn(n, generator=generator, dtype=torch.float64)
    y = Z @ (of.x(0.3 * push, -0.1) if name == "quadratic forms" else x0 + 0.5 * push)

    def grad_f(x: Tensor) -> Tensor:
        return Z.mT @ (Z @ x - y)

    on = simulate(of.g, of.h, start(of), grad_f=grad_f, alpha=alpha, times=np.linspace(0, SWITCHED_OFF, 21))
    # In a run of its own, as the solver's error grows where alpha jumps.
    off = settled(of.g, on.w[-1], grad_f=grad_f, within=SETTLED, until=end)
    a = float(on.a[-1])
    flow = Flow(*(torch.cat(parts) for parts in zip(on, off._replace(mu=on.mu[-1] + off.mu, a=a + off.a), strict=True)))
    mu = torch.stack([of.gradient(x, float(at)) for x, at in zip(flow.x, flow.a, strict=True)])
    return {
        "gradient_error": _relative(mu, flow.mu),
        "slope_error": max(_slope_error(of, x, float(at)) for x, at in zip(flow.x, flow.a, strict=True)),
        "printed_error": _printed_error(of, flow),
        "end_error": _relative(off.x[-1], least(of, [a], Z, y)),
        "a": a,
        "largest_mu": float(flow.mu.abs().max()),
    }


def _relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def _slope_error(of: mirror.MirrorMap, x: Tensor, a: float) -> float:
    """The error of dR_a/da = -h, relative to the size of what h sums."""
    at = torch.tensor(a, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(of.potential(x, at), at)
    h = of.h(of.w(of.gradient(x, a), a))
    return float((slope + h).abs() / (1 + h.abs()))


def _printed_error(of: mirror.MirrorMap, flow: Flow) -> float | None:
    """The error of the paper's formula in place of grad R_a, or, for Eq. 9, of x."""
    if isinstance(of, mirror.PowerDifference):
        return min(_relative(_eq_9(of, flow, factor), flow.x) for factor in (1, of.K))
    gradient = _printed_gradient(of)
    if gradient is None:
        return None
    return _relative(torch.stack([gradient(x, float(a)) for x, a in zip(flow.x, flow.a, strict=True)]), flow.mu)


def _eq_9(of: mirror.PowerDifference, flow: Flow, factor: int) -> Tensor:
    """With c_u = factor u0^(2-2k): the paper does not say, and with factor K at least x0 is right."""
    found = [
        as_printed.printed_power_difference(mu, float(a), factor * of.c_u, factor * of.c_v, of.k)
        for mu, a in zip(flow.mu, flow.a, strict=True)
    ]
    return torch.stack(found)


def _printed_gradient(of: mirror.MirrorMap) -> Callable[[Tensor, float], Tensor] | None:
    if isinstance(of, mirror.Product):
        u0, v0 = (of.m0 + of.w0) / 2**0.5, (of.m0 - of.w0) / 2**0.5
        return lambda x, a: torch.func.grad(as_printed.printed_product)(x, a, u0, v0)
    if isinstance(of, mirror.SquareDifference):
        return lambda x, a: torch.func.grad(as_printed.printed_product)(x, a, of.u0, of.v0)
    if isinstance(of, mirror.LogDifference):
        return lambda x, a: torch.func.grad(as_printed.printed_log_difference)(x, a, of.u0, of.v0)
    return None


def _shape(name: str, a_values: Sequence[float], generator: torch.Generator) -> Result:
    balanced, of = make(name, generator, 1, balanced=True), make(name, generator, 1)
    one, x = torch.ones(1, dtype=torch.float64), torch.linspace(-3, 3, 201, dtype=torch.float64)[:, None]
    widths = [float((high - low)[0]) for low, high in map(of.domain, a_values)]
    return {
        "type": [
            float(balanced.gradient(one, a)[0] / (balanced.potential(one, a) - balanced.potential(0 * one, a)))
            for a in a_values
        ],
        "minimum": [float(of.minimum(a)[0]) for a in a_values],
        "width": widths if math.isfinite(widths[0]) else None,
        "misjudged": float(np.mean([(of.contracting(x, a) != _should_contract(of, x, a)).numpy() for a in a_values])),
        "contracting": float(np.mean([of.contracting(x, a).numpy() for a in a_values])),
        **_printed_shape(balanced, of, a_values),
    }


def _printed_shape(balanced: mirror.MirrorMap, of: mirror.MirrorMap, a_values: Sequence[float]) -> Result:
    """Where Eq. 8 is least; how far the two printed forms of log u-log v are apart."""
    if isinstance(of, mirror.Product):
        gradient = _printed_gradient(of)
        assert gradient is not None
        return {"printed_minimum": [brentq(lambda x, a=a: float(gradient(_f64(x), a)), -10, 10) for a in a_values]}
    if isinstance(balanced, mirror.LogDifference):
        x, beta = torch.linspace(-3, 3, 7, dtype=torch.float64)[:, None], float(balanced.u0)
        pairs = [
            (
                as_printed.printed_balanced_log_difference(x, a, beta),
                as_printed.printed_log_difference(x, a, balanced.u0, balanced.v0),
            )
            for a in a_values
        ]
        return {"balanced_error": max(_relative(*pair) for pair in pairs)}
    return {}


def _should_contract(of: mirror.MirrorMap, x: Tensor, a: float) -> Tensor:
    if isinstance(of, mirror.LogDifference):
        return (2 * torch.cosh(x) <= of.u0.square() + of.v0.square() + 4 * a)[:, 0]
    return torch.ones(len(x), dtype=torch.bool)


PRINTED = {
    "Eq. 8 as printed, m*w": ("m*w", "m*w, half"),
    "Eq. 8 as printed, u^2-v^2 with half the squares": ("u^2-v^2, half",),
    "Eq. 9 as printed": tuple(POWERS),
    "log u-log v as printed": ("log u-log v",),
}
"""By formula: the maps that it is printed for, or is right for."""
EFFECTS = {
    "type of bias: m*w from L2 to L1": ("m*w", "type", -1),
    "type of bias: u^4-v^4 from L2 to L1": ("u^4-v^4", "type", -1),
    "type of bias: log u-log v from L1 to L2": ("log u-log v", "type", +1),
    "position: m*w towards 0": ("m*w", "minimum", -1),
    "position: u^4-v^4 towards 0": ("u^4-v^4", "minimum", -1),
    "position: log u-log v towards 0": ("log u-log v", "minimum", -1),
    "range: the domain of mu of u^4-v^4 shrinks": ("u^4-v^4", "width", -1),
}
"""By effect: its map, what of the shape, and the claimed direction as a falls."""


def largest(rows: Sequence[Row], name: str, maps: Sequence[str] = FLOWS) -> float:
    """An error, over flows; NaN where one is missing."""
    found = [row["result"][name] for map_ in maps for row in chosen(rows, check="flow", map=map_)]
    return max((math.nan if value is None else value for value in found), key=lambda value: (value != value, value))


def change(rows: Sequence[Row], name: str, shape: str) -> statistics.Mean:
    """How the shape of a map's potential changes as a falls."""
    found = np.array([row["result"][shape] for row in chosen(rows, check="shape", map=name)], float).T
    return statistics.trend(A_VALUES, found if shape == "type" else np.log(np.abs(found)))


def judge(rows: Sequence[Row], given: Options) -> Verdict:
    """By RULE."""
    held = Identity(largest(rows, "gradient_error"), TOLERANCE)
    end = np.mean([row["result"]["a"] for row in chosen(rows, check="flow")])
    effects: dict[str, tuple[statistics.Mean, Outcome]] = {}
    for name, (map_, shape, direction) in EFFECTS.items():
        found = change(rows, map_, shape)
        effects[name] = found, statistics.effect(found, BOUND, direction=direction)
    return Verdict(
        number=1,
        claim="grad R_a(x_t) = -integral of grad f along flows with explicit regularisation, by formulas that hold",
        paper="Theorem 3.1, an identity; Eqs. 5 to 9 have it for m*w and u^2k-v^2k, Appendix B.1 for log u-log v",
        measured=f"eight maps, {given.seeds} random problems each, from a = 0 to {end:.2f} and on without decay",
        verdict=held,
        reason="Eq. 8 is the potential of u^2-v^2 with half the squares as h: m*w has a half for its quarter, and "
        "e^(4a) for its 2 e^(2a). Eq. 9 falls with mu, so it is the gradient of no convex function. The logs have "
        "the sign that a := +integral of alpha needs.",
        parts={
            "dR_a/da = -h (ours)": Part(Identity(largest(rows, "slope_error"), TOLERANCE), "along the same flows"),
            **{
                name: Part(Identity(largest(rows, "printed_error", maps), TOLERANCE), _on_maps(rows, maps))
                for name, maps in PRINTED.items()
            },
            "the minimum of Eq. 8, m*w": _minimum_of_eq_8(rows),
            "log u-log v as printed for u0 = v0": _balanced(rows),
            "Theorem 3.2: the flow's end is the solution where R_a is least": Part(
                Identity(largest(rows, "end_error"), END_TOLERANCE), "found without the flow, by Newton's method"
            ),
            "where R_a is contracting": _contracting(rows),
            **{name: Part(outcome, _told(rows, name, found)) for name, (found, outcome) in effects.items()},
        },
        figures={
            **{f"{name}, {error}": largest(rows, error, [name]) for name in FLOWS for error in _ERRORS},
            **{name: str(found) for name, (found, _) in effects.items()},
        },
    )


_ERRORS = ("gradient_error", "slope_error", "end_error", "printed_error")


def _on_maps(rows: Sequence[Row], maps: Sequence[str]) -> str:
    return "off by " + ", ".join(f"{largest(rows, 'printed_error', [one]):.1e} ({one})" for one in maps)


def _minimum_of_eq_8(rows: Sequence[Row]) -> Part:
    found = [row["result"] for row in chosen(rows, check="shape", map="m*w")]
    factors = np.array([one["printed_minimum"] for one in found]) / [one["minimum"] for one in found]
    told = f"{factors[:, 0].mean():.3g} times too far out at a = 0, {factors[:, -1].mean():.3g} at a = {A_VALUES[-1]:g}"
    return Part(Identity(float(np.abs(factors - 1).max()), TOLERANCE), told)


def _balanced(rows: Sequence[Row]) -> Part:
    error = max(row["result"]["balanced_error"] for row in chosen(rows, check="shape", map="log u-log v"))
    return Part(Identity(error, TOLERANCE), "against the printed form for any u0 and v0: a quarter for a half")


def _contracting(rows: Sequence[Row]) -> Part:
    found = {name: [row["result"] for row in chosen(rows, check="shape", map=name)] for name in SHAPES}
    misjudged = max(one["misjudged"] for of_map in found.values() for one in of_map)
    told = ", ".join(f"{name} {np.mean([one['contracting'] for one in of]):.0%}" for name, of in found.items())
    return Part(Identity(misjudged, 0.0), f"share of points with |x| <= 3 and a from 0 to {A_VALUES[-1]:g}: {told}")


def _told(rows: Sequence[Row], effect: str, found: statistics.Mean) -> str:
    name, shape, _ = EFFECTS[effect]
    of_seeds = np.abs([row["result"][shape] for row in chosen(rows, check="shape", map=name)])
    ends = " to ".join(f"{of_seeds[:, i].mean():.3g}" for i in (0, -1))
    what = {"type": "exponent", "minimum": "|argmin R_a|", "width": "width"}[shape]
    logged = "" if shape == "type" else "log "
    return f"{what} {ends} from a = 0 to {A_VALUES[-1]:g}; change of {logged}{what} {found}"


A_DRAWN = (0.0, -0.25, -0.5, -1.0)
COLOURS = dict(zip(SHAPES, ("C0", "C1", "C2"), strict=True))


def draw(rows: Sequence[Row], given: Options) -> None:
    """Figs. 9a, 9b and 7 by the formulas that hold, and the effects of Fig. 1; apart from these, all errors."""
    drawn = {
        "m w from x = 1 (Fig. 9a)": mirror.Product(_f64(1.5), _f64(1 / 1.5)),
        "$u^4-v^4$ from x = 0 (Fig. 9b)": mirror.PowerDifference(_f64(0.8), _f64(0.8), 2),
        "log u - log v (Fig. 7)": mirror.LogDifference(_f64(1.5), _f64(1.5)),
    }
    with figures.panels(2, 3, height=2.4) as (figure, grid):
        for axes, (title, of) in zip(grid[0], drawn.items(), strict=True):
            _draw_potentials(axes, of)
            axes.set_title(title)
        grid[0, 0].set_ylabel("$R_a(x)$ - min $R_a$")
        for axes, shape in zip(grid[1], ("type", "minimum", "width"), strict=True):
            _draw_shape(axes, rows, shape)
            axes.set(xlabel="-a, which grows with time")
        _draw_printed_width(grid[1, 2])
        grid[1, 0].set(title="type of bias", ylabel="exponent of $R_a$ at x = 1", ylim=(0.95, 2.05))
        grid[1, 1].set(title="position", ylabel="|argmin $R_a$|, at a = 0: 1")
        grid[1, 2].set(title=r"range of $\mu$", ylabel="width, at a = 0: 1")
        figures.legend(figure)
        figures.save(figure, given.directory / "figure.png")
    with figures.panels(1, 1, height=2.3) as (figure, ((axes,),)):
        _draw_errors(axes, rows)
        figures.legend(figure)
        figures.save(figure, given.directory / "errors.png")


def _f64(value: float) -> Tensor:
    return torch.tensor([value], dtype=torch.float64)


def _draw_potentials(axes: figures.Axes, of: mirror.MirrorMap) -> None:
    x = torch.linspace(-3, 3, 301, dtype=torch.float64)[:, None]
    for a, colour in zip(A_DRAWN, figures.colours(len(A_DRAWN)), strict=True):
        least = of.minimum(a)
        axes.plot(x[:, 0], of.potential(x, a) - of.potential(least, a), color=colour, label=f"a = {a:g}")
        axes.plot(least, [0.0], "o", color=colour, markersize=4)
    axes.set(xlabel="x", ylim=(-0.1, 3.1))


def _draw_shape(axes: figures.Axes, rows: Sequence[Row], shape: str) -> None:
    for name, colour in COLOURS.items():
        found = [row["result"][shape] for row in chosen(rows, check="shape", map=name)]
        if None in found:
            continue
        values = np.abs(np.array(found))
        figures.band(
            axes,
            [-a for a in A_VALUES],
            values if shape == "type" else values / values[:, :1],
            color=colour,
            label=name,
        )


def _draw_printed_width(axes: figures.Axes) -> None:
    c = _f64(0.75**-2)
    ends = [as_printed.printed_power_difference_domain(a, c, c) for a in A_VALUES]
    widths = [float((high - low)[0]) for low, high in ends]
    axes.plot(
        [-a for a in A_VALUES],
        np.array(widths) / widths[0],
        "--",
        color=COLOURS["u^4-v^4"],
        label="u^4-v^4, as printed",
    )


def _draw_errors(axes: figures.Axes, rows: Sequence[Row]) -> None:
    for place, name in enumerate(FLOWS):
        for error, marker, colour in (("gradient_error", "o", "C0"), ("printed_error", "X", "C3")):
            found = [row["result"][error] for row in chosen(rows, check="flow", map=name)]
            if None not in found:
                label = {"gradient_error": "with the formulas that hold", "printed_error": "as printed"}[error]
                axes.plot(
                    found, [place] * len(found), marker, color=colour, alpha=0.6, label=label if place == 0 else None
                )
    axes.axvline(TOLERANCE, color="0.5", linestyle="--", linewidth=1)
    axes.set(xscale="log", title="grad $R_a(x_t)$ against -∫ grad f dt along flows", xlabel="largest relative error")
    axes.set_yticks(range(len(FLOWS)), FLOWS)
    axes.invert_yaxis()


CLAIM = Claim(__name__, __doc__, RULE, configurations, run, judge, draw)
