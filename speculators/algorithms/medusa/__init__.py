"""Medusa (Cai et al. 2024, arXiv:2401.10774): heads that each guess one token further ahead, all from one state."""
