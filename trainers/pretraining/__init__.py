"""Training the AlexNets whose trunks become embedders, on the source tasks of the paper's Table 1."""
