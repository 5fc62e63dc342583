"""How fast the package is here, against the straightforward way; a part of the repository, not of the package."""
