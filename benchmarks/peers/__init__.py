"""Other engines on the same shapes, each in a process and an environment of its own."""
