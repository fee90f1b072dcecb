"""Several processes that do one piece of work together; one process is the case in which nothing happens."""
