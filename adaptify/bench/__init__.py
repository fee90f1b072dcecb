"""What networks take on this machine: time and memory, in every form in which they can be run."""
