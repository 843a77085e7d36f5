"""A model's prompt as a graph in a file, for other runtimes."""
