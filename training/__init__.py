"""How a retriever learns: batches, losses, the loop, checkpoints."""
