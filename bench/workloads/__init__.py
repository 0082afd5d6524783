"""One file a workload: its `CASES`, the peer's side and ours. Read by `bench.case`."""
