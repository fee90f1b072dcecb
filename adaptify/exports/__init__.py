"""Networks as files that run without adaptify, still skipping; each is opened again and checked."""
