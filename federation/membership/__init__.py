"""Who belongs, and under which rules."""
