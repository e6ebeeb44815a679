"""Claim 8: does what decay stored in the geometry survive preconditioning, and is a_t its clock? (ours)

    python recipes/claim.py stored_bias

The diagonal network m*w of claim 3, trained by the stock Trainer with padam, p in {0, 0.25, 0.5} and the size of all
updates matched (`update_scale=adam`); p = 0.5 is AdamW. Decay is on until the first half of training is over at the
latest. Histories have one a_t at the shutoff: all decay in the first quarter (`WeightDecayShutoffCallback`), in both
quarters, or in the second (`ScheduleCallback`). By theory x then ends where R_a is least, whatever the history: for
p = 0, which is a gradient flow in another time. Nothing says so for p > 0.

The paper's: the sparse regression (Appendix B.1), and that decay is stored. Ours: p, histories, a_t, steps and learning
rate, chosen by simulations of the same steps on three other problems, in which what is measured here was seen first.
--full has ten times the inputs.
"""

import math
import tempfile
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from transformers import (
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)

from hf_pdyn import ScheduleCallback, TelemetryCallback, WeightDecayShutoffCallback
from hf_pdyn.sweep import statistics
from hf_pdyn.sweep.outcome import ALL_RULE, Identity, all_of
from papers._claims import figures
from papers._claims.claim import Claim
from papers._claims.linear import Samples
from papers._claims.options import Option, Options
from papers._claims.rows import Configuration, Result, Row, chosen
from papers._claims.verdict import Part, Verdict
from papers.mirror_flow._training import short

EXPONENTS = (0.0, 0.25, 0.5)
LR, A = 0.01, -2.0
HISTORIES: dict[str, tuple[float, float]] = {"early": (0.0, 0.25), "throughout": (0.0, 0.5), "late": (0.25, 0.5)}
"""When there is decay, from and until which share of training."""
NONE, HALF = "none", "half of a"
"""Without decay; and decay throughout, up to half of A."""
CURVE = 40
FACTOR, TOLERANCE, CLOCK = 1.1, 0.1, 0.01
OPTIONS = (
    Option("inputs", "inputs of the regression, of which a twentieth matters", int, quick=100, full=1000),
    Option("steps", "steps of training, in quarters", int, quick=1000, full=4000),
)
RULE = f"""The drop is what decay (history: throughout) takes off the log of L1 over L2 norm of m*w at the end of
training, against the run without decay. The verdict: the drop is above zero with p = 0.25 and with p = 0.5; bound log
{FACTOR:g}. With p = 0, the same, as a control. Less is stored with a larger p: the drop falls with p, same bound. The
clock, for each p: the log ratios at the end after the histories early and late, less that after throughout, over the
drop, are 0 (tolerance {TOLERANCE:g}). That histories have one pdyn/a_t is an identity, up to a share of {CLOCK:g}.
{statistics.TREND_RULE} {statistics.EFFECT_RULE} {statistics.AGREEMENT_RULE} {ALL_RULE}"""


