"""The head atlas: what every attention head does, read from its weights and then measured."""
