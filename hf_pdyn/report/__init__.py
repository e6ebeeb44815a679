"""Runs as a page, as image files and as a table in a terminal. It imports neither torch nor transformers."""
