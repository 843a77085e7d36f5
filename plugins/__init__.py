"""Other people's code, without our rights. Stands on `core`."""
