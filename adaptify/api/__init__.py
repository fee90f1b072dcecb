"""What the commands do, as functions on a caller's own modules and loaders."""
