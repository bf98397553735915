"""Pure mathematics: arrays in, arrays out; no MPI, clock, file, environment or global RNG."""
