"""XPress: DFlash's layers, and a small causal head that corrects a block in a few parallel passes."""
