"""Fuses boxes that several readers or detectors have drawn around the same finding."""
