"""Decentralized learning with gradient coding on MPI: training that does not wait for the slowest node."""

__version__ = "0.1.0"
