"""What all jobs share on the command line: the entry point, progress lines and the last line."""
