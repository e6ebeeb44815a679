"""Which gauges telemetry has of which optimizer: measured, and written into a document as a table."""

from __future__ import annotations

import logging
import sys
import tempfile
import warnings
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PrinterCallback

from hf_pdyn import AllocationCallback, TelemetryCallback
from tests.training import gpt2, trainer, training_logs

BEGIN, END = "<!-- gauges: begin -->", "<!-- gauges: end -->"

# Column of the table: one metric that stands for it.
GAUGES = {
    "gradients": "pdyn/D_w",
    "updates": "pdyn/update_norm/weight",
    "v_hat": "pdyn/v_hat_mean/weight",
    "N_p": "pdyn/N_p/weight",
    "implicit bias": "pdyn/implicit_bias/weight",
    "a_t": "pdyn/a_t",
    "allocation curve": "pdyn/allocation/lr_factor",
}


def _muon(model: nn.Module) -> torch.optim.Optimizer:
    for param in model.parameters():
        param.requires_grad_(param.ndim == 2)  # it takes matrices alone
    return torch.optim.Muon([param for param in model.parameters() if param.requires_grad], lr=1e-3)


def _schedule_free(model: nn.Module) -> torch.optim.Optimizer:
    import schedulefree

    optimizer: torch.optim.Optimizer = schedulefree.AdamWScheduleFree(model.parameters(), lr=1e-3, weight_decay=0.1)
    optimizer.train()  # type: ignore[attr-defined]
    return optimizer


def _torchao(model: nn.Module) -> torch.optim.Optimizer:
    from torchao.optim import AdamW8bit

    return AdamW8bit(model.parameters(), lr=1e-3, weight_decay=0.1)


def _bitsandbytes(model: nn.Module) -> torch.optim.Optimizer:
    import bitsandbytes

    return bitsandbytes.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1, optim_bits=8, min_8bit_size=256)


Make = Callable[[nn.Module], torch.optim.Optimizer]
# By name: what the Trainer is asked for, or an optimizer that is given to it; and the package that has it.
OPTIMIZERS: dict[str, tuple[str | Make, str]] = {
    "padam": ("padam", "torch"),
    "AdamW, foreach": ("adamw_torch", "torch"),
    "AdamW, fused": ("adamw_torch_fused", "torch"),
    "SGD": ("sgd", "torch"),
    "Adafactor": ("adafactor", "transformers"),
    "Muon": (_muon, "torch"),
    "AdamW of schedule-free": (_schedule_free, "schedulefree"),
    "AdamW8bit of torchao": (_torchao, "torchao"),
    "8-bit AdamW of bitsandbytes": (_bitsandbytes, "bitsandbytes"),
}


def installed(name: str) -> bool:
    """Whether the package is there that has the optimizer."""
    return find_spec(OPTIMIZERS[name][1]) is not None


class _Said(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


def measure(name: str, folder: Path) -> tuple[dict[str, bool], list[str]]:
    """Which of GAUGES a short training has in its last record, and what was said of those that are missing."""
    optim = OPTIMIZERS[name][0]
    model = gpt2()
    options: dict[str, Any] = {"optim": optim} if isinstance(optim, str) else {"optimizers": (optim(model), None)}
    callbacks = [TelemetryCallback(), AllocationCallback("log")]
    run = trainer(folder, model, max_steps=4, weight_decay=0.1, callbacks=callbacks, **options)
    run.remove_callback(PrinterCallback)
    said = _Said()
    logging.getLogger("hf_pdyn").addHandler(said)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run.train()
    finally:
        logging.getLogger("hf_pdyn").removeHandler(said)
    record = training_logs(run.state.log_history)[-1]
    ours = [str(one.message) for one in caught if "pdyn" in str(one.message)]
    return {gauge: metric in record for gauge, metric in GAUGES.items()}, [*ours, *said.texts]


def render() -> str:
    """The table of what is installed, in Markdown."""
    rows = [f"| optimizer | {' | '.join(GAUGES)} | of |", f"|---|{'---|' * len(GAUGES)}---|"]
    for name, (_, package) in OPTIMIZERS.items():
        if not installed(name):
            continue
        with tempfile.TemporaryDirectory() as folder:
            found, _ = measure(name, Path(folder))
        cells = ("yes" if there else "" for there in found.values())
        rows.append(f"| {name} | {' | '.join(cells)} | {package} {version(package)} |")
    return "\n".join(rows)


def main() -> None:
    document = Path(sys.argv[1])
    before, rest = document.read_text().split(BEGIN)
    document.write_text(f"{before}{BEGIN}\n{render()}\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
