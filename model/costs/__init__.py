"""What a model costs before it runs: parameters, operations, activation memory."""
