"""What a run would cost and what it should be given: parameters, operations, memory and messages, before it starts."""
