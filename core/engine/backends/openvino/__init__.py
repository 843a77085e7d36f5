"""A model's prompt on OpenVINO's devices; see `runner` and `graph`."""
