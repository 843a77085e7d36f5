"""Many parties, one adapter: who takes part, what crosses the border, how a sum becomes the next
adapter.
"""
