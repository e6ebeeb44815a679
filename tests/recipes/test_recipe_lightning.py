"""The callback for Lightning, where that is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import hf_pdyn

lightning = pytest.importorskip("lightning")

from lightning_callback import PdynGauges  # noqa: E402

pytestmark = pytest.mark.filterwarnings("default")  # Lightning's own


class Regression(lightning.LightningModule):  # type: ignore[misc,name-defined]
    def __init__(self, optimizer: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 1))
        self.optimizer = optimizer
        self.norms: list[list[float]] = []
        self.logged: list[dict[str, float]] = []

    def training_step(self, batch: Any, _: int) -> torch.Tensor:
        x, y = batch
        return nn.functional.mse_loss(self.net(x), y)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        weights = [self.net[0].weight, self.net[3].weight]
        others = [param for param in self.net.parameters() if not any(param is one for one in weights)]
        self.norms.append([torch.stack([p.grad.norm() for p in group]).norm().item() for group in (weights, others)])

    def on_train_batch_end(self, *_: Any) -> None:
        self.logged.append({name: float(value) for name, value in self.trainer.callback_metrics.items()})

    def configure_optimizers(self) -> torch.optim.Optimizer:
        if self.optimizer == "padam":
            return hf_pdyn.Padam(hf_pdyn.build_param_groups(self), lr=1e-2, p=0.5)
        return torch.optim.SGD(self.parameters(), lr=1e-2)


def fit(
    folder: Path, optimizer: str, interval: int | None = None, resume: Path | None = None, **options: Any
) -> tuple[Regression, PdynGauges]:
    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(1))
    module, gauges = Regression(optimizer), PdynGauges(interval)
    trainer = lightning.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        log_every_n_steps=4,
        callbacks=[gauges],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"max_steps": 12, **options},
    )
    data = DataLoader(TensorDataset(x, 3 * x[:, :1]), batch_size=8)
    trainer.fit(module, data, ckpt_path=resume, weights_only=True if resume else None)
    trainer.save_checkpoint(folder / "last.ckpt")
    return module, gauges


@pytest.mark.parametrize("optimizer", ["padam", "sgd"])
@pytest.mark.parametrize(
    "options", [{}, {"gradient_clip_val": 0.1}, {"accumulate_grad_batches": 2}], ids=["plain", "clipped", "accumulated"]
)
def test_norms_are_means_of_gradients_before_clipping(tmp_path: Path, optimizer: str, options: dict[str, Any]) -> None:
    module, _ = fit(tmp_path, optimizer, **options)
    assert len(module.norms) == 12
    records = [record for record in module.logged if "pdyn/D_w" in record]
    for name, place in (("pdyn/D_w", 0), ("pdyn/D_b", 1)):
        expected = sum(norms[place] for norms in module.norms[-4:]) / 4
        assert records[-1][name] == pytest.approx(expected, rel=1e-4)
    assert records[-1]["pdyn/update_norm/weight"] > 0
    if "gradient_clip_val" in options:
        assert records[-1]["pdyn/D_w_clipped"] <= 0.1 * (1 + 1e-6) < records[-1]["pdyn/D_w"]


def test_algorithm_1_moves_p(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module, gauges = fit(tmp_path, "padam", interval=3)
    assert gauges.control.interval == 4 and "p 0.52" in capsys.readouterr().out
    assert {group["p"] for group in module.optimizers().param_groups} == {gauges.control.p}
    with pytest.raises(ValueError, match="Algorithm 1 moves the p of a Padam, got SGD"):
        fit(tmp_path, "sgd", interval=3)


@pytest.mark.filterwarnings("ignore:Resuming overrules p")
def test_a_resumed_training_is_the_uninterrupted_one(tmp_path: Path) -> None:
    """Bit for bit; the epoch of 8 steps ends within an interval of 3."""
    straight, expected = fit(tmp_path, "padam", interval=3, max_steps=-1, max_epochs=2)
    fit(tmp_path, "padam", interval=3, max_steps=-1, max_epochs=1)
    resumed, found = fit(tmp_path, "padam", interval=3, resume=tmp_path / "last.ckpt", max_steps=-1, max_epochs=2)
    assert found.control == expected.control and found.control.interval == 5
    assert all(torch.equal(p, q) for p, q in zip(straight.parameters(), resumed.parameters(), strict=True))
