"""Integrations with web frameworks, each in a package of its own."""
