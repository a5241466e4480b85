"""What the benchmarks of the kernels share: shapes, published formulas, counts and clocks.

Needs torch, triton and the package `methods`; it must not know models, the harness or Hydra.
"""
