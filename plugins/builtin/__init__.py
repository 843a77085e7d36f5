"""Plugins that come with quietchoir; each folder is a bundle, sandboxed like any other."""
