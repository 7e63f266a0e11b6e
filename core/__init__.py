"""The words every room speaks: records, token batches, MaxSim, configuration, files, distribution."""
