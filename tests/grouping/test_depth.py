import pytest

from hf_pdyn.grouping.depth import depths

GPT2 = ["wte.weight", "wpe.weight", "h.0.ln_1.weight", "h.0.mlp.c_fc.bias", "h.1.ln_1.weight", "ln_f.weight"]
SEQUENTIAL_HEAD = ["embed.weight", "layers.0.a.weight", "layers.0.b.weight", "layers.1.a.weight", "head.0.weight"]
STAGES = ["patch.weight", "stages.0.blocks.0.w", "stages.0.blocks.1.w", "stages.1.blocks.0.w", "norm.weight"]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (GPT2, [3, 3, 2, 2, 1, 0]),
        (SEQUENTIAL_HEAD, [3, 2, 2, 1, 0]),
        (STAGES, [3, 2, 2, 1, 0]),
        (["layers.7.w", "layers.9.w"], [2, 1]),  # of a rule that takes two layers alone
    ],
)
def test_depths(names: list[str], expected: list[int]) -> None:
    assert depths(names) == expected


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["embed.weight", "head.weight"], "no numbered layers are in the names.*embed.weight"),
        (["encoder.0.w", "encoder.1.w", "decoder.0.w", "decoder.1.w"], "encoder and decoder: write a rule for each"),
    ],
)
def test_depths_that_are_not_clear(names: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        depths(names)
