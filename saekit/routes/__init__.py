"""Which attention heads carry one concept to another on a prompt: attribution, causal checks."""
