"""The image recipe: once as its user runs it, in a process of its own; the rest of its decisions in this one."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import vit_lora
from filelock import FileLock
from peft import PeftModel
from torch.distributed.elastic.utils.distributed import get_free_port
from transformers import (
    AutoModelForImageClassification,
    DeiTConfig,
    DeiTForImageClassificationWithTeacher,
    Dinov2Config,
    Dinov2ForImageClassification,
    PreTrainedModel,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
)

from _common.entry_point import RecipeError
from _common.lora import LoraArguments, add_lora, trainable_names
from _common.pretrained_vit import ViTPretrainingSettings, vit_checkpoint, write_processor
from hf_pdyn import label_parameters
from hf_pdyn.run_dir import tables
from tests.distributed.launching import ENVIRONMENT, ROOT

SCRIPT = ROOT / "recipes" / "vit_lora.py"
TINY = {
    # Enough to learn by far more than seeds, or the roundings of processors, differ.
    "pretrain_steps": 200,
    "max_steps": 36,
    "learning_rate": 2e-3,
    # Adam's 1e-8 would scale the rounding of the key biases' gradients, which are zero, up to whole steps.
    "adam_epsilon": 1e-6,
    "per_device_train_batch_size": 16,
    "max_validation_images": 128,
    "logging_steps": 3,
    "save_steps": 12,
    "save_strategy": "steps",
    "eval_strategy": "no",
    "disable_tqdm": True,
    "use_cpu": True,
}
SHAPE = {"image_size": 12, "patch_size": 4, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
IMAGES = tuple("56789")

# peft 0.18 looks for the base model's configuration when it saves, and a model made here has none on disk.
pytestmark = pytest.mark.filterwarnings("ignore:Could not find a config file in:UserWarning")


def words(**options: Any) -> list[str]:
    return [f"--{name}={value}" for name, value in (TINY | options).items()]


def recipe(monkeypatch: pytest.MonkeyPatch, *options: str) -> None:
    monkeypatch.setattr(sys, "argv", ["vit_lora.py", *options])
    vit_lora.main()


def start(directory: Path, *command: str) -> subprocess.CompletedProcess[str]:
    result = subprocess.run(
        [sys.executable, *command],
        cwd=directory,
        env=os.environ | ENVIRONMENT | {"XDG_CACHE_HOME": str(directory / "cache")},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-4000:]
    return result


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """The directory of one run of the shipped configuration, cut short, for all workers of pytest-xdist.

    The run itself stands in `out`, what it printed in `printed`.
    """
    base = tmp_path_factory.getbasetemp()
    found = (base if worker_id == "master" else base.parent) / "vit_lora"
    with FileLock(f"{found}.lock"):
        if not (found / "printed").exists():
            found.mkdir(exist_ok=True)
            config = ["--config", str(ROOT / "recipes" / "configs" / "vit_lora.yaml")]
            result = start(found, str(SCRIPT), *config, *words(output_dir="out", p_interval=6))
            (found / "printed").write_text(result.stdout)
    return found


@pytest.fixture(scope="module")
def printed(directory: Path) -> str:
    return (directory / "printed").read_text()


@pytest.fixture(scope="module")
def summary(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "out" / "summary.json").read_text())


def history(out: Path) -> list[dict[str, Any]]:
    return json.loads((out / "trainer_state.json").read_text())["log_history"]


# --- a run -----------------------------------------------------------------------------------------------------------


def test_it_learns(summary: dict[str, Any]) -> None:
    assert summary["loss_after"] < 0.9 * summary["loss_before"]
    assert summary["accuracy_after"] > summary["accuracy_before"] + 0.05


def test_it_says_what_it_trains_on_and_where_everything_is(printed: str, summary: dict[str, Any]) -> None:
    assert "scikit-learn's digits 5 to 9: 717 images to train on, 128 to validate on, 5 classes, a new head" in printed
    assert printed.index("Head and backbone") < printed.index("Summary") < printed.index("Outputs")
    assert summary["classes"] == list(IMAGES)
    for path in summary["outputs"].values():
        assert Path(path).exists(), path


def test_head_and_backbone_are_told_apart(directory: Path, summary: dict[str, Any]) -> None:
    rows = tables.read_table(directory / "out", tables.LAYERS)[0].to_pylist()
    assert {row["part"] for row in rows if row["layer"] == "classifier"} == {"weight", "bias_like"}
    last = {
        (row["layer"], row["part"]): row["value"] for row in rows if row["name"] == "grad_norm" and row["step"] == 3
    }
    head = sum(value**2 for (layer, _), value in last.items() if layer == "classifier")
    first = next(record for record in history(directory / "out") if "loss" in record)
    # Squares of layers' means over three steps add up to less than those of the mean of all, by what steps differ.
    together, whole = sum(value**2 for value in last.values()), first["pdyn/D_w"] ** 2 + first["pdyn/D_b"] ** 2
    assert 0.7 * whole < together <= whole * (1 + 1e-5)
    assert 0 < head < together
    for part in ("head", "backbone"):
        assert summary[f"{part}_gradient_norm"] > 0
        assert summary[f"{part}_relative_update"] > 0


def test_the_controller_and_the_shutoff_had_their_say(directory: Path, summary: dict[str, Any]) -> None:
    logged = [record for record in history(directory / "out") if "loss" in record]
    assert sum("pdyn/control/branch" in record for record in logged) == 36 / 6
    assert {record["pdyn/weight_decay"] for record in logged} == {0.1, 0.0}
    assert {"pdyn/by_label/weight/head/p", "pdyn/by_label/weight/lora_A/p"} <= logged[-1].keys()


def test_a_run_that_was_cut_off_goes_on_to_the_same_end(
    directory: Path, summary: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shutil.copytree(directory / "out" / "checkpoint-24", tmp_path / "out" / "checkpoint-24")
    monkeypatch.chdir(directory)
    monkeypatch.setenv("XDG_CACHE_HOME", str(directory / "cache"))
    config = ["--config", str(ROOT / "recipes" / "configs" / "vit_lora.yaml"), "--resume_from_checkpoint", "auto"]
    recipe(monkeypatch, *config, *words(output_dir=tmp_path / "out", p_interval=6))
    resumed = json.loads((tmp_path / "out" / "summary.json").read_text())
    # Another process may split a matrix product in another way.
    for name in ("loss_before", "loss_after", "final_p", "final_D_w"):
        assert resumed[name] == pytest.approx(summary[name], rel=1e-5), name


def test_the_adapter_with_its_head_reloads_on_the_checkpoint(directory: Path, summary: dict[str, Any]) -> None:
    adapter = directory / "out" / "adapter"
    base = json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"]
    plain = AutoModelForImageClassification.from_pretrained(base, num_labels=len(summary["classes"]))
    old_head = plain.classifier.weight.detach().clone()
    model = PeftModel.from_pretrained(plain, adapter).eval()
    assert not torch.equal(model.base_model.model.classifier.modules_to_save["default"].weight, old_head)
    assert (adapter / "preprocessor_config.json").exists()


@pytest.mark.distributed
def test_two_processes_train_one_model(directory: Path, summary: dict[str, Any], tmp_path: Path) -> None:
    launch = ["-m", "accelerate.commands.accelerate_cli", "launch", "--config_file"]
    launch += [str(ROOT / "recipes" / "accelerate" / "ddp.yaml"), "--main_process_port", str(get_free_port())]
    config = ["--config", str(ROOT / "recipes" / "configs" / "vit_lora.yaml")]
    options = words(output_dir=tmp_path / "out", p_interval=6, per_device_train_batch_size=8)
    printed = start(directory, *launch, str(SCRIPT), *config, *options).stdout
    found = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (found["processes"], summary["processes"]) == (2, 1)
    assert printed.count("Summary") == 1
    assert found["accuracy_before"] == summary["accuracy_before"]
    for name in ("loss_before", "final_D_w", "loss_after", "head_gradient_norm"):  # sums come in another order
        assert found[name] == pytest.approx(summary[name], rel=1e-3), name


# --- models ----------------------------------------------------------------------------------------------------------


def vit() -> PreTrainedModel:
    return ViTForImageClassification(ViTConfig(**SHAPE, intermediate_size=32, num_labels=3))


def deit() -> PreTrainedModel:
    return DeiTForImageClassificationWithTeacher(DeiTConfig(**SHAPE, intermediate_size=32, num_labels=5))


def dinov2() -> PreTrainedModel:
    return Dinov2ForImageClassification(Dinov2Config(**SHAPE, mlp_ratio=2, num_labels=5))


@pytest.fixture(params=[vit, deit, dinov2], ids=lambda make: make.__name__)
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A checkpoint as it could come from the hub."""
    torch.manual_seed(1)
    request.param().save_pretrained(tmp_path / "model")
    write_processor(tmp_path / "model", image_size=12)
    return tmp_path / "model"


