"""DFlash-2: DFlash's layers with convolutions inside the block, and a head that chooses tokens that fit each other."""
