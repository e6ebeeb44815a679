"""What group rules may say, and what is refused."""

from pathlib import Path
from typing import Any

import pytest

from hf_pdyn.policy.group_rules import GroupRule, GroupRules
from hf_pdyn.policy.schedules import Schedule

FILE = """
# the first rule that matches a name takes the parameter
- {name: vision, match: "^vision_tower", lr: 2e-6, weight_decay: 0}
- name: body
  match: .
  lr_mult: 1.5
  layer: 0.9
  p: 0.25
  schedule: {weight_decay: "linear:0.1..0", lr_mult: 0.5}
"""


def test_a_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "groups.yaml").write_text(FILE)
    rules = GroupRules.of(tmp_path / "groups.yaml")
    assert rules.names == ("vision", "body")
    assert rules[0] == GroupRule("vision", "^vision_tower", lr=2e-6, weight_decay=0.0)
    schedule = {"weight_decay": Schedule.parse("linear:0.1..0"), "lr_mult": Schedule.parse("0.5")}
    assert rules[1] == GroupRule("body", ".", lr_mult=1.5, layer=0.9, p=0.25, schedule=schedule)
    assert list(rules.schedules()) == [(key, "body", value) for key, value in schedule.items()]
    assert GroupRules.of(list(rules)).names == rules.names and GroupRules.of(rules) is rules


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([], "a list of at least one rule"),
        ("name", "a list of at least one rule"),
        ({"name": "a"}, "a list of at least one rule"),
        (["wte"], "Group rule 1 must have keys such as name and match, got 'wte'"),
        ([{"name": "a"}], "Group rule 1 needs a match, a text, got 'None'"),
        ([{"match": "a"}], "Group rule 1 needs a name"),
        ([{"name": 3, "match": "a"}], "needs a name, a text, got '3'"),
        ([{"name": "a", "match": "a", "lr_mul": 2}], r"unknown key 'lr_mul'\. Did you mean 'lr_mult'"),
        ([{"name": "a", "match": "a", 3: 2}], "unknown key '3'"),
        ([{"name": "a", "match": "("}], "Group rule 'a': .* is no valid regular expression"),
        ([{"name": "a", "match": "a", "lr": "fast"}], "lr must be a finite number, got 'fast'"),
        ([{"name": "a", "match": "a", "lr": True}], "lr must be a finite number, got 'True'"),
        ([{"name": "a", "match": "a", "lr": -1}], "lr must be >= 0, got -1"),
        ([{"name": "a", "match": "a", "lr": float("nan")}], "lr must be a finite number"),
        ([{"name": "a", "match": "a", "p": 3}], r"p must be in \[-2, 2\], got 3"),
        ([{"name": "a", "match": "a", "layer": 1.1}], r"layer must be in \(0, 1\]"),
        ([{"name": "a", "match": "a", "layer": 0}], r"layer must be in \(0, 1\]"),
        ([{"name": "a", "match": "a", "lr": 1, "lr_mult": 1}], "has lr and lr_mult. Keep one"),
        ([{"name": "a", "match": "a"}, {"name": "a", "match": "b"}], "Two group rules are named 'a'"),
        ([{"name": "norm", "match": "a"}], "no label .*got 'norm'"),
        ([{"name": "a/b", "match": "a"}], "must be letters, digits"),
        ([{"name": "a", "match": "a", "schedule": "linear:1..0"}], "must map settings to schedules"),
        ([{"name": "a", "match": "a", "schedule": {"eps": 1}}], "schedules the unknown setting 'eps'"),
        ([{"name": "a", "match": "a", "schedule": {"p": "up"}}], "Group rule 'a': "),
        ([{"name": "a", "match": "a", "schedule": {"lr": -1}}], "a schedule of lr must be >= 0"),
        ([{"name": "a", "match": "a", "schedule": {"lr": 1, "lr_mult": 1}}], "schedules lr and lr_mult"),
        ([{"name": "a", "match": "a", "layer": 0.5, "schedule": {"lr": 1}}], "schedules lr, so lr, lr_mult and layer"),
    ],
)
def test_what_cannot_be_meant_is_refused(rules: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GroupRules(rules)


@pytest.mark.parametrize("text", ["- {name: a", "\t- x", "&a [*a]", "- !!python/object:os.system {}", "a: b", ""])
def test_a_damaged_file_is_one_error_with_its_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "groups.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"groups\.yaml"):
        GroupRules.read(path)
