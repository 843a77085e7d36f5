"""Any causal model that transformers computes; slower than the other backends."""
