"""Curves over rank: trained at each rank, slices of a nested run, truncations."""
