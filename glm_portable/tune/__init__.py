"""Measure tiles of the expert product on the GPU that is here, for the tables of `kernels/tuned`.

What is searched (shapes, candidates), what is run (problem), the clock and the search are apart:
all but the clock itself is tested without a GPU.
"""
