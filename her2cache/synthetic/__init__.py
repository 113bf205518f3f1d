"""A synthetic cohort of real pyramidal slides, in which nuclear morphology carries the HER2 score."""
