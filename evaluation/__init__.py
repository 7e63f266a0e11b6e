"""How a ranking is judged and shown: metrics, intervals, files, reports, plots. Knows records and rankings only."""
