"""Telemetry and control in a training loop of your own: no Trainer, no transformers.

    python recipes/bare_loop.py
    python recipes/bare_loop.py --steps 100 --output_dir runs/short
    python recipes/bare_loop.py --resume
    hf-pdyn report runs/bare_loop

It trains a small network to predict the next character of plays, on a CPU in ten seconds. docs/bare_loop.md goes
through it; each part is one function, and can be left out.
"""

import argparse
import itertools
import json
import lzma
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import hf_pdyn
from hf_pdyn.measure.power_moments import PowerMomentsReader
from hf_pdyn.measure.windows import Reading, Scope
from hf_pdyn.policy import allocation_curve
from hf_pdyn.policy.algorithm1 import ControlConfig, ControlState, next_p
from hf_pdyn.policy.schedules import Schedule

TEXT = Path(__file__).parent / "data" / "shakespeare_plays.txt.xz"
CONTEXT = 12
PATHWAYS = ("weight", "bias_like")
MAX_NORM = 2.0
DECAY = Schedule.parse("step:0.1,0@0.75")  # weight decay, off for the last quarter


class NextCharacter(nn.Module):
    """An embedding, two layers and a head over the last `context` characters."""

    def __init__(self, characters: int, context: int = CONTEXT, width: int = 96) -> None:
        super().__init__()
        self.embedding = nn.Embedding(characters, 24)
        self.hidden = nn.Linear(24 * context, width)
        self.norm = nn.LayerNorm(width)
        self.mlp = nn.Linear(width, width)
        self.head = nn.Linear(width, characters)

    def forward(self, characters: Tensor) -> Tensor:
        """Logits (B, characters) of characters (B, context)."""
        hidden = self.norm(self.hidden(self.embedding(characters).flatten(1))).relu()
        return self.head(hidden + self.mlp(hidden).relu())


