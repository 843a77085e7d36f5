"""The engine in C++: one shared library, its loader, and the runner over it."""
