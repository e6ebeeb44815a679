"""How a small default model is pretrained: one loop, with AdamW."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel, get_cosine_schedule_with_warmup


@dataclass(frozen=True)
class LoopSettings:
    """Everything that decides the loop's steps."""

    steps: int = 600
    batch_size: int = 8
    learning_rate: float = 2e-3
    weight_decay: float = 0.1
    warmup_fraction: float = 0.2
    seed: int = 0

    def fingerprint(self, content: str = "") -> str:
        """Return twelve hex digits of all settings, and of what else decides the checkpoint."""
        settings = json.dumps(dataclasses.asdict(self), sort_keys=True)
        return hashlib.sha256((settings + content).encode()).hexdigest()[:12]


@contextmanager
def random_numbers_apart(seed: int, device: torch.device) -> Iterator[None]:
    """Draw from a seed of its own: whether the checkpoint was in the cache must not change what is drawn later."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def pretrain(
    model: PreTrainedModel,
    count: int,
    examples: Callable[[Tensor], Mapping[str, Tensor]],
    settings: LoopSettings,
    show_progress: bool,
) -> None:
    """Train on rows drawn at random; ``examples`` makes a batch of the given rows among ``count``.

    A loop rather than the Trainer: under a distributed launch one process pretrains while the
    others wait at a barrier, and a Trainer would call collectives that nobody answers.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    warmup_steps = round(settings.warmup_fraction * settings.steps)
    schedule = get_cosine_schedule_with_warmup(optimizer, warmup_steps, settings.steps)
    order = torch.Generator().manual_seed(settings.seed)
    model.train()
    progress = tqdm(range(settings.steps), "pretraining", disable=not show_progress)
    for _ in progress:
        rows = torch.randint(count, (settings.batch_size,), generator=order)
        batch = {name: tensor.to(model.device) for name, tensor in examples(rows).items()}
        loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        progress.set_postfix(loss=f"{loss.item():.3f}")
