"""Trains the adapter that lets SmolLM2 read pictures, see scripts/train_smol_vlm.py."""
