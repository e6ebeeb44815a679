"""What every claim of a paper shares: options, rows of results, runs, statistics, verdicts, figures."""
