"""Claim 2: which regularisers commute with which parametrisations, and what holds where none does (TMF B.1).

    python recipes/claim.py commutation

Theorem 3.1 asks that the gradient fields of g_1, ..., g_n and h commute. Symbols decide that for ten pairs. Beside
them, flows go through the fields in one order and in the other, to the same integrals mu and a: x is a function of
these, as a mirror flow needs, only where both arrive at the same x. Products of k > 2 factors do not commute with
weight decay. They have a law of their own (ours), which is checked along flows. With it comes a range that does
shrink: under a pull of at most G and decay of strength alpha, x is held where G / alpha is below a threshold. Quick
and full are the same.

The paper's: the condition, and what it says of products and powers. Ours: the further pairs, the flows in two orders,
and all numbers.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import sympy
import torch
from scipy.integrate import solve_ivp
from scipy.special import beta
from torch import Tensor

from hf_pdyn.sweep import statistics
from hf_pdyn.sweep.outcome import ALL_RULE, Identity, all_of
from hf_pdyn.theory.mirror import depth
from hf_pdyn.theory.mirror.commutation import commute, lie_bracket
from papers._claims import figures
from papers._claims.claim import Claim
from papers._claims.options import Options
from papers._claims.rows import Configuration, Result, Row, chosen
from papers._claims.verdict import Part, Verdict
from papers.mirror_flow._flows import simulate

TOLERANCE = 1e-8
APART = 1e-3
DEPTHS = (2, 3, 4, 5)
ALPHA = 0.5
THRESHOLD_TOLERANCE = 0.01

RULE = f"""An identity with a tolerance of 0: the share of pairs for which symbols say otherwise than Corollaries 3.1
and B.1 and Theorem B.3, or flows in two orders that end at the same mu and a are apart by more than {TOLERANCE:g} where
the pair commutes, or by less than {APART:g} where it does not, relative to the largest x, with any seed. Identities of
symbols, with a tolerance of 0, the share of cases in which they fail: all solutions h of g'h'' - g''h' = 0 are c g + d
(Corollary 3.1, which leaves out d); the bracket of x_i and h is a column of h's Hessian (Corollary B.1); the bracket of
Theorem B.3. An identity with a tolerance of {TOLERANCE:g}: x_t = e^(2ka) xhat(muhat_t) for k factors. An identity with
a tolerance of 0: the share of times at which |muhat| is above its bound. Range shrinking (ours): for each k, the
G / alpha above which flows escape, by bisection from random initialisations, over that of theory: expected 1, tolerance
{THRESHOLD_TOLERANCE:g}. {statistics.AGREEMENT_RULE} {ALL_RULE}"""


@dataclass(frozen=True)
class Pair:
    """Functions g_1, ..., g_n and, last, h of positive parameters w; commutes: what the paper says of them."""

    functions: tuple[sympy.Expr, ...]
    w: tuple[sympy.Symbol, ...]
    commutes: bool


def _pairs() -> dict[str, Pair]:
    m, w, z, u, v, x, y = sympy.symbols("m w z u v x y", positive=True)
    k, q = (
        sympy.Matrix(2, 2, sympy.symbols("k:4", positive=True)),
        sympy.Matrix(2, 2, sympy.symbols("q:4", positive=True)),
    )
    logs = sympy.log(u) - sympy.log(v)
    return {
        "m w, squares": Pair((m * w, m**2 + w**2), (m, w), True),
        "u^2-v^2, squares": Pair((u**2 - v**2, u**2 + v**2), (u, v), True),
        "u^4-v^4, fourth powers": Pair((u**4 - v**4, u**4 + v**4), (u, v), True),
        "log u-log v, logs": Pair((logs, sympy.log(u) + sympy.log(v)), (u, v), True),
        "x, linear": Pair((x, y, 2 * x - y), (x, y), True),
        "u^4-v^4, squares": Pair((u**4 - v**4, u**2 + v**2), (u, v), False),
        "log u-log v, squares": Pair((logs, u**2 + v**2), (u, v), False),
        "x, squares": Pair((x, y, x**2 + y**2), (x, y), False),
        "m w z, squares": Pair((m * w * z, m**2 + w**2 + z**2), (m, w, z), False),
        "K'Q of two entries, squares": Pair(((k.T * q)[0], (k.T * q)[1], sum(s**2 for s in (*k, *q))), (*k, *q), False),
    }


PAIRS = _pairs()
SEPARABLE = ("u**2", "u**4", "u**6", "log(u)", "exp(u)")
"""Functions g of one parameter, for Corollary 3.1."""


def configurations(given: Options) -> list[Configuration]:
    """What symbols decide, once; flows for every seed."""
    pairs = [{"check": "symbols", "pair": name, "seed": 0} for name in PAIRS]
    laws = [{"check": "separable", "g": g, "seed": 0} for g in SEPARABLE]
    laws += [{"check": "linear", "n": n, "seed": 0} for n in (1, 2, 3)]
    laws += [{"check": "decay of a product", "k": k, "seed": 0} for k in DEPTHS]
    flows: list[Configuration] = [{"check": "order", "pair": name} for name in PAIRS]
    flows += [{"check": check, "k": k, "alpha": ALPHA} for check in ("depth", "range") for k in DEPTHS]
    return [*pairs, *laws, *(one | {"seed": seed} for one in flows for seed in range(given.seeds))]


def run(configuration: Configuration, _: Options) -> Result:
    """One check."""
    random = np.random.default_rng(configuration["seed"])
    match configuration["check"]:
        case "symbols":
            pair = PAIRS[configuration["pair"]]
            return {"commutes": commute(pair.functions, pair.w)}
        case "separable":
            return {"holds": _only_multiples(sympy.sympify(configuration["g"], {"u": _U}))}
        case "linear":
            return {"holds": _bracket_is_the_hessian(configuration["n"])}
        case "decay of a product":
            return {"holds": _bracket_of_a_product(configuration["k"])}
        case "order":
            return {"apart": _apart(PAIRS[configuration["pair"]], random)}
        case "depth":
            return _depth(configuration["k"], configuration["alpha"], random)
    return _threshold(configuration["k"], configuration["alpha"], float(random.uniform(0.7, 1.3)))


_U = sympy.Symbol("u", positive=True)


def _only_multiples(g: sympy.Expr) -> bool:
    """Corollary 3.1 in one parameter: all h that commute with g, by solving for them, are c g + d."""
    h = sympy.Function("h")(_U)
    (bracket,) = lie_bracket(g, h, [_U])
    solution = sympy.dsolve(sympy.Eq(bracket, 0), h).rhs
    free = sorted(solution.free_symbols - {_U}, key=str)
    parts = [sympy.diff(solution, constant) for constant in free]
    in_span = all(sympy.simplify(sympy.wronskian([sympy.Integer(1), g, part], _U)) == 0 for part in parts)
    return len(free) == 2 and in_span and sympy.simplify(sympy.wronskian(parts, _U)) != 0


def _bracket_is_the_hessian(n: int) -> bool:
    """Corollary B.1: the bracket of x_i and any h vanishes where column i of h's Hessian does."""
    x = sympy.symbols(f"x1:{n + 1}")
    h = sympy.Function("h")(*x)
    columns = [lie_bracket(x_i, h, x) == sympy.hessian(h, x)[:, i] for i, x_i in enumerate(x)]
    return all(columns)


