"""The same route on many prompts."""
