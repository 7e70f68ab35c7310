"""The Ray cluster that a job runs on: the connection, its nodes, where work is placed, and the versions on each node."""
