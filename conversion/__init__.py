"""Repack datasets of CT volumes and masks into a store, prove it, and get them back."""
