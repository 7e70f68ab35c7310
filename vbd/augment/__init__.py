"""What the pictures go through before training: policies, mixing, balance."""
