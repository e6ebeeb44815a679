"""The section of the Trainer's model card that says how the model was optimized."""

from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, get_peft_model
from transformers import Trainer

from hf_pdyn import (
    AllocationCallback,
    PControlCallback,
    ScheduleCallback,
    TelemetryCallback,
    WeightDecayShutoffCallback,
)
from hf_pdyn.callbacks import model_card
from tests.training import arguments, gpt2, trainer


def card(run: Trainer, **given: Any) -> str:
    run.create_model_card(**given)
    return Path(run.args.output_dir, "README.md").read_text()


def rows(text: str) -> dict[str, str]:
    section = text.split("<!-- hf_pdyn: begin -->")[1].split("<!-- hf_pdyn: end -->")[0]
    cells = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| ")]
    return {name: value for name, value in cells[1:]}  # noqa: C416  (a row of other than two cells must fail)


def test_a_controlled_run(tmp_path: Path) -> None:
    run = trainer(
        tmp_path,
        optim_args="p=0.4,update_scale=adam",
        weight_decay=0.1,
        logging_steps=1,
        callbacks=[
            TelemetryCallback(),
            AllocationCallback(1),
            PControlCallback(interval=3),
            WeightDecayShutoffCallback(6),
        ],
    )
    run.train()
    text = card(run, model_name="mine", tags="test")
    assert text.index("# mine") < text.index("## Optimizer")
    found = rows(text)
    logs = [record for record in run.state.log_history if "loss" in record]
    assert found["optim"] == "`padam`" and found["optim_args"] == "`p=0.4,update_scale=adam`"
    assert found["p"].startswith(("0.4 ", "from 0.4 to "))
    assert found["decisions of Algorithm 1"] == f"{sum(record.get('pdyn/control/decisions', 0) for record in logs):.0f}"
    assert found["p moved by"].startswith("`PControlCallback(config={p_min: ")
    assert found["weight_decay moved by"] == "`WeightDecayShutoffCallback(at=6)`"
    assert found["cumulative decay, -sum lr * weight decay"] == f"{logs[-1]['pdyn/a_t']:.3g}"
    ratio = "update norm of weights over that of biases and norms, at the end"
    assert found[ratio] == f"{logs[-1]['pdyn/update_ratio']:.3g}"
    assert found["cosine between the update and Adam's"] == f"{logs[-1]['pdyn/allocation/cosine_to_adam']:.3g}"


def test_a_scheduled_run(tmp_path: Path) -> None:
    callbacks = [TelemetryCallback(), ScheduleCallback("p", "linear:0.45..0.35"), ScheduleCallback("p", 0.1, "norm")]
    run = trainer(tmp_path, callbacks=callbacks)
    run.train()
    found = rows(card(run))
    assert found["schedule of p"] == "`linear:0.45..0.35`" and found["schedule of p.norm"] == "`0.1`"
    assert "p moved by" not in found and "decisions of Algorithm 1" not in found


def test_the_path_of_p(tmp_path: Path) -> None:
    records = [{"pdyn/p": p, "pdyn/control/decisions": 1} for p in (0.4, 0.5, 0.42)] + [{"eval_loss": 1.0}]
    section = model_card.card_section(arguments(tmp_path), records, [])
    assert "| p | from 0.4 to 0.42, between 0.4 and 0.5 |" in section
    assert "| decisions of Algorithm 1 | 3 |" in section


def test_another_optimizer_has_no_row_of_p(tmp_path: Path) -> None:
    run = trainer(tmp_path, optim="adafactor", callbacks=[TelemetryCallback()])
    run.train()
    found = rows(card(run))
    assert found["optim"] == "`adafactor`" and "p" not in found and "optim_args" not in found


def test_a_second_training_replaces_the_section(tmp_path: Path) -> None:
    run = trainer(tmp_path, callbacks=[TelemetryCallback()])
    run.train()
    assert rows(card(run))["p"] == "0.5 throughout"
    run.add_callback(ScheduleCallback("p", 0.3))
    run.train()
    text = card(run)
    assert text.count("## Optimizer") == 1 and rows(text)["schedule of p"] == "`0.3`"


@pytest.mark.filterwarnings("ignore:Could not find a config file:UserWarning")  # peft 0.18 looks for its base model
def test_a_card_that_peft_goes_on_with_has_one_section(tmp_path: Path) -> None:
    lora = LoraConfig(target_modules=["c_attn"], bias="all", fan_in_fan_out=True)
    run = trainer(tmp_path, get_peft_model(gpt2(), lora), callbacks=[TelemetryCallback()])
    run.train()
    run.save_model()  # PEFT writes a card of its own
    assert card(run).count("## Optimizer") == 1
    assert card(run).count("## Optimizer") == 1


def test_a_trainer_with_a_card_of_its_own(tmp_path: Path) -> None:
    class Brief(Trainer):
        def create_model_card(self, title: str) -> None:
            Path(self.args.output_dir, "README.md").write_text(f"# {title}\n")

    run = trainer(tmp_path, trainer_class=Brief, callbacks=[TelemetryCallback()])
    run.train()
    text = card(run, title="brief")
    assert text.startswith("# brief\n\n<!-- hf_pdyn: begin -->\n## Optimizer") and text.endswith("end -->\n")


def test_a_section_that_fails_leaves_the_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> str:
        raise LookupError("no such record")

    run = trainer(tmp_path, callbacks=[TelemetryCallback()])
    run.train()
    monkeypatch.setattr(model_card, "card_section", fail)
    with pytest.warns(UserWarning, match="LookupError: no such record"):
        text = card(run, model_name="mine")
    assert "# mine" in text and "hf_pdyn: begin" not in text


def test_a_card_that_cannot_be_replaced_is_left_as_it_is(tmp_path: Path) -> None:
    class Linked(Trainer):
        def create_model_card(self) -> None:
            elsewhere = Path(self.args.output_dir, "card.md")
            elsewhere.write_text("# linked\n")
            Path(self.args.output_dir, "README.md").symlink_to(elsewhere)

    run = trainer(tmp_path, trainer_class=Linked, callbacks=[TelemetryCallback()])
    run.train()
    with pytest.warns(UserWarning, match=r"could not add to .*README.md: it is a link.*The card is as it was"):
        text = card(run)
    assert text == "# linked\n"
    assert Path(run.args.output_dir, "README.md").is_symlink()
