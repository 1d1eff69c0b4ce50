"""One line that many ranks learn together."""
