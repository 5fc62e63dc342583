"""Cell graphs as torch modules, with stock or architecture-aware initialisation."""
