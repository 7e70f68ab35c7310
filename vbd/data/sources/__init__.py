"""Reads data as others have laid it out: competition csv, YOLO, COCO, Pascal VOC and plain csv tables."""
