"""`import hf_pdyn` in processes of their own: before transformers, after it, reloaded, unpickled, spawned."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import hf_pdyn

ROOT = Path(__file__).parents[2]


def python(code: str, *arguments: str) -> str:
    return run("-c", code, *arguments)


def run(*command: str) -> str:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, *command], capture_output=True, text=True, cwd=ROOT, env=environment)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


USES = (
    "from transformers import HfArgumentParser, TrainingArguments, Trainer;"
    "from transformers.training_args import OptimizerNames;"
    "args = TrainingArguments(output_dir='x', optim='padam', use_cpu=True, optim_args='p=0.3');"
    "(parsed,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses("
    "['--output_dir', 'x', '--optim', 'padam', '--use_cpu']);"
    "assert args.optim is parsed.optim is OptimizerNames.PADAM;"
    "assert list(OptimizerNames).count(OptimizerNames.PADAM) == 1;"
    "print(Trainer.get_optimizer_cls_and_kwargs(args)[0].__name__)"
)


@pytest.mark.parametrize(
    "imports",
    [
        "import hf_pdyn",
        "import transformers.trainer, hf_pdyn",
        "import hf_pdyn, importlib; importlib.reload(hf_pdyn);"
        "import transformers.training_args as t; importlib.reload(t);"
        "import transformers.trainer_optimizer as o; importlib.reload(o)",
    ],
)
def test_padam_is_known_whatever_is_imported_first(imports: str) -> None:
    assert python(f"{imports}; {USES}") == "Padam"


def test_the_import_alone_is_light_and_hides_nothing() -> None:
    code = (
        "import sys, hf_pdyn; print([name for name in ('torch', 'transformers', 'numpy', 'pyarrow') if name in "
        "sys.modules]); import inspect, transformers.training_args as t;"
        "assert type(t.__loader__).__name__ == type(t.__spec__.loader).__name__ == 'SourceFileLoader';"
        "assert 'class OptimizerNames' in inspect.getsource(t)"
    )
    assert python(code) == "[]"


def test_saved_arguments_load_where_the_package_is_imported(tmp_path: Path) -> None:
    save = (
        "import sys, torch, hf_pdyn; from transformers import TrainingArguments;"
        "torch.save(TrainingArguments(output_dir='x', optim='padam', use_cpu=True), sys.argv[1])"
    )
    load = "import sys, hf_pdyn, torch; print(torch.load(sys.argv[1], weights_only=False).optim.value)"
    python(save, str(tmp_path / "training_args.bin"))
    assert python(load, str(tmp_path / "training_args.bin")) == "padam"


SPAWNING = """
import multiprocessing
import hf_pdyn
from transformers import TrainingArguments

def optimizer_of(args):
    return args.optim.value

if __name__ == "__main__":
    args = TrainingArguments(output_dir="x", optim="padam", use_cpu=True)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(pool.apply(optimizer_of, (args,)))
"""


def test_a_spawned_process_unpickles_arguments_where_its_module_imports_the_package(tmp_path: Path) -> None:
    (tmp_path / "spawning.py").write_text(SPAWNING)
    assert run(str(tmp_path / "spawning.py")) == "padam"


def test_every_public_name_is_there() -> None:
    for name in hf_pdyn.__all__:
        assert getattr(hf_pdyn, name) is not None
    assert set(hf_pdyn.__all__) <= set(dir(hf_pdyn))
    assert set(hf_pdyn._HOMES) == set(hf_pdyn.__all__) - {"__version__"}
    with pytest.raises(AttributeError, match="module 'hf_pdyn' has no attribute 'nothing'"):
        _ = hf_pdyn.nothing
