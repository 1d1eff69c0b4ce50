"""Keeping a line: one worker's business, by a lease. It learns, commits, obeys commands, and looks after the line."""
