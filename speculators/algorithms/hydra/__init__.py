"""Hydra (Ankner et al. 2024, arXiv:2402.05109): Medusa's heads, which also see the tokens drafted before them."""
