"""Predictions of several checkpoints, calibrated, selected and fused."""
