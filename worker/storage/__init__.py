"""Where the versions of a line lie, and the way there and back."""
