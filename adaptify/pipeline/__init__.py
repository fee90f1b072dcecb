"""The order of the stages, and the run folder: what the commands do, without what they show."""
