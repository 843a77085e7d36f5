"""Adapters that are kept."""
