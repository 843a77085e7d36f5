"""Linear back-ends, behind `linear_for`."""

from .choice import copy_fits, linear_for

__all__ = ["copy_fits", "linear_for"]
