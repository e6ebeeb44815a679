"""Runs as a page, as image files and as a table in a terminal. Knows neither torch nor transformers, to start fast."""
