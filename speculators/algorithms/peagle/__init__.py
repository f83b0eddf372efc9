"""P-EAGLE: EAGLE-3's decoder, drafting all tokens in one parallel pass."""
