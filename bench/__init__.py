"""The benchmark: one front-end drives our device and virtiofsd, in turn, in the same run.

What is measured and how to read it: docs/benchmarks/README.md.
"""
