"""Answering: every image of every line gets its result or its dead letter."""
