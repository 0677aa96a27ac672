"""Variants in 8-bit integers for CPUs: their topologies, and the ranges of their activations."""
