"""How a sum is made without showing its parts."""
