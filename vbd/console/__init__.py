"""What all jobs share on the command line: progress lines and the last line."""