class DiagonalNetwork(nn.Module):
    """z = inputs (m*w)^T under the mean squared error, from m = 0 and w = 1."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.m, self.w = nn.Parameter(torch.zeros(1, inputs)), nn.Parameter(torch.ones(1, inputs))

    @property
    def x(self) -> Tensor:
        return self.m * self.w

    def forward(self, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """inputs: (n, d). labels: (n, 1)."""
        z = inputs @ self.x.mT
        return {"loss": (z - labels).square().mean(), "logits": z}


class Following(TrainerCallback):
    """L1 over L2 norm of x, and its distance to x*, at some steps."""

    def __init__(self, x_star: Tensor, every: int) -> None:
        self.x_star, self.every = x_star, every
        self.steps: list[int] = []
        self.ratio: list[float | None] = []
        self.distance: list[float | None] = []

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        if state.global_step % self.every:
            return
        model = kwargs["model"]
        assert isinstance(model, DiagonalNetwork)
        x = model.x.detach().double().cpu()
        self.steps.append(state.global_step)
        self.ratio.append(short(float(x.abs().sum() / x.norm())))
        self.distance.append(short(float((x - self.x_star).norm())))


def configurations(given: Options) -> list[Configuration]:
    """Every p with every history, without decay, and with half of it."""
    sizes = {"inputs": given["inputs"], "steps": given["steps"], "lr": LR}
    return [
        {**sizes, "p": p, "history": history, "a": a, "seed": seed}
        for p in EXPONENTS
        for history, a in ((NONE, 0.0), *((history, A) for history in HISTORIES), (HALF, A / 2))
        for seed in range(given.seeds)
    ]


def decay_of(a: float, span: tuple[float, float], steps: int, lr: float) -> float:
    """The weight decay that takes a_t to `a` over a span of training, as the learning rate falls to 0 linearly."""
    first, last = (round(share * steps) for share in span)
    return -a / (lr * sum(1 - step / steps for step in range(first, last)))


def run(configuration: Configuration, given: Options) -> Result:
    """Train one network."""
    steps, inputs, history = configuration["steps"], configuration["inputs"], configuration["history"]
    span = HISTORIES.get(history, HISTORIES["throughout"])
    decay = decay_of(configuration["a"], span, steps, configuration["lr"]) if history != NONE else 0.0
    generator = torch.Generator().manual_seed(1000 + configuration["seed"])
    Z = torch.randn(2 * inputs // 5, inputs, generator=generator)  # noqa: N806
    x_star = (torch.arange(inputs) < inputs // 20)[None].double()
    following = Following(x_star, max(steps // CURVE, 1))
    callbacks: list[TrainerCallback] = [following, TelemetryCallback()]
    if history == "late":
        callbacks.append(ScheduleCallback("weight_decay", f"step:0,{decay!r}@{span[0]},0@{span[1]}"))
    elif history != NONE:
        callbacks.append(WeightDecayShutoffCallback(span[1]))
    set_seed(configuration["seed"])
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            optim="padam",
            optim_args=f"p={configuration['p']!r},eps=1e-8,update_scale=adam",
            learning_rate=configuration["lr"],
            lr_scheduler_type="linear",
            weight_decay=decay,
            max_grad_norm=0.0,
            max_steps=steps,
            per_device_train_batch_size=len(Z),
            seed=configuration["seed"],
            logging_steps=steps,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=given.device == "cpu",
            dataloader_pin_memory=given.device == "cuda",
        )
        samples = Samples(Z, Z @ x_star.float().mT)
        trainer = Trainer(DiagonalNetwork(inputs), arguments, train_dataset=samples, callbacks=callbacks)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    a = next(record["pdyn/a_t"] for record in trainer.state.log_history if "pdyn/a_t" in record)
    return {"a": short(a), "steps": following.steps, "ratio": following.ratio, "distance": following.distance}


def ends(rows: Sequence[Row], p: float, history: str, name: str = "ratio") -> np.ndarray:
    """L1 over L2 norm at the end, or the distance to x*, by seed."""
    return np.array([row["result"][name][-1] for row in chosen(rows, p=p, history=history)], float)


def drop(rows: Sequence[Row], p: float) -> np.ndarray:
    """What decay takes off the log ratio, by seed."""
    return np.log(ends(rows, p, NONE) / ends(rows, p, "throughout"))


def apart(rows: Sequence[Row], p: float, history: str) -> np.ndarray:
    """How far a history of the same a_t ends from `throughout`, in log ratios over the drop, by seed."""
    of_history, dropped = np.log(ends(rows, p, history) / ends(rows, p, "throughout")), drop(rows, p)
    return np.divide(of_history, dropped, out=np.full_like(dropped, np.nan), where=dropped != 0)


def judge(rows: Sequence[Row], given: Options) -> Verdict:
    """By RULE."""
    bound = math.log(FACTOR)
    drops = {p: statistics.mean_of(drop(rows, p)) for p in EXPONENTS}
    less = statistics.trend(EXPONENTS, [drop(rows, p) for p in EXPONENTS])
    histories = [history for history in HISTORIES if history != "throughout"]
    clocks = {p: {history: statistics.mean_of(apart(rows, p, history)) for history in histories} for p in EXPONENTS}
    reached = [abs(row["result"]["a"] / row["configuration"]["a"] - 1) for row in rows if row["configuration"]["a"]]
    by_p = {f"p = {p:g}": {name: ends(rows, p, name) for name in (NONE, *HISTORIES, HALF)} for p in EXPONENTS}
    told = ", ".join(f"{of[NONE].mean():.2f} and {of['throughout'].mean():.2f} ({name})" for name, of in by_p.items())
    return Verdict(
        number=8,
        claim="What decay stored survives preconditioning (ours)",
        paper="(for gradient flow: decay is stored, and R_a depends on a_t alone)",
        measured=f"L1/L2 at the end, without decay and with it throughout the first half: {told}",
        verdict=all_of(statistics.effect(drops[p], bound) for p in EXPONENTS if p),
        parts={
            "stored with p = 0 (control)": Part(statistics.effect(drops[0.0], bound), f"log drop {drops[0.0]}"),
            **{
                f"stored with p = {p:g}": Part(statistics.effect(drops[p], bound), f"log drop {drops[p]}")
                for p in EXPONENTS
                if p
            },
            "the larger p, the less is stored": Part(
                statistics.effect(less, bound, direction=-1), f"change of the log drop from p = 0 to 0.5: {less}"
            ),
            **{
                f"a_t is the clock with p = {p:g}": Part(
                    all_of(statistics.agreement(one, 0.0, TOLERANCE) for one in of.values()),
                    ", ".join(f"{history} off by {one} of the drop" for history, one in of.items()),
                )
                for p, of in clocks.items()
            },
            "histories have one a_t": Part(Identity(max(reached), CLOCK), f"{A:g}, by pdyn/a_t"),
        },
        reason="Gradient flow keeps m^2 - w^2, which R_a depends on, and decay alone makes it smaller. With p > 0 m "
        "and w each have a step of their own, and m^2 - w^2 moves without decay too.",
        figures={
            **{
                name: {
                    **{f"L1/L2, {history}": str(statistics.mean_of(values)) for history, values in of.items()},
                    **{
                        f"distance to x*, {history}": str(statistics.mean_of(ends(rows, p, history, "distance")))
                        for history in of
                    },
                }
                for p, (name, of) in zip(EXPONENTS, by_p.items(), strict=True)
            },
        },
    )


def draw(rows: Sequence[Row], given: Options) -> None:
    """L1 over L2 norm over steps by p, a line a history of decay."""
    styles = {NONE: "0.5", "early": "C0", "throughout": "C1", "late": "C2", HALF: "0.75"}
    with figures.panels(1, len(EXPONENTS), height=2.6, sharex=True, sharey=True) as (figure, (panels,)):
        for axes, p in zip(panels, EXPONENTS, strict=True):
            for history, colour in styles.items():
                found = chosen(rows, p=p, history=history)
                ratios = np.array([row["result"]["ratio"] for row in found], float)
                label = history if history in (NONE, HALF) else f"{history}, a_t = {A:g}"
                figures.band(axes, found[0]["result"]["steps"], ratios, color=colour, label=label)
            axes.axvline(found[0]["configuration"]["steps"] / 2, color="0.5", linestyle=":", linewidth=1)
            axes.axhline(math.sqrt(found[0]["configuration"]["inputs"] // 20), color="0.5", linestyle="--", linewidth=1)
            axes.set(title={0.0: "p = 0 (control)", 0.5: "p = 0.5: AdamW"}.get(p, f"p = {p:g}"), xlabel="step")
        figures.control(panels[:1])
        panels[0].set_ylabel("L1 / L2 norm of m w")
        figures.legend(figure, columns=5)
        figures.save(figure, given.directory / "figure.png")


CLAIM = Claim(__name__, __doc__, RULE, configurations, run, judge, draw, options=OPTIONS)
