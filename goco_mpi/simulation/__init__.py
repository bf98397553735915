"""Whole experiments in one process: in rounds, in simulated seconds, and how well these predict a recorded run."""
