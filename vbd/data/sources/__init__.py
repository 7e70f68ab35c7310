"""Reads data as others have laid it out: competition csv and its mirrors, YOLO, COCO."""
