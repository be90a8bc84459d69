"""The head atlas as a chart and as files."""
