"""How the bundled backbone is made: pictures, teacher, distillation. See `mhpc train`."""
