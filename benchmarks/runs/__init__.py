"""Measurements that are run from a checkout: `python -m lavt_edge.benchmarks.runs.NAME`."""
