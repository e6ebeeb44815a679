import re
import subprocess
import sys
from pathlib import Path

import pytest

from hf_pdyn.common import extras

ROOT = Path(__file__).parents[2]
DISTRIBUTIONS = {"yaml": "pyyaml", "sklearn": "scikit-learn", "PIL": "pillow", "vl_convert": "vl-convert-python"}


@pytest.mark.parametrize("extra", extras._MODULES)
def test_the_extras_are_those_of_the_package(extra: str) -> None:
    text = (ROOT / "pyproject.toml").read_text()
    listed = re.search(rf"^{extra} = \[(.*?)\](?:\s+#.*)?$", text, re.DOTALL | re.MULTILINE)
    assert listed is not None
    names = {name for name in re.findall(r'"([\w.-]+)[^"]*"', listed[1]) if name != "hf-pdyn"}
    assert {DISTRIBUTIONS.get(module, module) for module in extras._MODULES[extra]} == names


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("peft.tuners", r"peft is not installed: pip install 'hf-pdyn\[recipes\]'."),
        ("jinja2", r"jinja2 is not installed: pip install 'hf-pdyn\[report\]'."),
        ("no_such_module", "^No module named 'no_such_module'$"),
    ],
)
def test_a_missing_library_is_named_with_its_extra(name: str, text: str) -> None:
    assert re.search(text, extras.explained(ModuleNotFoundError(f"No module named {name!r}", name=name)))


@pytest.mark.parametrize("script", ["gpt2_lora.py", "vit_lora.py"])
@pytest.mark.parametrize("module", ["peft", "evaluate"])
def test_a_recipe_without_its_libraries_says_what_to_install(script: str, module: str) -> None:
    code = (
        f"import importlib.util, runpy, sys; find = importlib.util.find_spec; sys.modules[{module!r}] = None\n"
        f"importlib.util.find_spec = lambda name, *rest: None if name == {module!r} else find(name, *rest)\n"
        f"sys.argv = [{script!r}]; sys.path.insert(0, 'recipes')\n"
        f"runpy.run_path('recipes/{script}', run_name='__main__')"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1] == (
        f"{script}: error: {module} is not installed: pip install 'hf-pdyn[recipes]'."
    )
    assert "Traceback" not in result.stderr
