"""What runs inside Ray Tune: the tuner, the trial on one worker or several, and its reports."""
