"""Running an artifact on an NVIDIA GPU by the driver's API alone: no torch and no compiler."""
