"""What every room may use: error texts, a guard for telemetry, files written whole."""
