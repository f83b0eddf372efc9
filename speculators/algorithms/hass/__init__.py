"""HASS (arXiv:2408.15766): EAGLE-1's draft, trained on the states that it reads when it drafts."""