def load(source: Path, class_names: tuple[str, ...] = IMAGES, **options: Any) -> PreTrainedModel:
    arguments = vit_lora.ModelArguments(model_name_or_path=str(source), **options)
    return vit_lora.load_model(arguments, class_names, TrainingArguments(use_cpu=True, report_to=[]))[0]


def backbone(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return model.base_model.state_dict()


def test_the_backbone_is_the_checkpoints_and_the_head_is_new(source: Path) -> None:
    kept = AutoModelForImageClassification.from_pretrained(source)
    model = load(source)
    assert backbone(model).keys() == backbone(kept).keys()
    for name, tensor in backbone(kept).items():
        assert torch.equal(backbone(model)[name], tensor), name
    assert model.classifier.weight.shape[0] == 5
    assert model.config.id2label == dict(enumerate(IMAGES))
    same_shape = getattr(kept, "classifier", None)
    if same_shape is not None and same_shape.weight.shape == model.classifier.weight.shape:
        assert not torch.equal(same_shape.weight, model.classifier.weight)


def test_what_trains_is_labelled_head_lora_norm_and_biases(source: Path) -> None:
    model = add_lora(load(source), LoraArguments(), None, heads=["classifier"])
    labels = {name: str(label) for name, label in label_parameters(model).items()}
    heads = {name: label for name, label in labels.items() if ".classifier." in name}
    assert sorted(heads.values()) == ["bias_like/head", "weight/head"]
    assert {label for name, label in labels.items() if name not in heads} == {
        "weight/lora_A", "weight/lora_B", "bias_like/norm", "bias_like/attention", "bias_like/mlp", "bias_like/conv",
    }  # fmt: skip
    adapted = {name.split(".lora_A")[0].rpartition(".")[2] for name in labels if "lora_A" in name}
    assert adapted in ({"q_proj", "k_proj", "v_proj"}, {"query", "key", "value"})

    model(pixel_values=torch.randn(2, 3, 12, 12), labels=torch.tensor([0, 4])).loss.backward()
    parameters = dict(model.named_parameters())
    assert [name for name in trainable_names(model) if parameters[name].grad is None] == []


def test_the_head_can_be_kept(tmp_path: Path) -> None:
    vit().save_pretrained(tmp_path)
    write_processor(tmp_path, image_size=12)
    kept = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert torch.equal(load(tmp_path, tuple("abc"), keep_head=True).classifier.weight, kept.classifier.weight)
    with pytest.raises(RecipeError, match="--keep_head.*3 classes.*5"):
        load(tmp_path, keep_head=True)


def test_images_of_another_size_are_refused_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vit().save_pretrained(tmp_path / "model")
    write_processor(tmp_path / "model", image_size=20)
    with pytest.raises(RecipeError, match=r"preprocessor_config.json makes them, got \(3, 20, 20\)"):
        recipe(monkeypatch, *words(output_dir=tmp_path / "out", model_name_or_path=tmp_path / "model"))
    assert not (tmp_path / "out").exists()


def test_the_default_checkpoint_is_made_once_and_changes_no_draw(tmp_path: Path) -> None:
    settings = ViTPretrainingSettings(steps=2, n_layer=1, hidden_size=16, n_head=2, batch_size=4)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    made = vit_checkpoint(settings, tmp_path, show_progress=False)
    assert torch.equal(torch.get_rng_state(), state)
    written = (made / "model.safetensors").stat().st_mtime_ns
    assert vit_checkpoint(settings, tmp_path, show_progress=False) == made
    assert (made / "model.safetensors").stat().st_mtime_ns == written
    assert AutoModelForImageClassification.from_pretrained(made).config.id2label == dict(enumerate("01234"))


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--image_folder", "a", "--cifar10_dir", "b"], "--image_folder and --cifar10_dir exclude each other"),
        (["--pretrain_images", "digits"], "must have no image in common.*got 'digits' and 'digits-5-9'"),
        (["--embedded_images", "cats"], "invalid choice: 'cats'"),
        (["--validation_fraction", "1.0"], "--validation_fraction must lie between 0 and 1, got 1.0"),
        (["--fashion_mnist_dir", "absent"], "--fashion_mnist_dir must hold train-images-idx3-ubyte.gz, got 'absent'"),
        (["--dataset_name", "nobody/nothing"], "--dataset_name must be a dataset that can be loaded"),
        (
            ["--model_name_or_path", "absent"],
            "--model_name_or_path must be an image class.*got 'absent'",
        ),
        (["--resume_from_checkpoint", "nope"], "for the newest, got 'nope'"),
    ],
)
def test_bad_values_are_one_error_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(RecipeError, match=message):
        recipe(monkeypatch, "--use_cpu=True", *options)
    assert not list(tmp_path.iterdir())
