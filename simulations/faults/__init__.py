"""What can go wrong in a federation, done to real processes."""
