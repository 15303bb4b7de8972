"""What a stage and an event cost, as ratios between things run in turn in one process."""
