"""Datasets that the `datasets` library loads: from the hub, from a directory, from files."""

from typing import TYPE_CHECKING, Any

from hf_pdyn.common.errors import nearest

from .entry_point import RecipeError

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict


def load_splits(option: str, given: str, cure: str, path: str, config: str | None = None, **load: Any) -> "DatasetDict":
    """Return the splits of ``load_dataset(path, config)``, of which ``train`` is one.

    Args:
        option: what the user gave, for errors: ``--dataset_name``.
        given: its value.
        cure: what else there is, at the end of an error.
    """
    # Imported here: it takes a second, and only this source needs it.
    from datasets import DatasetDict, load_dataset

    try:
        splits = load_dataset(path, config, **load)
    except Exception as error:  # the library raises a dozen unrelated types
        raise RecipeError(
            f"{option} must be a dataset that can be loaded, got {given!r} (config {config!r}): {error}; {cure}"
        ) from error
    if not isinstance(splits, DatasetDict) or "train" not in splits:
        raise RecipeError(f"{option} must have a 'train' split, got {given!r}: {splits}")
    return splits


def check_column(option: str, column: str, dataset: "Dataset", given: str) -> None:
    """Raise for a column that the dataset does not have."""
    columns = dataset.column_names
    if column not in columns:
        near = nearest(column, columns, n=1) or columns[:1]
        raise RecipeError(
            f"{option} must be a column of {given!r}, got {column!r}; its columns are {columns}, try {near[0]!r}"
        )
