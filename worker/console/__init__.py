"""The live page: Starlette, Jinja and plain modules over what Redis holds. Imports no torch."""
