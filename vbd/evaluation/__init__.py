"""The competition's metric, its intervals, and the readers against each other."""
