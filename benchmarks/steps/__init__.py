"""The training steps that ``benchmarks/train_bench.py`` races: the published one, plainly written, and ours."""
