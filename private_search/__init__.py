"""Documents that a host lets others search without learning the question."""
