"""Features made by, or for, other tools: CLAM, TRIDENT, STAMP and torchmil."""
