"""From readers' boxes to labels: fused boxes, weights of images, folds."""
