"""Guessing tokens ahead and verifying all guesses in one step."""
