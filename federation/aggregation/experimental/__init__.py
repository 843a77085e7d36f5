"""The sealed mode: a sum that only members can read."""
