"""The launch files in `recipes/accelerate`: what they say, and the recipe started with each, two processes on CPU."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import accelerate
import pytest
import yaml
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import launch_command_parser
from packaging.version import Version
from torch.distributed.elastic.utils.distributed import get_free_port

from tests.distributed.launching import ENVIRONMENT, ROOT

FILES = {path.stem: path for path in sorted((ROOT / "recipes" / "accelerate").glob("*.yaml"))}
# Sums over processes come in another order, in float32.
TOLERANCE = 1e-5
GLOBAL_BATCH = 8
SETTINGS = {
    "config": ROOT / "recipes" / "configs" / "gpt2_lora.yaml",
    "pretrain_steps": 8,
    "block_size": 32,
    "max_train_blocks": 96,
    "max_validation_blocks": 16,
    "max_steps": 12,
    "logging_steps": 1,
    "allocation": "log",  # auto measures by the clock
    "p_interval": 3,
    "learning_rate": 0.01,
    # Adam's epsilon of 1e-8 would scale the rounding of the key biases' gradients, which are zero, up to whole steps.
    "adam_epsilon": 1e-6,
    "sample_tokens": 8,
    "cache_dir": "cache",
    "disable_tqdm": True,
    "use_cpu": True,
}

before_fsdp2 = pytest.mark.skipif(
    Version(accelerate.__version__) < Version("1.6"), reason="accelerate knows FSDP2 from 1.6 on"
)


def parameters(*names: str) -> list[Any]:
    return [pytest.param(name, marks=before_fsdp2) if name == "fsdp2" else name for name in names]


def load(name: str) -> ClusterConfig:
    config = load_config_from_file(str(FILES[name]))  # refuses keys it does not know, but for the nested ones
    assert isinstance(config, ClusterConfig)
    return config


@pytest.mark.parametrize("name", parameters(*FILES))
def test_accelerate_knows_every_key(name: str) -> None:
    config = load(name)
    options = vars(launch_command_parser().parse_args(["script.py"]))
    assert {*config.fsdp_config, *config.deepspeed_config} <= options.keys()


@pytest.mark.parametrize(
    ("name", "kind", "nested"),
    [
        ("ddp", "MULTI_GPU", {}),
        ("fsdp2", "FSDP", {"fsdp_version": 2, "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP"}),
        ("zero3", "DEEPSPEED", {"zero_stage": 3, "zero3_save_16bit_model": True}),
        ("zero2", "DEEPSPEED", {"zero_stage": 2, "gradient_clipping": "auto", "gradient_accumulation_steps": "auto"}),
    ],
)
def test_a_file_is_what_its_name_says(name: str, kind: str, nested: dict[str, Any]) -> None:
    config = load(name)
    assert config.distributed_type == kind
    assert config.num_processes == 2
    assert config.mixed_precision == "no"
    assert nested.items() <= (config.fsdp_config | config.deepspeed_config).items()


def test_the_files_differ_in_nothing_else() -> None:
    own = {"distributed_type", "fsdp_config", "deepspeed_config"}
    contents = [yaml.safe_load(path.read_text()) for path in FILES.values()]
    shared = [{key: value for key, value in content.items() if key not in own} for content in contents]
    assert all(content == shared[0] for content in shared)


def test_the_documentation_shows_every_file_and_no_other() -> None:
    shown = re.findall(r"--config_file (\S+)", (ROOT / "docs" / "distributed.md").read_text())
    assert sorted(shown) == [str(path.relative_to(ROOT)) for path in FILES.values()]


class Run:
    """A finished run of the recipe: its summary, its training records and what it printed."""

    def __init__(self, directory: Path, launch: str) -> None:
        self.out = directory / launch
        processes = 1 if launch == "plain" else 2
        command = ["recipes/gpt2_lora.py"]
        if launch == "fsdp2":
            command = ["-m", "tests.scripts.fsdp_on_cpu", *command]  # on CPU accelerate would train with DDP
        if launch != "plain":
            accelerate_launch = ["-m", "accelerate.commands.accelerate_cli", "launch"]
            port = ["--main_process_port", str(get_free_port())]  # the default is one for all launches on a machine
            command = [*accelerate_launch, "--config_file", str(FILES[launch]), *port, *command]
        settings = SETTINGS | {
            "cache_dir": directory / "cache",
            "output_dir": self.out,
            "per_device_train_batch_size": GLOBAL_BATCH // processes,
        }
        options = [f"--{name}={value}" for name, value in settings.items()]
        result = subprocess.run(
            [sys.executable, *command, *options],
            cwd=ROOT, env=os.environ | ENVIRONMENT, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr[-6000:]
        self.printed = result.stdout
        self.summary = json.loads((self.out / "summary.json").read_text())
        history = json.loads((self.out / "trainer_state.json").read_text())["log_history"]
        self.records = [record for record in history if "loss" in record]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("launches")


@pytest.fixture(scope="module")
def plain(directory: Path) -> Run:
    return Run(directory, "plain")


# A file that only this way of training leaves in a checkpoint: a launch that fell back to another is seen.
TRACES = {
    "ddp": "optimizer.pt",
    "fsdp2": "pytorch_model_fsdp.bin",
    "zero3": "global_step12/*zero_pp_rank_1_mp_rank_00_optim_states.pt",
    "zero2": "global_step12/*zero_pp_rank_1_mp_rank_00_optim_states.pt",
}


@pytest.mark.distributed
@pytest.mark.xdist_group("recipe launches")
@pytest.mark.parametrize("launch", parameters(*TRACES))
def test_the_recipe_on_two_processes_is_the_recipe_on_one(directory: Path, plain: Run, launch: str) -> None:
    run = Run(directory, launch)
    assert (run.summary["processes"], plain.summary["processes"]) == (2, 1)
    assert list((run.out / "checkpoint-12").glob(TRACES[launch]))
    assert run.printed.count("Summary") == 1
    assert (run.summary["sample"] is None) == (launch in ("fsdp2", "zero3"))
    assert (run.out / "adapter" / "adapter_model.safetensors").exists()

    assert [record["pdyn/p"] for record in run.records] == [record["pdyn/p"] for record in plain.records]
    assert len({record["pdyn/p"] for record in run.records}) > 1
    assert sum("pdyn/control/branch" in record for record in run.records) == 12 / SETTINGS["p_interval"]
    assert {record["pdyn/weight_decay"] for record in run.records} == {0.1, 0.0}
    for found, wanted in zip(run.records, plain.records, strict=True):
        assert found.keys() == wanted.keys()
        for name in ("pdyn/D_w", "pdyn/D_b", "pdyn/update_norm/weight", "grad_norm"):
            assert found[name] == pytest.approx(wanted[name], rel=TOLERANCE), name
    for name in ("perplexity_before", "perplexity_after"):
        assert run.summary[name] == pytest.approx(plain.summary[name], rel=TOLERANCE)
