"""These tests compile kernels: Triton is told how before any of them imports it."""

from glm_portable.virtual.compiler import settle

settle()
