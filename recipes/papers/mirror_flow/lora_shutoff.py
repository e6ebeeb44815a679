"""Claim 6: what decay did to LoRA's B A lasts after the shutoff (TMF section 5, Fig. 4).

    python recipes/claim.py lora_shutoff
    python recipes/claim.py lora_shutoff --full --device cuda

LoRA on the attention projections of a GPT-2, on plays of Shakespeare, for 500 steps with SGD, under constant decay or
none after step 200; the nuclear over the Frobenius norm of scaling * B A, from norms averaged over layers. The paper
reads crossings as storage: decay 1 until 200 meets 0.5 throughout, and 0.2 meets 0.1, only after step 400, at which
their cumulative decay is equal. Theory has no such thing: equal a_t makes equal Legendre functions, not equal B A.

The paper's: rank 8, alpha 32, no dropout, SGD with momentum 0.9, constant learning rate 2e-4, decays, steps, shutoff.
Ours: a learning rate at which more is learned, runs without decay, batches, and in quick runs the model: two layers of
64 pretrained here on the prose of Python's help, in place of 12 of 768 on the web. Rank 8 is then an eighth of a
matrix, not a hundredth; a batch has 128 tokens; gradients, and with them what 500 steps can learn, are others. A pilot
with one seed chose the size and the larger learning rate. --full: gpt2 from the hub, blocks of 256.
"""

import functools
import math
from collections.abc import Sequence

import numpy as np
from peft import LoraConfig, TaskType, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

from _common.lora import ATTENTION_PROJECTIONS
from _common.pretrained import PretrainingSettings, pydoc_checkpoint
from _common.text_data import TokenBlocks, plays, train_and_validation
from hf_pdyn.sweep import statistics
from hf_pdyn.sweep.outcome import ALL_RULE, Outcome, all_of
from papers._claims import figures
from papers._claims.claim import Claim
from papers._claims.options import Option, Options
from papers._claims.rows import Configuration, Result, Row, chosen
from papers._claims.verdict import Part, Verdict
from papers.mirror_flow._training import Training, train

PAPERS_RATE, LARGER_RATE = 2e-4, 1e-3
Decay = tuple[float, bool]
"""The weights' decay, and whether it ends at the shutoff."""
NONE: Decay = (0.0, False)
CONSTANT: dict[float, tuple[float, ...]] = {PAPERS_RATE: (0.1, 0.2, 0.5, 1.0), LARGER_RATE: (0.1, 0.5, 1.0)}
CROSSINGS: dict[float, dict[float, float]] = {PAPERS_RATE: {1.0: 0.5, 0.2: 0.1}, LARGER_RATE: {1.0: 0.5}}
"""By learning rate: of a decay until the shutoff, the constant one that has the same sum at EQUAL."""
SHUTOFF, EQUAL = 0.4, 0.8
"""Shares of training: the paper's 200 and 400 of 500 steps."""
RECORDS, TEST_BLOCKS = 25, 32
RATIO, LOSS, STEPS = 1.01, 0.01, 10
"""Below such a factor of the ratio, difference of test losses, number of steps, there is no effect."""
SMALL = PretrainingSettings(n_layer=2, n_embd=64, n_head=2, block_size=64, batch_size=16, steps=300, learning_rate=4e-3)
OPTIONS = (
    Option("model_name_or_path", "the pretrained model, hub name or directory", full="gpt2"),
    Option("steps", "steps of training", int, quick=500, full=500),
    Option("batch_size", "blocks in a batch", int, quick=4, full=16),
    Option("block_size", "tokens in a block", int, quick=32, full=256),
)
RULE = f"""At the paper's learning rate, all of: the log ratio at the end falls with the log of constant decay; it falls
from the shutoff to the end, with decay 1 and with 0.2 until then; the first crossing of each with the constant decay of
half its size comes after the step at which sums are equal (steps by linear interpolation between records; none by the
end counts as the end; a ratio that is not smaller at the shutoff has no crossing, and the run no number); test loss at
the end is lower with decay 1 until the shutoff than throughout. Bounds: a factor of {RATIO:g}, {STEPS} steps, {LOSS:g}
of loss. Parts of their own, for both learning rates (ours): each of these; at the end the log ratio with decay 1 until
the shutoff is below that without decay (stored); where sums are equal the log ratios of a crossing's two runs are
equal (0, tolerance log {RATIO:g}). {statistics.TREND_RULE} {statistics.EFFECT_RULE} {statistics.AGREEMENT_RULE}
{ALL_RULE}"""


def decays(lr: float) -> list[Decay]:
    """All settings at a learning rate."""
    return [NONE, *((decay, False) for decay in CONSTANT[lr]), *((decay, True) for decay in CROSSINGS[lr])]


def configurations(given: Options) -> list[Configuration]:
    """Every learning rate with its decays."""
    sizes = {"model": given["model_name_or_path"] or "small"}
    sizes |= {name: given[name] for name in ("steps", "batch_size", "block_size")}
    return [
        {**sizes, "lr": lr, "decay": decay, "off": off, "seed": seed}
        for lr in CONSTANT
        for decay, off in decays(lr)
        for seed in range(given.seeds)
    ]


