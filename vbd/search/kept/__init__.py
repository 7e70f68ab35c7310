"""What a search keeps in its run folder: trials, leaderboard, the best checkpoints, and the proof of their scores."""
