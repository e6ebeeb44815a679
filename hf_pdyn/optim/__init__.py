"""The optimizer: the p-update as tensor operations and as compiled kernels."""
