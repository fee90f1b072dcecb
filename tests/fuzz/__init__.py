"""Files from strangers: sound files of every kind, ways to damage them, and the readers that stand it."""
