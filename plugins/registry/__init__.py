"""Registries of plugins: whoever runs one, and whoever installs from one."""
