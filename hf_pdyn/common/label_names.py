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
