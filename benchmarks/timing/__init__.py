"""Latency: interleaved rounds, their statistics, the machine, an earlier result."""
