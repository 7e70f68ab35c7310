"""Whether an image shows any finding at all: the probability of No finding, and the gates that use it."""
