"""Pages and pictures for people; everything in them is read from files."""
