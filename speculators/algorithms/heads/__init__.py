"""What drafts have in common that are heads on the verifier's last state: no attention, no cache, no layers below."""
