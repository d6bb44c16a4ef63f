"""The benchmark: one front-end drives our device and virtiofsd, in turn, in the same run.

docs/benchmarks/README.md explains what is measured and how to read the results.
"""
