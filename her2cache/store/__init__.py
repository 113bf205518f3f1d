"""The feature store: layout, commit, reading. The only importer of zarr and obstore."""
