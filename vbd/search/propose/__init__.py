"""Search algorithms: which configuration is tried next."""