def _bracket_of_a_product(k: int) -> bool:
    """Theorem B.3: (4 - 2k) times the products of all factors but one."""
    w = sympy.symbols(f"w1:{k + 1}")
    expected = [(4 - 2 * k) * math.prod(one for one in w if one is not own) for own in w]
    return lie_bracket(math.prod(w), sum(one**2 for one in w), w) == sympy.Matrix(expected)


def _apart(pair: Pair, random: np.random.Generator) -> float:
    """How far x is from x, relative to the largest, where the same mu and a came in the opposite order."""
    g = sympy.lambdify([pair.w], pair.functions[:-1])
    fields = [sympy.lambdify([pair.w], sympy.Matrix([one]).jacobian(pair.w)) for one in pair.functions]
    amounts = [*random.uniform(0.05, 0.1, len(pair.functions) - 1), -0.1]
    w0 = random.uniform(0.8, 1.0, len(pair.w))
    steps = list(zip(fields, amounts, strict=True))
    forth, back = (np.array(g(_through(order, w0)), float) for order in (steps, steps[::-1]))
    return float(np.abs(forth - back).max() / np.abs([forth, back]).max())


def _through(steps: Sequence[tuple[Callable[[np.ndarray], np.ndarray], float]], w: np.ndarray) -> np.ndarray:
    for field, amount in steps:

        def velocity(_: float, w: np.ndarray, field=field, amount=amount) -> np.ndarray:
            return amount * np.asarray(field(w), float)[0]

        w = solve_ivp(velocity, (0, 1), w, "DOP853", rtol=1e-12, atol=1e-14).y[:, -1]
    return w


