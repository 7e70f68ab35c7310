"""Which members the ensemble is made of, and with which weights."""
