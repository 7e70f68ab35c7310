"""How far the detectors' scores can be trusted: they are calibrated out of fold before they are fused."""
