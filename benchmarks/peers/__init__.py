"""The other engines of index_bench.py, each run in a process (and a virtual environment) of its own."""
