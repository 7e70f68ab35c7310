"""vbd: chest X-ray abnormality detection as distributed batch jobs on Ray."""

__version__ = "0.1.0"
