"""Shows a running search to people: progress lines, the live table of a terminal, MLflow."""
