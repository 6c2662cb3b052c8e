"""The cause of a spike, by experiment: the steps around it again, each time with one thing changed."""
