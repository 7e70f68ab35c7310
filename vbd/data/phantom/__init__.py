"""The embedded synthetic dataset: films that look like chest X-rays, with findings that readers mark."""
