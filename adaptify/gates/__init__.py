"""Small modules that decide: they know tensors, and nothing of graphs, methods or training."""
