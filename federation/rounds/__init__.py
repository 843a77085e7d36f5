"""One round, from both sides."""
