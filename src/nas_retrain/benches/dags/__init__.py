"""MLPs and CNNs on random graphs, as in the paper's section 4."""
