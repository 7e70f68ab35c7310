"""From the files of films, of whatever kind, to prepared images."""
