"""The names of labels, for those who cannot wait for torch."""

PATHWAYS = ("weight", "bias_like")
COMPONENTS = (
    "lora_A",
    "lora_B",
    "attention",
    "mlp",
    "norm",
    "embedding",
    "conv",
    "head",
    "other",
)

NAME = "group_name"
"""The key of a parameter group that holds the name of the user's rule that made it."""
