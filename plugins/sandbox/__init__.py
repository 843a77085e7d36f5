"""What a plugin may see and do on this machine: policy as data, and the one way to enforce it."""
