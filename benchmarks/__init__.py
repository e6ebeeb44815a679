"""What a step costs: `python -m benchmarks step|trainer`, by scripts/benchmark. LOG.md has what was tried and lost."""
