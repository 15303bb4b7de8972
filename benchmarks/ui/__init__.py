"""The web UI over many runs: the time of each question, many viewers and writers, and a browser."""
