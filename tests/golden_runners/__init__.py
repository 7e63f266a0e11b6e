"""One runner per system: ``run(case)`` computes our values for every entry of a golden case."""
