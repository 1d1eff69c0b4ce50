"""Pictures as they come: what they may declare, and what the engine takes of them."""
