"""Scripts that measure, never tests."""