def run(configuration: Configuration, given: Options) -> Result:
    """Fine-tune one model."""
    checkpoint = configuration["model"]
    if checkpoint == "small":
        checkpoint = str(pydoc_checkpoint(SMALL, device=given.device, show_progress=False))
    train_set, test_set = _blocks(checkpoint, configuration["block_size"])
    set_seed(configuration["seed"])
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(checkpoint),
        LoraConfig(
            task_type=TaskType.CAUSAL_LM,
            r=8,
            lora_alpha=32,
            lora_dropout=0.0,
            target_modules=ATTENTION_PROJECTIONS["gpt2"],
            fan_in_fan_out=True,
        ),
    )
    steps = configuration["steps"]
    training = Training(
        optimizer="sgd",
        momentum=0.9,
        lr=configuration["lr"],
        weight_decay=configuration["decay"],
        off_at=round(SHUTOFF * steps) if configuration["off"] else None,
        steps=steps,
        batch_size=configuration["batch_size"],
        every=max(steps // RECORDS, 1),
    )
    return train(model, train_set, test_set, training, "lora", configuration["seed"], given.device)


@functools.cache
def _blocks(checkpoint: str, block_size: int) -> tuple[TokenBlocks, TokenBlocks]:
    """To train on, and a part of those to test on, from all over them."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    train_set, held_out = train_and_validation(plays(), tokenizer, block_size, validation_fraction=0.1)
    return train_set, TokenBlocks(held_out.blocks[:: math.ceil(len(held_out) / TEST_BLOCKS)])


def of_runs(rows: Sequence[Row], lr: float, decay: Decay, name: str = "ratio") -> np.ndarray:
    """A curve of a setting's runs, (seeds, records)."""
    found = chosen(rows, lr=lr, decay=decay[0], off=decay[1])
    return np.array([row["result"][name] for row in found], float)


def at(rows: Sequence[Row], share: float) -> int:
    """The place in curves of the last record of a share of training."""
    steps = np.array(rows[0]["result"]["step"])
    return int(np.flatnonzero(steps <= share * steps[-1])[-1])


def crossings(rows: Sequence[Row], lr: float, decay: float) -> np.ndarray:
    """The step of the first crossing after the shutoff, less that at which sums are equal; by seed."""
    steps = np.array(rows[0]["result"]["step"], float)
    above = of_runs(rows, lr, (decay, True)) - of_runs(rows, lr, (CROSSINGS[lr][decay], False))
    return np.array([_crossing(steps, one, at(rows, SHUTOFF)) for one in above]) - EQUAL * steps[-1]


def _crossing(steps: np.ndarray, above: np.ndarray, first: int) -> float:
    """Where a curve first comes to zero from below, at `first` or after it; the last step where it does not."""
    if not above[first] < 0:
        return math.nan
    reached = np.flatnonzero(above[first:] >= 0)
    if not len(reached):
        return float(steps[-1])
    i = first + int(reached[0])
    return float(np.interp(0.0, above[i - 1 : i + 1], steps[i - 1 : i + 1]))


def claimed(rows: Sequence[Row], lr: float) -> dict[str, Part]:
    """What the paper says of Fig. 4, at a learning rate."""
    bound, off = math.log(RATIO), at(rows, SHUTOFF)
    ends = [np.log(of_runs(rows, lr, (decay, False))[:, -1]) for decay in CONSTANT[lr]]
    falls = statistics.trend(np.log(CONSTANT[lr]), ends)
    after, crossed = {}, {}
    for decay in CROSSINGS[lr]:
        ratios = np.log(of_runs(rows, lr, (decay, True)))
        after[decay] = statistics.mean_of(ratios[:, -1] - ratios[:, off])
        crossed[decay] = statistics.mean_of(crossings(rows, lr, decay))
    lower = statistics.mean_of(
        of_runs(rows, lr, (1.0, True), "test_loss")[:, -1] - of_runs(rows, lr, (1.0, False), "test_loss")[:, -1]
    )
    return {
        "more decay, smaller ratio": Part(
            statistics.effect(falls, bound, direction=-1), f"change of the log ratio {falls}"
        ),
        "the ratio falls after the shutoff": Part(
            all_of(statistics.effect(one, bound, direction=-1) for one in after.values()),
            ", ".join(f"decay {decay:g}: change of the log ratio {one}" for decay, one in after.items()),
        ),
        "crossings come after equal sums": Part(
            all_of(statistics.effect(one, STEPS) for one in crossed.values()),
            ", ".join(f"{decay:g} with {CROSSINGS[lr][decay]:g}: {one} steps after" for decay, one in crossed.items()),
        ),
        "the shutoff lowers test loss": Part(
            statistics.effect(lower, LOSS, direction=-1), f"decay 1 until the shutoff against throughout: {lower}"
        ),
    }


def beside(rows: Sequence[Row], lr: float) -> dict[str, Part]:
    """What the same runs say of storage, and of a_t as a clock of the ratio."""
    equal = at(rows, EQUAL)
    stored = statistics.mean_of(np.log(of_runs(rows, lr, (1.0, True))[:, -1] / of_runs(rows, lr, NONE)[:, -1]))
    gaps = {
        decay: statistics.mean_of(
            np.log(of_runs(rows, lr, (decay, True))[:, equal] / of_runs(rows, lr, (other, False))[:, equal])
        )
        for decay, other in CROSSINGS[lr].items()
    }
    return {
        "stored: below the run without decay at the end (ours)": Part(
            statistics.effect(stored, math.log(RATIO), direction=-1), f"log ratio against no decay {stored}"
        ),
        "equal sums, equal ratios (ours)": Part(
            all_of(statistics.agreement(one, 0.0, math.log(RATIO)) for one in gaps.values()),
            ", ".join(f"{decay:g} against {CROSSINGS[lr][decay]:g}: log ratio {one}" for decay, one in gaps.items()),
        ),
    }


def judge(rows: Sequence[Row], given: Options) -> Verdict:
    """By RULE."""
    of_rate = {lr: claimed(rows, lr) for lr in CONSTANT}
    told = ", ".join(
        f"{of_runs(rows, PAPERS_RATE, decay)[:, -1].mean():.3f} ({_name(decay)})" for decay in decays(PAPERS_RATE)
    )
    return Verdict(
        number=6,
        claim="LoRA: decay lowers nuc/fro of B A, and what it did lasts after the shutoff",
        paper="Fig. 4: the ratio falls with decay, and after the shutoff too; decay 1 until 200 crosses 0.5, and 0.2 "
        "crosses 0.1, only after step 400; test loss may be lower",
        measured=f"nuc/fro at the end, learning rate {PAPERS_RATE:g}: {told}",
        verdict=all_of(_outcome(part) for part in of_rate[PAPERS_RATE].values()),
        parts={
            f"{name}, learning rate {lr:g}": part
            for lr in CONSTANT
            for name, part in (of_rate[lr] | beside(rows, lr)).items()
        },
        figures={
            f"learning rate {lr:g}, decay {_name(decay)}": {
                "a_t at the end": str(statistics.mean_of(of_runs(rows, lr, decay, "a")[:, -1])),
                "nuc/fro at the shutoff": str(statistics.mean_of(of_runs(rows, lr, decay)[:, at(rows, SHUTOFF)])),
                "nuc/fro at the end": str(statistics.mean_of(of_runs(rows, lr, decay)[:, -1])),
                "test loss at the first record": str(statistics.mean_of(of_runs(rows, lr, decay, "test_loss")[:, 0])),
                "test loss at the end": str(statistics.mean_of(of_runs(rows, lr, decay, "test_loss")[:, -1])),
            }
            for lr in CONSTANT
            for decay in decays(lr)
        },
    )


def _outcome(part: Part) -> Outcome:
    assert isinstance(part.verdict, Outcome)
    return part.verdict


def _name(decay: Decay) -> str:
    return f"{decay[0]:g}, off at {SHUTOFF:.0%}" if decay[1] else f"{decay[0]:g}"


def draw(rows: Sequence[Row], given: Options) -> None:
    """Fig. 4, means over seeds: ratio and test loss over steps; between, the ratio over that of no decay, with spreads.

    Scales are of each learning rate, whose effects differ by a factor of twenty.
    """
    steps = np.array(rows[0]["result"]["step"])
    levels = sorted({decay for lr in CONSTANT for decay, _ in decays(lr)})
    colours = dict(zip(levels, figures.colours(len(levels)), strict=True))
    with figures.panels(3, len(CONSTANT), height=2.1, sharex=True) as (figure, grid):
        for (ratios, relative, losses), lr in zip(grid.T, CONSTANT, strict=True):
            for decay in decays(lr):
                style = {"color": colours[decay[0]], "linestyle": "--" if decay[1] else "-"}
                found = of_runs(rows, lr, decay)
                # Seeds differ by where B A starts and by batches, which all settings of a seed have in common.
                ratios.plot(steps, found.mean(0), label=f"decay {_name(decay)}", **style)
                figures.band(relative, steps, found / of_runs(rows, lr, NONE), **style)
                losses.plot(steps, of_runs(rows, lr, decay, "test_loss").mean(0), **style)
            for axes in (ratios, relative, losses):
                for share in (SHUTOFF, EQUAL):
                    axes.axvline(share * steps[-1], color="0.5", linestyle=":", linewidth=1)
            ratios.set(title=f"learning rate {lr:g}{' (the paper)' if lr == PAPERS_RATE else ' (ours)'}")
            losses.set(xlabel="step")
        for axes, label in zip(grid[:, 0], ("nuc / fro of B A", "over that of decay 0", "test loss"), strict=True):
            axes.set_ylabel(label)
        figures.control(grid[:, 1:].flatten())
        figures.legend(figure)
        figures.save(figure, given.directory / "figure.png")


CLAIM = Claim(__name__, __doc__, RULE, configurations, run, judge, draw, options=OPTIONS)