def _depth(k: int, alpha: float, random: np.random.Generator) -> Result:
    """A flow on f = G sum log cosh(x - target), whose gradient is nowhere larger than G."""
    pull, target = 0.8, torch.from_numpy(random.normal(0, 1, 3))
    w0 = torch.from_numpy(random.uniform(0.5, 1.1, (k, 3)))
    times = np.linspace(0, 3, 31)
    flow = simulate(
        lambda w: w.prod(0),
        lambda w: w.square().sum(),
        w0,
        grad_f=lambda x: pull * torch.tanh(x - target),
        alpha=lambda t: alpha,
        times=times,
        weight=lambda a: float(depth.discount(a, k=k)),
    )
    law = depth.product(w0, flow.mu, flow.a)
    bounds = torch.tensor([depth.mu_hat_bound(pull, alpha=alpha, k=k, t=float(t)) for t in times], dtype=torch.float64)
    return {
        "error": float((law - flow.x).abs().max() / flow.x.abs().max()),
        "beyond": float((flow.mu.abs() > bounds[:, None] + 1e-10).double().mean()),
        "largest_share": float((flow.mu.abs()[1:] / bounds[1:, None]).max()),
    }


def _threshold(k: int, alpha: float, scale: float) -> Result:
    """From factors (0, scale, ..., scale): where constant pulls begin to win, and where theory puts that."""
    low, high = math.log(0.01), math.log(1000)
    while high - low > 1e-3:
        middle = (low + high) / 2
        low, high = (low, middle) if _escapes(k, math.exp(middle) * alpha, alpha, scale) else (middle, high)
    return {"scale": scale, "found": math.exp(low), "expected": threshold(k, scale)}


def threshold(k: float, scale: float = 1.0) -> float:
    """G / alpha at which muhat's bound, G / (2 (k - 2) alpha), is the muhat at which xhat is infinite.

    From (0, s, ..., s), w = s cosh r and m = s sinh r with dr / dmuhat = (s cosh r)^(k-2), so that xhat is infinite at
    the integral of (s cosh r)^(2-k), which is B(1/2, (k-2)/2) / (2 s^(k-2)).
    """
    return 2.0 if k == 2 else float((k - 2) * beta(0.5, (k - 2) / 2) / scale ** (k - 2))


def _escapes(k: int, pull: float, alpha: float, scale: float) -> bool:
    """Whether the factors m, w, ..., w, equal but for the first, grow a thousandfold before they shrink as much."""

    def velocity(_: float, factors: Sequence[float]) -> tuple[float, float]:
        m, w = factors
        return pull * w ** (k - 1) - 2 * alpha * m, pull * m * w ** (k - 2) - 2 * alpha * w

    def far(_: float, factors: Sequence[float]) -> float:
        return factors[1] - 1e3 * scale

    def near(_: float, factors: Sequence[float]) -> float:
        return factors[1] - 1e-3 * scale

    far.terminal = near.terminal = True  # type: ignore[attr-defined]
    solved = solve_ivp(velocity, (0, 1e6), (0.0, scale), "LSODA", events=(far, near), rtol=1e-8, atol=1e-10)
    return len(solved.t_events[0]) > 0


def judge(rows: Sequence[Row], given: Options) -> Verdict:
    """By RULE."""
    apart = {
        commutes: [_apart_of(rows, name) for name in PAIRS if PAIRS[name].commutes is commutes]
        for commutes in (True, False)
    }
    depths = [row["result"] for row in chosen(rows, check="depth")]
    ratios = {k: statistics.mean_of(_ratios(rows, k)) for k in DEPTHS}
    escaped = ", ".join(f"{threshold(k):.3g} for k = {k} ({ratio} times)" for k, ratio in ratios.items())
    return Verdict(
        number=2,
        claim="Which parametrisations and regularisers commute",
        paper="m*w with squares, u^2k-v^2k and log u-log v with their own sums do; x, or products of more than two "
        "factors, with squares do not (Corollaries 3.1 and B.1, Theorem B.3)",
        measured=f"{len(PAIRS)} pairs by symbols; in two orders to the same mu and a, flows that commute end up to "
        f"{np.max(apart[True]):.1e} apart, others at least {np.min(apart[False]):.2g}",
        verdict=Identity(float(np.mean([_otherwise(rows, name) for name in PAIRS])), 0.0),
        reason="Commuting is enough for a time-dependent mirror flow; the paper's 'if and only if' is of commuting. "
        "Where the order matters x is no function of mu and a, so there is no R_a either.",
        parts={
            "Corollary 3.1: h = c g + d (the paper: c g)": _by_symbols(
                rows, "separable", f"g = {', '.join(SEPARABLE)}"
            ),
            "Corollary B.1: with x, h is linear": _by_symbols(rows, "linear", "any h of 1, 2 or 3 parameters"),
            "Theorem B.3: the bracket of a product": _by_symbols(rows, "decay of a product", "k = 2 to 5"),
            "k factors: x = e^(2ka) xhat(muhat) (ours)": Part(
                Identity(max(one["error"] for one in depths), TOLERANCE), f"{len(depths)} flows, k = 2 to 5"
            ),
            "k factors: |muhat| <= G / (2(k-2) alpha) (ours)": Part(
                Identity(max(one["beyond"] for one in depths), 0.0),
                f"comes to {max(one['largest_share'] for one in depths):.0%} of the bound at most",
            ),
            "k factors: x is held below a threshold of G / alpha (ours)": Part(
                all_of(statistics.agreement(ratio, 1.0, THRESHOLD_TOLERANCE) for ratio in ratios.values()),
                f"flows from (0, 1, ..., 1) escape above {escaped}",
            ),
        },
        figures={f"threshold, found over expected, k = {k}": str(ratio) for k, ratio in ratios.items()}
        | {f"apart, {name}": _apart_of(rows, name) for name in PAIRS},
    )


