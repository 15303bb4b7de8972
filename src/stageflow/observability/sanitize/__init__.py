"""Coerces, redacts and truncates values, so that they can be recorded."""
