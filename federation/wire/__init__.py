"""What crosses the border between a member and the coordinator."""
