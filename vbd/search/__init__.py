"""The search over detectors, augmentation and hyperparameters on Ray Tune."""