def batches(text: Tensor, size: int, seed: int, first: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Contexts (B, CONTEXT) and next characters (B,), from the step `first` on; a resumed run gets the same."""
    for step in itertools.count(first):
        generator = torch.Generator().manual_seed(1_000_003 * seed + step)
        starts = torch.randint(len(text) - CONTEXT, (size,), generator=generator)
        window = text[starts[:, None] + torch.arange(CONTEXT + 1)]
        yield window[:, :-1], window[:, -1]


def gauges(reading: Reading) -> dict[str, float]:
    """The Trainer's names for a window's means (docs/metrics.md), so that reports and `compare` know them."""
    found = {"pdyn/D_w": reading.weight_norm, "pdyn/D_b": reading.bias_norm, "pdyn/steps": float(reading.steps)}
    for pathway, name in zip(PATHWAYS, ("pdyn/D_w_clipped", "pdyn/D_b_clipped"), strict=True):
        found[name] = reading.grad_norm_clipped.get(Scope(pathway))
    for quantity, by_scope in reading.quantities.items():
        for pathway in PATHWAYS:
            found[f"pdyn/{quantity}/{pathway}"] = by_scope.get(Scope(pathway))
    known = {name: value for name, value in found.items() if value is not None}
    if reading.weight_norm is not None and reading.bias_norm:
        known["pdyn/G_w_over_G_b"] = reading.weight_norm / reading.bias_norm
    updates = [known.get(f"pdyn/update_norm/{pathway}") for pathway in PATHWAYS]
    if updates[0] is not None and updates[1]:
        known["pdyn/update_ratio"] = updates[0] / updates[1]
    return known


def allocation(statistics: hf_pdyn.StepStatistics, p: float) -> dict[str, float]:
    """What this p is now: a learning rate, a direction, an allocation."""
    found = PowerMomentsReader(statistics, per_layer=False).read().moments
    weight, bias_like = (found.get(Scope(pathway)) for pathway in PATHWAYS)
    if weight is None or bias_like is None:
        return {}
    both = allocation_curve.total([weight, bias_like])
    return {
        "pdyn/allocation/lr_factor": allocation_curve.lr_factor(both, p),
        "pdyn/allocation/cosine_to_adam": allocation_curve.cosine(both, p),
        "pdyn/allocation/update_ratio_slope": allocation_curve.update_ratio_slope(weight, bias_like, p),
    }


def set_weight_decay(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Give it to the groups that decay at all; those of biases and norms began with 0."""
    for group in optimizer.param_groups:
        if group["pathway"] == "weight":
            group["weight_decay"] = value


def decide(control: ControlState, reading: Reading, optimizer: torch.optim.Optimizer) -> ControlState:
    """One decision of Algorithm 1, and its p in the groups; the same state where no step of the interval was finite."""
    if reading.weight_norm is None or reading.bias_norm is None:
        return control
    norms = {"weight_norm": reading.weight_norm, "bias_norm": reading.bias_norm}
    control = next_p(control, **norms, config=ControlConfig())
    for group in optimizer.param_groups:
        group["p"] = control.p
    print(f"interval {control.interval}: {control.branch}, p {control.p:.2f}")
    return control


def save(folder: Path, state: dict[str, Any], step: int, steps: int, history: list[dict[str, Any]]) -> None:
    """A checkpoint, and the log records by the name and in the form in which reports look for them."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(state | {"step": step, "history": history}, folder / "checkpoint.pt")
    trainer_state = {"global_step": step, "max_steps": steps, "log_history": history}
    (folder / "trainer_state.json").write_text(json.dumps(trainer_state), encoding="utf-8")


def train(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Run the loop; returns its log records."""
    torch.manual_seed(options.seed)
    with lzma.open(TEXT, "rt", encoding="utf-8") as plays:
        characters = plays.read(300_000)
    alphabet = {character: i for i, character in enumerate(sorted(set(characters)))}
    text = torch.tensor([alphabet[character] for character in characters])
    model = NextCharacter(len(alphabet))

    # Labels come from the model, so that weights and bias-like parameters have groups of their own.
    groups = hf_pdyn.build_param_groups(model, weight_decay=DECAY.values[0])
    optimizer = hf_pdyn.Padam(groups, lr=options.learning_rate, p=0.5, update_scale="adam")
    for group in optimizer.param_groups:  # of what the loop moves, as schedulers keep initial_lr
        group |= {"initial_p": group["p"], "initial_weight_decay": group["weight_decay"]}
    statistics = hf_pdyn.StepStatistics.of(optimizer, model)
    record, interval = statistics.window(), statistics.window()  # each reader has its own
    control = ControlState(p=0.5)
    history: list[dict[str, Any]] = []
    first, decay_time, folder = 0, 0.0, Path(options.output_dir)
    if options.resume:
        saved = torch.load(folder / "checkpoint.pt", weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        control = ControlState.from_dict(saved["control"])
        record.load_state_dict(saved["record"])
        interval.load_state_dict(saved["interval"])
        first, decay_time, history = saved["step"], saved["a_t"], saved["history"]

    last = min(options.steps, options.stop_at or options.steps)
    source = itertools.islice(batches(text, options.batch_size, options.seed, first), last - first)
    for step, (context, wanted) in enumerate(source, start=first + 1):
        set_weight_decay(optimizer, DECAY.value(step - 1, total_steps=options.steps, steps_per_epoch=None))
        logs = step % options.logging_steps == 0
        if logs:
            statistics.measure_next_step()  # updates, moments and implicit bias, not gradient norms alone
        loss = functional.cross_entropy(model(context), wanted)
        loss.backward()
        statistics.note_clip(nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM), MAX_NORM)
        optimizer.step()
        optimizer.zero_grad()
        decay_time -= max(group["lr"] * group["weight_decay"] for group in optimizer.param_groups)
        if logs:
            p = optimizer.param_groups[0]["p"]
            measured = gauges(record.read()) | allocation(statistics, p)
            training = {"loss": loss.item(), "learning_rate": optimizer.param_groups[0]["lr"]}
            history.append({"step": step} | training | measured | {"pdyn/p": p, "pdyn/a_t": decay_time})
        if step % options.interval == 0:
            control = decide(control, interval.read(), optimizer)
            if logs:
                history[-1]["pdyn/control/p"] = control.p
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "control": control.to_dict()}
    state |= {"record": record.state_dict(), "interval": interval.state_dict(), "a_t": decay_time}
    save(folder, state, last, options.steps, history)
    return history


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", default="runs/bare_loop")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--logging_steps", type=int, default=20)
    parser.add_argument("--interval", type=int, default=60, help="steps between decisions of Algorithm 1")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--learning_rate", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stop_at", type=int, default=None, help="end after that step, to be resumed")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in output_dir")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    train(parse())
