"""Spectra of thin products by QR, against `svdvals` of the products; and what one measurement of a model costs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import trainer
from benchmarks.timing import interleaved
from hf_pdyn.measure.attention_lora import AttentionProduct, LoraProduct, Product, find_products
from hf_pdyn.measure.spectra import singular_values

SHARE = 0.02
"""The part of the training time that measurements at the default interval may take."""


def run(device: torch.device, size: str, seconds: float) -> dict[str, Any]:
    """Compare on the weights of a GPT-2 of that size with LoRA on c_attn."""
    model = trainer.model(size, lora=True).to(device)
    for name, param in model.named_parameters():
        if "lora_B" in name:  # else the product is zero
            nn.init.normal_(param, std=0.02)
    products = find_products(model).products
    heads = [_heads(product) for product in products if isinstance(product, AttentionProduct)]
    loras = [_factors(product) for product in products if isinstance(product, LoraProduct)]
    rank = loras[0][0].shape[-1]
    comparisons: list[tuple[str, str, Callable[[], object], Callable[[], object], float | None]] = [
        (f"K^T Q of {heads[0][0].shape[0]} heads, a layer", "svdvals", _thin(heads), _dense(heads), 1 / 20),
        (f"B A of rank {rank}, a layer", "svdvals", _thin(loras), _dense(loras), 1 / 20),
        (
            f"all that is measured, {len(heads)} layers",
            "a training step",
            lambda: _measure(products),
            _step(model, size, device),
            None,
        ),
    ]
    rows = []
    for name, opponent, ours, theirs, target in comparisons:
        pair = interleaved(ours, theirs, seconds=seconds, device=device)
        rows.append(
            {
                "what": f"{size}, {name}",
                "against": opponent,
                "milliseconds": round(1e3 * pair.ours, 3),
                "theirs_milliseconds": round(1e3 * pair.theirs, 3),
                "ratio": round(pair.ratio, 5),
                "target": target,
                "rounds": pair.rounds,
            }
        )
        print(line(rows[-1]), flush=True)
    steps = math.ceil(rows[-1]["ratio"] / SHARE)
    print(f"\nAt most {SHARE:.0%} of the training where an interval has {steps} steps or more.")
    return {"batch": [trainer.BATCH, trainer.LENGTH], "share": SHARE, "steps_for_share": steps, "rows": rows}


Factors = tuple[Tensor, Tensor]


@torch.no_grad()
def _heads(product: AttentionProduct) -> Factors:
    """K^T and Q^T of every head, (heads, in, rows of a head)."""
    query, key = (
        projection.weight(Tensor.detach).view(-1, product.head_size or 1, projection.weight(Tensor.detach).shape[1]).mT
        for projection in (product.query, product.key)
    )
    return key, query


@torch.no_grad()
def _factors(product: LoraProduct) -> Factors:
    a, b = (tensor.detach() for tensor in product.tensors())
    return b, a.mT


def _thin(factors: list[Factors]) -> Callable[[], object]:
    """One layer after the other."""
    layers = itertools.cycle(factors)
    return lambda: singular_values(*next(layers))


def _dense(factors: list[Factors]) -> Callable[[], object]:
    layers = itertools.cycle(factors)

    def values() -> Tensor:
        left, right = next(layers)
        return torch.linalg.svdvals(left @ right.mT)

    return values


@torch.no_grad()
def _measure(products: list[Product]) -> object:
    return [product.measure(Tensor.detach) for product in products]


def _step(model: nn.Module, size: str, device: torch.device) -> Callable[[], object]:
    """A step with AdamW, as little as training can be."""
    optimizer = torch.optim.AdamW([param for param in model.parameters() if param.requires_grad], lr=1e-5, fused=True)
    rows = trainer.data(trainer.SIZES[size]["vocab_size"], steps=1)
    tokens = torch.stack([row["input_ids"] for row in rows]).to(device)

    def step() -> None:
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


HEADER = "| what | against | ms | theirs | faster by | at least |\n|---|---|---|---|---|---|"


def line(row: dict[str, Any]) -> str:
    """One row of the table."""
    target = f"{1 / row['target']:.0f} x" if row["target"] else ""
    return (
        f"| {row['what']} | {row['against']} | {row['milliseconds']:.1f} | {row['theirs_milliseconds']:.1f} | "
        f"{1 / row['ratio']:.1f} x | {target} |"
    )
