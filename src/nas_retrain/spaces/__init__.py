"""Search spaces: enumerate cells, name them, and turn names into graphs. No torch here."""
