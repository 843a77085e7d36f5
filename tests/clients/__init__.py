"""Real clients against a real server: programs in an environment of their own."""
