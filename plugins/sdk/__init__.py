"""The kit that plugin authors write against; copied into every sandbox as one file."""
