"""Measurements: speed, memory, rate and distortion. Results are kept in results/ as JSON."""
