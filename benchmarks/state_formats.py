"""What moments in fewer bits do to an update: `python -m benchmarks.state_formats [--figure]`.

Gradients are normal numbers of sizes over four orders of magnitude and do not depend on the parameters, so that every
format sees the same. After 3,000 steps their size falls to a fifth, for 5,000 more. Errors are relative root mean
squares against float64 moments, over elements and the last 20 of every 100 steps before and after the fall; those of
updates m_hat / (v_hat + eps)^p are of the whole update's size. The record is `state-formats.json`, its figure
`docs/images/state-formats.png`; `--figure` draws that from the record, without running anything.
"""

from __future__ import annotations

import argparse
import json
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import record
from hf_pdyn.optim.state_format import M_STORAGE, V_STORAGE, decode, store

EXPONENTS = (-0.4, -0.2, 0.0, 0.25, 0.37, 0.5, 0.75, 1.0)
BETA1, BETA2, EPS = 0.9, 0.999, 1e-16
BEFORE, AFTER, NUMEL = 3000, 5000, 4096
FIGURE = record.FOLDER.parent / "docs" / "images" / "state-formats.png"

Pair = tuple[Tensor, Tensor]


class Exact:
    """Moments in one of torch's dtypes, rounded to nearest."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.m, self.v = torch.zeros(NUMEL, dtype=dtype), torch.zeros(NUMEL, dtype=dtype)

    def take_in(self, grad: Tensor, step: int) -> Pair:
        compute = torch.promote_types(self.m.dtype, torch.float32)
        m, v = self.m.to(compute), self.v.to(compute)
        grad = grad.to(compute)
        self.m = (m + (1 - BETA1) * (grad - m)).to(self.m.dtype)
        self.v = (BETA2 * v + (1 - BETA2) * grad * grad).to(self.v.dtype)
        return self.m, self.v


class Stored:
    """Moments in a format of `state_dtype`."""

    def __init__(self, state_dtype: str) -> None:
        self.into = torch.zeros(NUMEL, dtype=M_STORAGE[state_dtype]), torch.zeros(NUMEL, dtype=V_STORAGE)

    def take_in(self, grad: Tensor, step: int) -> Pair:
        m, v = decode(*self.into)
        grad = grad.float()
        m, v = m + (1 - BETA1) * (grad - m), BETA2 * v + (1 - BETA2) * grad * grad
        store(m, v, self.into, step=step, number=0, start=0)
        found_m, found_v = decode(*self.into)
        return found_m, found_v


def run() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    sizes = 10 ** (4 * torch.rand(NUMEL, generator=generator, dtype=torch.float64) - 6)
    exact = Exact(torch.float64)
    formats: dict[str, Any] = {
        "fp32": Exact(torch.float32),
        "bf16 to nearest": Exact(torch.bfloat16),
        "16bit": Stored("16bit"),
        "8_16bit": Stored("8_16bit"),
    }
    squares: dict[str, dict[str, dict[str, float]]] = {name: {"before": {}, "after": {}} for name in formats}
    norms: dict[str, dict[str, float]] = {"before": {}, "after": {}}
    curve: list[dict[str, float]] = []
    counted = {"before": 0, "after": 0}
    for step in range(1, BEFORE + AFTER + 1):
        size = sizes if step <= BEFORE else sizes / 5
        grad = size * torch.randn(NUMEL, generator=generator, dtype=torch.float64)
        m, v = exact.take_in(grad, step)
        when = "before" if step <= BEFORE else "after"
        counts = step % 100 >= 80 and (step > BEFORE + AFTER - 2000 or BEFORE - 1000 < step <= BEFORE)
        found = {name: form.take_in(grad, step) for name, form in formats.items()}
        if step % 50 == 0:
            curve.append({"step": step, **{name: (pair[1].double() / v).mean().item() for name, pair in found.items()}})
        if not counts:
            continue
        counted[when] += 1
        for p in EXPONENTS:
            update = direction(m, v, p, step)
            key = f"update at p={p:g}"
            norms[when][key] = norms[when].get(key, 0.0) + update.square().sum().item()
            for name, pair in found.items():
                error = (direction(pair[0].double(), pair[1].double(), p, step) - update).square().sum().item()
                squares[name][when][key] = squares[name][when].get(key, 0.0) + error
        for name, pair in found.items():
            error = (pair[1].double() / v - 1).square().mean().item()
            squares[name][when]["v"] = squares[name][when].get("v", 0.0) + error
    errors = {
        name: {
            when: {key: (total / (norms[when].get(key) or counted[when])) ** 0.5 for key, total in by_key.items()}
            for when, by_key in by_time.items()
        }
        for name, by_time in squares.items()
    }
    return {
        "what": "state formats",
        "versions": record.versions(),
        "date": date.today().isoformat(),
        "errors": errors,
        "mean of v over exact v": curve,
    }


def direction(m: Tensor, v: Tensor, p: float, step: int) -> Tensor:
    return m / (1 - BETA1**step) * (v / (1 - BETA2**step) + EPS) ** -p


_STYLES = {
    "bf16 to nearest": ("tab:red", "-"),
    "16bit": ("tab:blue", "-"),
    "8_16bit": ("tab:green", "--"),
    "fp32": ("black", ":"),
}


def draw(found: dict[str, Any], path: Path) -> None:
    """V over the exact one by step, and the error of an update by p once the gradients have fallen."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, (of_v, of_update) = plt.subplots(1, 2, figsize=(8.3, 2.7), layout="constrained", dpi=150)
    curve = found["mean of v over exact v"]
    for name, (colour, dashes) in _STYLES.items():
        style: dict[str, Any] = {"color": colour, "linestyle": dashes, "linewidth": 1.4, "label": name}
        of_v.plot([point["step"] for point in curve], [point[name] for point in curve], **style)
        if name != "fp32":  # rounds to 0 %
            errors = [100 * found["errors"][name]["after"][f"update at p={p:g}"] for p in EXPONENTS]
            of_update.plot(EXPONENTS, errors, marker=".", **style)
    of_v.axvline(BEFORE, color="grey", linewidth=0.8)
    of_v.set(xlabel="optimizer step", ylabel="v over the exact v, mean", yscale="log", yticks=[1, 3, 10, 30])
    of_v.set_yticks([], minor=True)
    of_v.set_yticklabels(["1", "3", "10", "30"])
    of_v.set_title(f"gradients fall to a fifth at step {BEFORE:,}", fontsize=9)
    of_update.set(xlabel="p", ylabel="error of an update, %", yscale="log", yticks=[1, 10, 100])
    of_update.set_yticklabels(["1", "10", "100"])
    of_update.set_title("after it, root mean square", fontsize=9)
    for axes in (of_v, of_update):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*of_v.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(path)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="What moments in fewer bits do to an update.")
    parser.add_argument("--figure", action="store_true", help="draw the record's figure, and run nothing")
    path = Path(__file__).with_name("state-formats.json")
    if parser.parse_args(arguments).figure:
        found = json.loads(path.read_text())
    else:
        found = run()
        path.write_text(json.dumps(found, indent=1) + "\n")
    draw(found, FIGURE)
    keys = ["v", *(f"update at p={p:g}" for p in EXPONENTS)]
    print("| format | when | " + " | ".join(keys) + " |\n" + "|---" * (len(keys) + 2) + "|")
    for name, by_time in found["errors"].items():
        for when, errors in by_time.items():
            print(f"| {name} | {when} | " + " | ".join(f"{100 * errors[key]:.2f} %" for key in keys) + " |")


if __name__ == "__main__":
    main()
