"""The grammar of `--optim_args`; what becomes of it is in test_registration."""

import inspect
import math
import re
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hf_pdyn import Padam
from hf_pdyn.frontend.optim_args import _OVERRIDES, _SETTINGS, Override, parse_optim_args
from hf_pdyn.grouping import COMPONENTS, PATHWAYS, Label
from tests.properties import result_or_refusal

LABELS = (*PATHWAYS, *COMPONENTS)
PIECES = ["p", "eps", "lr_mult", "weight_decay", "label", ".", "=", ",", "norm", "weight/mlp", "0.5", "1_0", "(", "{1"]
PIECES += ["\\x2c", "\\", "*", "true", "9" * 400, " "]


def test_every_option_of_padam_can_be_given() -> None:
    from_the_trainer = {"params", "lr", "betas", "weight_decay"}
    assert set(inspect.signature(Padam).parameters) - from_the_trainer == set(_SETTINGS)


@settings(max_examples=200)
@given(st.one_of(st.text(), st.lists(st.sampled_from(PIECES), max_size=8).map("".join)))
@example("weight_decay.norm=" + "9" * 400)
def test_any_text_is_settings_or_one_error(text: str) -> None:
    parsed, refusal = result_or_refusal(parse_optim_args, text)
    assert refusal is None or len(refusal) < 1000
    for override in parsed.overrides if refusal is None else ():
        assert math.isfinite(override.value)
        assert parse_optim_args(str(override)).overrides == (override,)


@settings(max_examples=200)
@given(st.sampled_from(["p", "weight_decay", "lr_mult"]), st.sampled_from(LABELS), st.floats(0, 2))
def test_overrides_parse_back(field: str, label: str, value: float) -> None:
    override = Override(field, label, value)
    assert parse_optim_args(str(override)).overrides == (override,)


@settings(max_examples=200)
@given(st.text(alphabet="ab,=.*+{}12\\", min_size=1).filter(lambda text: text == text.strip()))
def test_any_regex_can_be_written(regex: str) -> None:
    """Commas and equals signs by their escapes; a backslash before anything else stays what it is."""
    if "\\," in regex or "\\=" in regex or regex.endswith("\\") or "\\x" in regex:
        return
    escaped = regex.replace(",", "\\x2c").replace("=", "\\x3d")
    assert parse_optim_args(f"label.{escaped}=weight/mlp").rules == ((regex, Label("weight", "mlp")),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("label.h{1,2}=weight/mlp", r"key=value items, got 'label.h\{1'. In a regex write \\x2c for a comma"),
        ("label.(?=a)=weight/mlp", r"Unknown pathway 'a\)=weight'.*\\x3d for an equals sign"),
        ("p=1_0", "p must be a finite number, got '1_0'"),
        ("p=1000", r"p must be in \[-2, 2\], got 1000. The papers use -0.4 to 0.6"),
        ("p.norm=-3", r"p.norm must be in \[-2, 2\], got -3"),
    ],
)
def test_nonsense_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_optim_args(text)


def _table_of_keys() -> dict[str, list[str]]:
    """The cells of docs/reference/options.md by key."""
    page = (Path(__file__).parents[2] / "docs" / "reference" / "options.md").read_text()
    table = page.partition("| key |")[2].partition("\n\n")[0].splitlines()[2:]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table]
    return {key: cells for keys, *cells in rows for key in re.findall(r"`([^`]+)`", keys)}


def test_the_documents_have_every_key_with_its_values_and_its_default() -> None:
    of_padam = inspect.signature(Padam).parameters
    table = _table_of_keys()
    plain = {key: cells for key, cells in table.items() if "." not in key}
    assert set(plain) == set(_SETTINGS)
    assert {key for key in table if "." in key} == {*(f"{name}.LABEL" for name in _OVERRIDES), "label.REGEX"}
    for key, (values, default, _) in plain.items():
        allowed = re.findall(r"`([^`]+)`", values)
        for value in allowed or ["0.25"]:
            assert key in parse_optim_args(f"{key}={value}").settings
        if allowed:
            with pytest.raises(ValueError, match=allowed[0]):
                parse_optim_args(f"{key}=something_else")
        given, own = default.strip("`"), of_padam[key].default
        if key == "eps":
            assert "--adam_epsilon" in given
        else:
            assert {"chosen": None, "true": True, "false": False}.get(given, given) in (own, str(own))


def test_the_documents_name_every_label() -> None:
    page = (Path(__file__).parents[2] / "docs" / "reference" / "options.md").read_text()
    named = re.findall(r"`(\w+)`", page.partition("LABEL is a pathway")[2].partition("which outranks")[0])
    assert named == [*PATHWAYS, *COMPONENTS]


@pytest.mark.parametrize(
    ("item", "hint"),
    [("P=0.4", "Did you mean 'p'?"), ("betas=0.9", None), ("weight_decay=0.3", None), ("esp=1", "Did you mean 'eps'?")],
)
def test_hints_lead_to_a_key_or_to_the_trainer(item: str, hint: str | None) -> None:
    with pytest.raises(ValueError, match="come from TrainingArguments") as refused:
        parse_optim_args(item)
    assert (hint in str(refused.value)) if hint else ("Did you mean" not in str(refused.value))
