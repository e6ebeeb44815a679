"""No metric's name begins another's path: file stores make folders of names."""

from pathlib import Path

from peft import LoraConfig, get_peft_model

from hf_pdyn import PControlCallback, SampleLossCallback, SpectralCallback, TelemetryCallback
from hf_pdyn.grouping import COMPONENTS, PATHWAYS
from tests.training import gpt2, trainer


def test_every_metric_can_be_a_file(tmp_path: Path) -> None:
    lora = LoraConfig(target_modules=["c_attn"], bias="all", modules_to_save=["ln_1"], fan_in_fan_out=True)
    run = trainer(
        tmp_path / "run",
        get_peft_model(gpt2(), lora),
        weight_decay=0.1,
        eval_strategy="epoch",
        max_steps=16,
        callbacks=[
            TelemetryCallback(per_layer=True),
            PControlCallback(interval=3),
            SpectralCallback(every=4),
            SampleLossCallback(8),
        ],
    )
    run.train()
    names = {name for record in run.state.log_history for name in record}
    for kind in ("D_w", "by_label/weight/p", "by_label/weight/lora_A/a_t", "control/p", "spectrum/lora/nuclear"):
        assert f"pdyn/{kind}" in names
    assert any(name.startswith("pdyn/samples/") for name in names)
    for name in names:
        path = tmp_path / "store" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")


def test_no_label_is_named_like_a_field() -> None:
    """`pdyn/by_label/weight/p` beside `pdyn/by_label/weight/attention/p`."""
    assert not {"p", "weight_decay", "a_t"} & {*PATHWAYS, *COMPONENTS}
