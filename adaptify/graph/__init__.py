"""Networks as graphs: tracing, shapes, cost, the sites where gates can go, and cutting into segments."""
