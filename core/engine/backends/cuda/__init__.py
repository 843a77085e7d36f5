"""The runner for CUDA: 4-bit weights, 8-bit keys and values, whole steps as graphs."""
