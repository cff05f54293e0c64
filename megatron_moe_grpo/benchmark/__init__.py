"""How fast a training step is, part by part, beside the same step without a trace and beside TRL."""