def _apart_of(rows: Sequence[Row], pair: str) -> list[float]:
    return [row["result"]["apart"] for row in chosen(rows, check="order", pair=pair)]


def _otherwise(rows: Sequence[Row], name: str) -> bool:
    """Whether symbols or flows say otherwise than the paper."""
    (symbols,) = [row["result"]["commutes"] for row in chosen(rows, check="symbols", pair=name)]
    commutes = PAIRS[name].commutes
    apart = _apart_of(rows, name)
    return symbols is not commutes or not (max(apart) <= TOLERANCE if commutes else min(apart) >= APART)


def _by_symbols(rows: Sequence[Row], check: str, of: str) -> Part:
    return Part(Identity(float(np.mean([not row["result"]["holds"] for row in chosen(rows, check=check)])), 0.0), of)


def _ratios(rows: Sequence[Row], k: int) -> list[float]:
    found = [row["result"] for row in chosen(rows, check="range", k=k)]
    return [one["found"] / one["expected"] for one in found]


def draw(rows: Sequence[Row], given: Options) -> None:
    """How far the order takes x apart; where pulls win over decay; and what that means for x over time."""
    with figures.panels(1, 3, height=2.6, width_ratios=(1.4, 1, 1)) as (figure, ((order, held, range_),)):
        for place, (name, pair) in enumerate(PAIRS.items()):
            found = np.maximum(_apart_of(rows, name), 1e-17)
            colour, label = ("C0", "commute") if pair.commutes else ("C3", "do not commute")
            order.plot(found, [place] * len(found), "o", color=colour, label=label, markersize=4, alpha=0.6)
        order.set_yticks(range(len(PAIRS)), PAIRS, fontsize=8)
        order.invert_yaxis()
        order.set(xscale="log", title=r"same $\mu$ and a, two orders", xlabel="x apart, relative to x")
        t = torch.linspace(0, 2.5, 301, dtype=torch.float64)
        for k, colour in zip(DEPTHS, figures.colours(len(DEPTHS)), strict=True):
            held.plot(t, _pulled(k, t), color=colour, label=f"k = {k}")
            ratios = [ratio * threshold(k) for ratio in _ratios(rows, k)]
            range_.plot([k] * len(ratios), ratios, "o", color=colour, markersize=5)
        held.set(yscale="log", ylim=(1e-3, 30), title=rf"x under G = {PULL:g} $\alpha$", xlabel=r"$\alpha t$")
        ks = np.linspace(2.001, 5.2, 200)
        range_.plot(ks, [threshold(float(k)) for k in ks], color="0.5", linewidth=1, zorder=0, label="theory")
        range_.set(title="x escapes above", xlabel="factors k", ylabel=r"G / $\alpha$", xticks=DEPTHS)
        figures.legend(figure, columns=len(DEPTHS) + 3)
        figures.save(figure, given.directory / "figure.png")


PULL = 2.5


def _pulled(k: int, t: Tensor) -> Tensor:
    """x over alpha t from factors (0, 1, ..., 1), under a constant pull of PULL alpha."""
    a = -t[:, None]
    w0 = torch.tensor([[0.0]] + [[1.0]] * (k - 1), dtype=torch.float64)
    mu_hat = [depth.mu_hat_bound(PULL, alpha=1.0, k=k, t=float(at)) for at in t]
    return depth.product(w0, torch.tensor(mu_hat, dtype=torch.float64)[:, None], a)[:, 0]


CLAIM = Claim(__name__, __doc__, RULE, configurations, run, judge, draw)
