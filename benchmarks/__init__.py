"""Benchmarks of edgekit beside other tools and servers. `make bench` runs all; `make bench-<name>` runs one."""
