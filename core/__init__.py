"""One assistant on one machine. Stands on nothing else of ours."""
