"""The comparison of fusions: arms of one base YAML per data set, each trained and judged alike (docs/fusions.md)."""
