"""What a run leaves on disk: tables of telemetry, run.json, and whether a checkpoint is whole."""
