"""What ``goco plan`` advises, and the search behind it."""
