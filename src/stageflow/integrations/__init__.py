"""Integrations with web frameworks and other libraries, each in a separate package."""
