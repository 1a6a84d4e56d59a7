"""Benchmarks: our system, a hand-written floor and OVN side by side on the hosts of one lab. See docs/benchmarks.md."""
