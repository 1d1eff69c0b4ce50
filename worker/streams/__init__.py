"""All that speaks Redis while the worker runs."""
