"""How far c_t of `update_scale="adam"` moves from one step to the next: `python -m benchmarks.ct_changes`.

A small GPT-2 learns the bytes of recipes/data. What a scale that lags one step behind would be off by.
"""

from __future__ import annotations

import lzma
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from hf_pdyn import Padam
from hf_pdyn.optim.step_work import Update

TEXT = Path(__file__).parents[1] / "recipes" / "data" / "shakespeare_plays.txt.xz"
STEPS, SETTLED = 150, 20


class _Recording(Padam):
    def _matching_scale(self, updates: Sequence[Update], squares: Tensor) -> Tensor:
        scale = super()._matching_scale(updates, squares)
        self.__dict__.setdefault("scales", []).append(scale.item())
        return scale


def changes(p: float, batch: int) -> Tensor:
    """|c_t / c_(t-1) - 1| of every step but the first."""
    torch.manual_seed(0)
    data = torch.frombuffer(bytearray(lzma.decompress(TEXT.read_bytes())[:400_000]), dtype=torch.uint8).long()
    config = GPT2Config(n_layer=3, n_head=4, n_embd=96, vocab_size=256, n_positions=64, bos_token_id=0, eos_token_id=0)
    model = GPT2LMHeadModel(config)
    optimizer = _Recording(model.parameters(), lr=1e-3, p=p, update_scale="adam")
    for _ in range(STEPS):
        starts = torch.randint(len(data) - 64, (batch,))
        tokens = torch.stack([data[start : start + 64] for start in starts.tolist()])
        model(tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    scales = torch.tensor(optimizer.scales)
    return (scales[1:] / scales[:-1] - 1).abs()


def main() -> None:
    print(f"| p | batch | median of abs(c_t / c_(t-1) - 1), steps {SETTLED} to {STEPS} | 90 % | largest |")
    print("|---|---|---|---|---|")
    for p in (0.37, 0.25, 0.0, -0.25):
        for batch in (4, 16):
            found = changes(p, batch)[SETTLED:]
            print(
                f"| {p} | {batch} | {found.median():.3f} | {found.quantile(0.9):.3f} | {found.max():.3f} |", flush=True
            )


if __name__ == "__main__":
    main()
