"""quietchoir: a private assistant that learns together with others, and none of them is heard
alone.
"""

__version__ = "0.1.0"
