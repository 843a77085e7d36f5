"""Experiments and measurements. Stands on all the rest."""
