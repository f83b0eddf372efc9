"""Telling what happened: results, charts, HTML, model card."""
