"""Engines that answer the same workload, each in a process of its own."""
