"""What one node adds to the shared adapter for itself, and keeps to itself."""
