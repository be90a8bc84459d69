"""The picture of a circuit: what it says, where things go, and how they are drawn."""
