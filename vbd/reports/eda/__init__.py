"""The page about a dataset (exploratory data analysis)."""
