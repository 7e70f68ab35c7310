"""The scores of detections on labelled data, as text, JSON and a page."""
