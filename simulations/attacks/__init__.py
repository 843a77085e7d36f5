"""What an attacker tries; the tests in tests/attacks run it."""
