"""A sweep file, its members, and how they are run."""
