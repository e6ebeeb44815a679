"""Claims of papers, checked at small scale: a package for each paper, and what they share in `_claims`."""
