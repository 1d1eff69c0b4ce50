"""How well it works: the MVTec layout, figures, ablations, pictures; `mhpc evaluate`, `ablate` and `coverage`."""
