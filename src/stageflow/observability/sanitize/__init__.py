"""Sanitizes application values before they are recorded: coerces, redacts and truncates them."""
