"""The MLP speculator (Wertheimer et al. 2024, arXiv:2404.19124): a small recurrent net with embeddings of its own."""
