"""The papers' mathematics where it can be written down: for recipes/papers and for whoever wants to check a claim."""
