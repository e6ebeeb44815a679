import time

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from hf_pdyn.common import patterns
from hf_pdyn.common.patterns import NamePattern
from hf_pdyn.grouping import label_parameters
from tests.properties import result_or_refusal

NAME = "transformer.h.0.attn.c_attn.weight"


@settings(max_examples=200)
@given(st.one_of(st.text(), st.text(alphabet="ab.*+?(){}[]|\\^$0123,", max_size=30)))
@example("(" * 400)
@example("a{99999999999}")
@example("a{" + "9" * 400 + "}")
@example("((((a{999}){999}){999}){999})")
@example("[[a]--[b]]")
def test_any_pattern_gives_an_answer_or_one_error(text: str) -> None:
    found, refusal = result_or_refusal(lambda text: NamePattern(text).found_in(NAME), text)
    if refusal is None:
        assert isinstance(found, bool)
    else:
        assert "regular expression" in refusal
        assert len(refusal) < 400


def test_a_pattern_that_takes_for_ever_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patterns, "_SECONDS", 0.2)
    begun = time.monotonic()
    model = nn.Module()
    model.register_parameter("a" * 200, nn.Parameter(torch.ones(1)))
    with pytest.raises(ValueError, match="takes more than 0.2 s to search"):
        label_parameters(model, [(r"^(a|a\w?|\w)*$(?<=s)", "weight/mlp")])
    assert time.monotonic() - begun < 60


@pytest.mark.parametrize("text", ["label", "h\\.[0-9]{1,2}", "(?:attn|mlp)\\.c_", "^transformer(?=\\.h)", "weight$"])
def test_usual_patterns(text: str) -> None:
    assert NamePattern(text).found_in(NAME) == (text != "label")
