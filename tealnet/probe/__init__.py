"""Traffic inside workloads: what demo, tests and benchmarks send and see."""
